"""The questions of an evaluation (reliability, generality, locality, portability), and the outcome of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..datasets import EditExample

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


@dataclass(frozen=True)
class Outcome:
    """What happened to one question.

    Args:
        kind: What was tested: `reliability`, `generality`, `locality`, `portability` or a probe.
        query: The question.
        answer: The answer that the data set gives.
        retrieved_id: Id of the fact whose prompt was used, or `None`.
        is_right_fact: Whether that is the fact asked for (where no fact is concerned: whether none was used).
        score: Similarity with the best fact.
        threshold: Similarity with the sentinel.
        accuracy: Share of right tokens, 0 to 1; of what was generated, 0 or 1.
        detail: Kind within the kind, as the data set names it.
        fact_id: Id of the fact that the question was made from; ids count the facts in the order they were added.
        nearest_id: Id of the best fact, whether or not it was used.
        concerns: Whether the fact it was made from should be used.
        output: What the model said: its most likely token at each position of the answer, or what it generated.
        expected: What it had to say: the answer, or the unedited model's output.
        names_subject: Whether a fact was used whose subject the question names; `None` where the data do not say what
            the fact is about.
        base_accuracy: Accuracy of the unedited base, for what follows from a fact: some of it the base says anyway.
        probability: How likely the best fact is the one asked for, by the model's own estimate; `None` in older
            records, which go by the margin.
    """

    kind: str
    query: str
    answer: str
    retrieved_id: int | None
    is_right_fact: bool
    score: float
    threshold: float
    accuracy: float
    detail: str = ""
    fact_id: int | None = None
    nearest_id: int | None = None
    concerns: bool = True
    output: str = ""
    expected: str = ""
    names_subject: bool | None = None
    base_accuracy: float | None = None
    probability: float | None = None

    @property
    def margin(self) -> float:
        """Score less threshold: the fact is used where this is positive."""
        return self.score - self.threshold

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain values."""
        return asdict(self)


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
