"""What happened to a question: the one record of it, whatever editor was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..asking.protocols import Protocol, opens_with
from ..asking.questions import Question


@dataclass(frozen=True)
class Outcome:
    """What happened to one question.

    Args:
        kind: What was tested: `reliability`, `generality`, `locality`, `portability` or a probe.
        query: The question.
        answer: The answer that the data set gives.
        retrieved_id: Id of the fact whose prompt was used, or `None`.
        is_right_fact: Whether that is the fact asked for (where no fact is concerned: whether none was used); `None`
            if the editor looks no fact up, and then it has no score either.
        score: Similarity with the best fact.
        threshold: What the score had to exceed, such as the similarity with the sentinel.
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
        tokens_added: How many tokens were read beyond those of the question; `None` in older records.
    """

    kind: str
    query: str
    answer: str
    retrieved_id: int | None
    is_right_fact: bool | None
    score: float | None
    threshold: float | None
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
    tokens_added: int | None = None

    @property
    def margin(self) -> float:
        """Score less threshold: the fact is used where this is positive."""
        return (self.score or 0.0) - (self.threshold or 0.0)


def accuracy_of(
    protocol: Protocol, question: Question, said: Sequence[int], expected: Sequence[int], output: str
) -> float:
    """The accuracy of tokens said, 0 to 1, where `expected` were to be said; `output` is their text."""
    if protocol.forced:
        return sum(a == b for a, b in zip(said, expected, strict=True)) / len(expected)
    return float(opens_with(output, question.answers) if question.concerns else said == expected)
