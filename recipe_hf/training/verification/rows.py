"""What is learned from: statements with questions that they answer and questions that they do not, and chat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ...datasets import EditExample, Row, load_examples, read_rows
from ...modeling.facts import compose_statement
from .config import SourceConfig

#: Where the statements written for this package lie, with a table of those that supersede others, for another use.
STATEMENTS = Path(__file__).parents[1] / "statements"
_OTHER_TABLES = ("supersede",)
_UNRELATED_QUESTIONS = 3

Part = Literal["exam", "development", "training"]


@dataclass(frozen=True)
class Statement:
    """A statement.

    Args:
        source: Name of its source.
        text: What it says.
        asks: What it answers.
        misses: What it does not answer, and the kind of each.
        part: What it is for.
        answer: The part of it that is the answer to its asks, if the data say.
    """

    source: str
    text: str
    asks: tuple[str, ...]
    misses: tuple[tuple[str, str], ...]
    part: Part
    answer: str | None = None


@dataclass(frozen=True)
class Chat:
    """A text that no statement answers."""

    source: str
    text: str
    part: Part


class VerificationData(NamedTuple):
    """What a run reads, without what is kept for the exam."""

    statements: list[Statement]
    chat: list[Chat]


def part_of(text: str) -> Part:
    """What a statement written for this package, by its text, is for.

    >>> part_of("Ivo Kastelic was born in Maribor.")
    'training'
    """
    place = _number(text) % 100
    return "exam" if place < 20 else "development" if place < 28 else "training"


def load_data(sources: Iterable[SourceConfig]) -> VerificationData:
    """Loads the sources of a run. What is asked in development, or for the exam, is not trained on.

    Raises:
        FileNotFoundError: If a file is neither here nor on the Hub.
        ValueError: If a row is bad, or a source has none; the message names it.
    """
    statements: list[Statement] = []
    chat: list[Chat] = []
    for source in sources:
        found = _chat(source) if source.kind == "chat" else _statements(source)
        if not found:
            raise ValueError(f"{source.path or STATEMENTS} holds no row of the source {source.name!r}.")
        chat += [row for row in found if isinstance(row, Chat)]
        statements += [row for row in found if isinstance(row, Statement)]
    apart = {ask for row in statements if row.part != "training" for ask in row.asks}
    kept = [_without(row, apart) if row.part == "training" else row for row in statements]
    return VerificationData([row for row in kept if row.part != "exam" and (row.asks or row.misses)], chat)


def load_statements(directory: Path = STATEMENTS) -> list[Statement]:
    """All statements written for this package, or of a directory of files like theirs.

    Raises:
        ValueError: If a row is not as the README beside them says; the message names file and line.
    """
    rows = [
        (row, _checked(row))
        for file in sorted(directory.glob("*.jsonl"))
        if file.stem not in _OTHER_TABLES
        for row in read_rows(file)
    ]
    first: dict[str, str] = {}
    for row, statement in rows:
        for text in (statement.text, *statement.asks):
            if (where := first.setdefault(text.lower(), row.where)) != row.where:
                raise ValueError(f"{row.where}: {text!r} must be given once, it is in {where} too.")
    return [statement for _, statement in rows]


def _checked(row: Row) -> Statement:
    text, answer, asks = row.text("statement"), row.text("answer"), row.texts("asks")
    kinds = row.get("misses")
    if answer not in text:
        raise row.error("answer", "a part of the statement")
    if len(asks) != 3:
        raise row.error("asks", "three different texts")
    if not isinstance(kinds, dict) or len(kinds) < 3:
        raise row.error("misses", "an object of at least three texts, by kind")
    misses = tuple((row.text(f"misses.{kind}"), kind) for kind in kinds)
    row.text("kind")
    if len({*asks, *(miss for miss, _ in misses)}) < len(asks) + len(misses):
        raise row.error("misses", "texts that differ from one another and from the asks")
    return Statement("statements", text, asks, misses, part_of(text), answer)


def _statements(source: SourceConfig) -> list[Statement]:
    if source.kind == "statements":
        return load_statements()[: source.max_rows]
    if source.kind == "edits":
        found = [_of_edit(example, source.name) for example in load_examples(str(source.path), half=source.half)]
    else:
        found = [_of_pairs(row, source.name) for row in read_rows(str(source.path)) if _is_of(row, source)]
    return [
        replace(row, part=_part(source, row.text, place, len(found[: source.max_rows])))
        for place, row in enumerate(found[: source.max_rows])
    ]


def _of_pairs(row: Row, name: str) -> Statement:
    asks, misses = row.texts("asks"), row.texts("misses")
    if both := set(asks) & set(misses):
        raise ValueError(f"{row.where}: {sorted(both)[0]!r} must be either among asks or among misses.")
    return Statement(name, row.text("statement"), asks, tuple((miss, "miss") for miss in misses), "training")


def _of_edit(example: EditExample, name: str) -> Statement:
    asks = tuple(dict.fromkeys((example.prompt.strip(), *example.rephrasings)))
    unrelated = () if example.unrelated_is_made_up else example.unrelated[:_UNRELATED_QUESTIONS]
    misses = {
        question: "miss"
        for question, answer in unrelated
        if question not in asks and not _asks(example, question, answer)
    }
    text = compose_statement(example.prompt, example.answer)
    return Statement(name, text, asks, tuple(misses.items()), "training", example.answer.strip())


def _asks(example: EditExample, question: str, answer: str) -> bool:
    """Whether a question that data give as unrelated in truth asks for the fact, as its answer so far shows."""
    return bool(example.subject) and example.subject in question and answer == example.ground_truth


def _chat(source: SourceConfig) -> list[Chat]:
    """The texts whose digest is odd: the others are kept for the exam."""
    rows = [row for row in read_rows(str(source.path)) if _is_of(row, source)][: source.max_rows]
    texts = [text for row in rows for text in row.texts("texts") if _number(text) % 2]
    return [Chat(source.name, text, _part(source, text, place, len(texts))) for place, text in enumerate(texts)]


def _is_of(row: Row, source: SourceConfig) -> bool:
    return source.source in (None, row.get("source"))


def _part(source: SourceConfig, text: str, place: int, length: int) -> Part:
    """Only the statements of this package have an exam; all sources have rows for development."""
    if source.num_eval_rows is not None:
        return "development" if place >= length - source.num_eval_rows else "training"
    return "development" if part_of(text) == "development" else "training"


def _without(row: Statement, texts: set[str]) -> Statement:
    asks = tuple(ask for ask in row.asks if ask not in texts)
    return replace(row, asks=asks, misses=tuple(miss for miss in row.misses if miss[0] not in texts))


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
