"""What retrieval and forward give back."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.modeling_outputs import CausalLMOutputWithPast

from .facts import Fact


@dataclass(frozen=True)
class Retrieval:
    """What was found for one query, and whether it is used (paper eq. 9).

    Attributes:
        id: Id of the fact with the closest key; None if there are no facts, or the query is empty.
        statement: Its statement.
        score: Scaled dot product of query and key, `scale * r_q . r_k`; -inf without a fact.
        threshold: That of query and knowledge sentinel, `scale * r_q . r_sentinel`.
        fired: Whether the fact is used: `score > threshold`.
        others: The further facts used beside it, next best first, where `config.top_k_facts` allows them.
    """

    id: int | None
    statement: str | None
    score: float
    threshold: float
    fired: bool
    others: tuple[Retrieval, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A fact that is close to a query, and what becomes of it.

    Attributes:
        fact: The fact.
        score: Scaled dot product of query and key.
        fired: Whether it is used.
        reason: Why, or why not.
    """

    fact: Fact
    score: float
    fired: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Why a query is, or is not, answered with facts. Printed, it is a table.

    Attributes:
        query: What was asked.
        threshold: What a score must exceed.
        candidates: The nearest facts, best first, those among them that may not be used too.
    """

    query: str
    threshold: float
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        lines = [f"{self.query}\n  threshold {self.threshold:.2f}"]
        for candidate in self.candidates:
            mark = "*" if candidate.fired else " "
            fact = candidate.fact
            lines.append(f"{mark} {candidate.score:9.2f}  fact {fact.id}: {fact.statement} ({candidate.reason})")
        return "\n".join(lines if self.candidates else [*lines, "  no facts"])


@dataclass
class RecipeCausalLMOutput(CausalLMOutputWithPast):
    """The base's output for a batch, with what was looked up for each row.

    Attributes:
        retrievals: One for each row.
    """

    retrievals: list[Retrieval] | None = None
