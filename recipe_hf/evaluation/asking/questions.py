"""The questions of an evaluation: reliability, generality, locality, portability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...datasets import EditExample

KINDS = ("reliability", "generality", "locality")
PORTABILITY = "portability"


@dataclass(frozen=True)
class Question:
    """A question that a fact gives rise to.

    Args:
        kind: What it tests, such as `reliability`.
        text: What the base model reads.
        answers: Right answers, or for a question that the fact does not concern, those of the data set. The first is
            the one that is forced.
        about: Position of the fact among those held.
        concerns: Whether the fact should be used. If not, right is what the unedited model says.
        detail: Kind within the kind, as the data set names it.
        query: What the retriever reads of it; by default all of it.
    """

    kind: str
    text: str
    answers: tuple[str, ...]
    about: int
    concerns: bool = True
    detail: str = ""
    query: str | None = None


def questions_of_data(asked: Sequence[tuple[EditExample, int]], every: bool) -> Iterator[Question]:
    """The questions that the data set itself asks.

    A fact without rephrasings is not asked for in other words, and one whose unrelated question was made up has none.

    Args:
        asked: Facts, and the position of each among those held.
        every: Whether to ask what follows from the facts too, and all unrelated questions whose kind the data name
            rather than one for each fact.
    """
    for example, position in asked:
        yield Question("reliability", example.prompt, (example.answer,), position)
    for example, position in asked:
        if example.rephrasings:
            yield Question("generality", example.rephrase_prompt, (example.answer,), position)
    for example, position in asked:
        if not example.unrelated_is_made_up:
            kinds = example.unrelated_kinds or ("",)
            for (text, answer), kind in list(zip(example.unrelated, kinds, strict=False))[: None if every else 1]:
                yield Question("locality", text, (answer,), position, concerns=False, detail=kind)
    if every:
        for example, position in asked:
            for kind, questions in example.portability.items():
                for text, answers in questions:
                    yield Question(PORTABILITY, text, answers, position, detail=kind)
