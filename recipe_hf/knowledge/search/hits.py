"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..facts import Fact

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Hits:
    """The best facts for each of `b` queries, read in one step.

    Attributes:
        ids: `[b, k]`, int64, best first; -1 where the knowledge base has fewer than `k` facts.
        scores: `[b, k]`, float32, dot products of query and key; -inf beside an id of -1.
        keys: `[b, k, dim]`, float32; 0 beside an id of -1.
        facts: `b` lists of `k` facts; None beside an id of -1.
    """

    ids: Tensor
    scores: Tensor
    keys: Tensor
    facts: list[list[Fact | None]]
