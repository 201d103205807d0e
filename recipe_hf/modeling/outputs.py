"""Output classes: what `retrieve`, `explain` and `forward` give back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NoReturn

from transformers.modeling_outputs import CausalLMOutputWithPast

from ..knowledge.facts import Fact


@dataclass(frozen=True)
class Retrieval:
    """What was found for one query, and whether it is used (paper eq. 9).

    Attributes:
        id: Id of the fact with the closest key; None if there are no facts, or the query is empty, or of words that
            the encoder does not know.
        statement: Its statement.
        score: Scaled dot product of query and key, `scale * r_q . r_k`; -inf without a fact.
        threshold: That of query and knowledge sentinel, `scale * r_q . r_sentinel`.
        fired: Whether the fact is used: `score > threshold`, or with a verifier `probability > 1/2`.
        probability: How likely the fact is one that the query asks for, by the model's own estimate: the verifier's,
            or where it read nothing the sigmoid of `(score - threshold) / similarity_temperature`. 0 without a fact.
        others: The further facts used beside it, next best first, where `config.top_k_facts` allows them.
        answer: What the fact answers, if that is known: as it was told, or as the verifier finds it in the statement.
        num_prompt_tokens: How many tokens were prefixed, by `generate` or `forward`; 0 where nothing was, as in
            `retrieve`.
    """

    id: int | None
    statement: str | None
    score: float
    threshold: float
    fired: bool
    probability: float = 0.0
    others: tuple[Retrieval, ...] = ()
    answer: str | None = None
    num_prompt_tokens: int = field(default=0, compare=False)


def probability_of(margin: float, temperature: float) -> float:
    """Sigmoid of `margin / temperature`: training opposes a fact to the sentinel in a softmax (eq. 14 to 17).

    >>> probability_of(0.0, 0.1), round(probability_of(0.1, 0.1), 3), probability_of(-math.inf, 0.1)
    (0.5, 0.731, 0.0)
    """
    return (1 + math.tanh(margin / temperature / 2)) / 2


@dataclass(frozen=True)
class Candidate:
    """A fact that is close to a query, and what becomes of it.

    Attributes:
        fact: The fact.
        score: Scaled dot product of query and key.
        fired: Whether it is used.
        reason: Why, or why not.
        probability: How likely the query asks for it, by the model's own estimate.
    """

    fact: Fact
    score: float
    fired: bool
    reason: str
    probability: float = 0.0


@dataclass(frozen=True)
class Explanation:
    """Why a query is, or is not, answered with facts. Printed, it is a table.

    Attributes:
        query: What was asked.
        threshold: What a score must exceed.
        candidates: The nearest facts, best first, those among them that may not be used too.
        note: Why there are none.
    """

    query: str
    threshold: float
    candidates: tuple[Candidate, ...]
    note: str = "no facts"

    def __str__(self) -> str:
        lines = [f"{self.query}\n  threshold {self.threshold:.2f}"]
        for candidate in self.candidates:
            mark = "*" if candidate.fired else " "
            fact = candidate.fact
            estimate = f"{candidate.score:9.2f} {candidate.probability:4.0%}"
            lines.append(f"{mark} {estimate}  fact {fact.id}: {fact.statement} ({candidate.reason})")
        return "\n".join(lines if self.candidates else [*lines, f"  {self.note}"])


@dataclass
class RecipeCausalLMOutput(CausalLMOutputWithPast):
    """The base's output for a batch, with what was looked up for each row.

    Attributes:
        retrievals: One for each row.
    """

    retrievals: list[Retrieval] | None = None

    @property
    def last_hidden_state(self) -> NoReturn:
        """Not there: trainers that ask for it have kept the labels to themselves, and with them where a query ends.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            "RecipeForCausalLM has no last_hidden_state: a trainer that makes the loss of it by itself, such as TRL's "
            "SFTTrainer, hides the labels, and so where the query ends. Use transformers.Trainer, whose loss is the "
            "model's own, or training/train.py."
        )
