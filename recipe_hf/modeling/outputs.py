"""What retrieval and forward give back."""

from __future__ import annotations

from dataclasses import dataclass

from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass(frozen=True)
class Retrieval:
    """What was found for one query, and whether it is used (paper eq. 9).

    Attributes:
        id: Id of the fact with the closest key; None if there are no facts, or the query is empty.
        statement: Its statement.
        score: Scaled dot product of query and key, `scale * r_q . r_k`; -inf without a fact.
        threshold: That of query and knowledge sentinel, `scale * r_q . r_sentinel`.
        fired: Whether the fact is used: `score > threshold`.
    """

    id: int | None
    statement: str | None
    score: float
    threshold: float
    fired: bool


@dataclass
class RecipeCausalLMOutput(CausalLMOutputWithPast):
    """The base's output for a batch, with what was looked up for each row.

    Attributes:
        retrievals: One for each row.
    """

    retrievals: list[Retrieval] | None = None
