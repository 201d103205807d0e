"""The verifier's data written for this package: statements, each with what it answers and does not, and families."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...datasets import Row, read_rows
from ...modeling.verifier import as_update

#: Where the statements lie, and below them the families, and the tables of statements that take the place of others.
STATEMENTS = Path(__file__).parents[1] / "statements"
FAMILIES = STATEMENTS / "families"
UPDATES = STATEMENTS / "updates"
#: What a text ends with that is to be continued with an answer.
_OPEN_END = re.compile(
    r"\b(is|are|was|were|be|by|in|at|to|of|from|on|for|with|until|till|after|before|as|than|costs?|pays?|named|called)$"
)

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


def part_of(text: str) -> Part:
    """What a statement written for this package, by its text, is for.

    >>> part_of("Ivo Kastelic was born in Maribor.")
    'training'
    """
    place = number_of(text) % 100
    return "exam" if place < 20 else "development" if place < 28 else "training"


def load_statements(directory: Path = STATEMENTS) -> list[Statement]:
    """All statements, each with misses of its own, or those of a directory of files like theirs.

    Raises:
        ValueError: If a row is not as the README beside them says; the message names file and line.
    """
    return _each_once(
        (row, [_statement(row)]) for file in sorted(directory.glob("*.jsonl")) for row in read_rows(file)
    )


def load_families(directory: Path = FAMILIES) -> list[Statement]:
    """The statements of all families: what one of them answers, the others of its family do not.

    A family is as a whole for one part, which its first statement decides.

    Raises:
        ValueError: If a row is not as the README says; the message names file and line.
    """
    return _each_once((row, _family(row)) for file in sorted(directory.glob("*.jsonl")) for row in read_rows(file))


def load_updates(directory: Path = UPDATES, families: Path = FAMILIES) -> list[Statement]:
    """Older statements, each with newer ones, as queries: asks take its place, misses leave it where it is.

    Beside the tables, the first statement of each family is one that the others leave where it is.

    Raises:
        ValueError: If a row is not as the README says; the message names file and line.
    """
    tables = [(row, [_update(row)]) for file in sorted(directory.glob("*.jsonl")) for row in read_rows(file)]
    members = [_family(row) for file in sorted(families.glob("*.jsonl")) for row in read_rows(file)]
    return [*_each_once(tables), *map(_first_updated, members)]


#: What each kind of source that is written for this package loads.
WRITTEN: Mapping[str, Callable[[], list[Statement]]] = {
    "statements": load_statements,
    "families": load_families,
    "updates": load_updates,
}


def _each_once(found: Iterable[tuple[Row, list[Statement]]]) -> list[Statement]:
    """The statements, none of which, and no ask of which, may be given again."""
    first: dict[str, str] = {}
    statements = []
    for row, of_row in found:
        for text in (text for statement in of_row for text in (statement.text, *statement.asks)):
            if text.lower() in first:
                raise ValueError(f"{row.where}: {text!r} must be given once, it is in {first[text.lower()]} too.")
            first[text.lower()] = row.where
        statements += of_row
    return statements


def _statement(row: Row) -> Statement:
    text, answer, asks = _told(row)
    kinds = row.get("misses")
    if not isinstance(kinds, dict) or len(kinds) < 3:
        raise row.error("misses", "an object of at least three texts, by kind")
    misses = tuple((row.text(f"misses.{kind}"), kind) for kind in kinds)
    row.text("kind")
    if len({*asks, *(miss for miss, _ in misses)}) < len(asks) + len(misses):
        raise row.error("misses", "texts that differ from one another and from the asks")
    return Statement("statements", text, asks, misses, part_of(text), answer)


def _family(row: Row) -> list[Statement]:
    members = row.rows("statements")
    row.text("kind")
    if len(members) < 2:
        raise row.error("statements", "at least two")
    told = [_told(member) for member in members]
    part = part_of(told[0][0])
    return [
        Statement("families", text, asks, _of_others(told, place), part, answer)
        for place, (text, answer, asks) in enumerate(told)
    ]


def _update(row: Row) -> Statement:
    old, retires, stays = row.text("old"), row.texts("retires"), row.get("stays")
    row.text("kind")
    if len(retires) < 2:
        raise row.error("retires", "at least two texts")
    if not isinstance(stays, dict) or len(stays) < 3:
        raise row.error("stays", "an object of at least three texts, by kind")
    misses = tuple((as_update(row.text(f"stays.{kind}")), kind) for kind in stays)
    return Statement("updates", old, tuple(map(as_update, retires)), misses, part_of(old))


def _first_updated(family: list[Statement]) -> Statement:
    """The first of a family; what takes its place has an answer of another, of like form, in words of an ask."""
    first, *others = family
    values = [
        other.answer
        for other in others
        if other.answer and other.answer != first.answer and _has_digits(other.answer) == _has_digits(first.answer)
    ]
    openings = [ask for ask in first.asks if ask[0].isupper() and _OPEN_END.search(ask)]
    newer = tuple(as_update(f"{opening} {value}.") for opening in openings for value in values[:2])
    misses = tuple((as_update(other.text), "sibling") for other in others)
    return Statement("updates", first.text, newer, misses, first.part)


def _has_digits(text: str | None) -> bool:
    return any(letter.isdigit() for letter in text or "")


def _told(row: Row) -> tuple[str, str, tuple[str, ...]]:
    """A statement, its answer, and what asks for that."""
    text, answer, asks = row.text("statement"), row.text("answer"), row.texts("asks")
    if answer not in text:
        raise row.error("answer", "a part of the statement")
    if len(asks) != 3:
        raise row.error("asks", "three different texts")
    return text, answer, asks


def _of_others(told: list[tuple[str, str, tuple[str, ...]]], place: int) -> tuple[tuple[str, str], ...]:
    return tuple((ask, "sibling") for other, (_, _, asks) in enumerate(told) if other != place for ask in asks)


def number_of(text: str) -> int:
    """A number that only the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
