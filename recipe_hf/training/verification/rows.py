"""The verifier's data: statements with questions that they answer and questions that they do not, and chat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...datasets import EditExample, Row, load_examples, read_rows
from ...knowledge.facts import compose_statement
from .config import SourceConfig
from .written import STATEMENTS, WRITTEN, Part, Statement, number_of, part_of

_UNRELATED_QUESTIONS = 3


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


def _statements(source: SourceConfig) -> list[Statement]:
    if source.kind in WRITTEN:
        return WRITTEN[source.kind]()[: source.max_rows]
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
    texts = [text for row in rows for text in row.texts("texts") if number_of(text) % 2]
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
