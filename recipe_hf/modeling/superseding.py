"""Superseding: which facts a newer one takes the place of, though it says so in other words (beyond the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..knowledge import KnowledgeBase, timestamps
from ..knowledge.facts import Fact, NewFact
from .configuration import RecipeConfig
from .retriever import Retriever
from .verifier import Verifier, as_update
from .weights import deterministic

# How many of the facts nearest to a new one are read.
NUM_READ = 8
# How many new facts are compared at once with those given before them.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class NewFacts:
    """New facts, and what they are near.

    Attributes:
        facts: The new facts.
        keys: Their keys, `[n, knowledge_dim]`.
        encoded: Their statements as queries, `[n, knowledge_dim]`.
        thresholds: The threshold of each of these, `[n]`.
        held: For each the facts held that are nearest to it, `n` lists of `k`.
        scores: The dot products of these, `[n, k]`.
    """

    facts: Sequence[NewFact]
    keys: Tensor
    encoded: Tensor
    thresholds: Tensor
    held: Sequence[Sequence[Fact | None]]
    scores: Tensor


@dataclass(frozen=True, eq=False)
class EncodedFacts:
    """New facts ready to be added, as [`KnowledgeBase.add`] takes them.

    Attributes:
        facts: The new facts.
        keys: Their keys, `[n, knowledge_dim]`.
        on_conflict: What to do with those that have the same prompt.
        fingerprint: Names the weights that made the keys.
        supersedes: For each those whose place it takes, though it says so in other words.
        reported: The same of those that stay, because they are to be named only.
    """

    facts: Sequence[NewFact]
    keys: Tensor
    on_conflict: Literal["replace", "keep", "error"]
    fingerprint: str
    supersedes: Sequence[Sequence[NewFact]]
    reported: Sequence[Sequence[NewFact]]

    def add_to(self, knowledge: KnowledgeBase) -> list[int]:
        """Adds them, all or none; gives their ids."""
        return knowledge.add(self.facts, self.keys, self.on_conflict, self.fingerprint, self.supersedes)


@torch.no_grad()
def find_superseded(
    new: NewFacts, config: RecipeConfig, retriever: Retriever, verifier: Verifier
) -> list[list[NewFact]]:
    """For each new fact the older ones whose place it takes, held or given before it, as if added one after the other.

    A new fact whose time has not come, or is over, takes no place; that of a fact about the same prompt is another
    matter.
    """
    near = list(_near(new, config))
    found: list[list[NewFact]] = [[] for _ in new.facts]
    if near:
        pairs = [(as_update(new.facts[position].statement), old.statement) for position, old in near]
        with deterministic(verifier):
            logits = verifier.read(retriever, pairs)[:, 0].tolist()
        for (position, old), logit in zip(near, logits, strict=True):
            if logit > config.supersede_threshold:
                found[position].append(old)
    return found


def _near(new: NewFacts, config: RecipeConfig) -> Iterator[tuple[int, NewFact]]:
    """Positions of new facts, and older facts near enough to be read together with them."""
    now = timestamps.now()
    valid = torch.tensor([fact.is_valid_at(now) for fact in new.facts], device=new.keys.device)
    for start in range(0, len(new.facts), _ROWS):
        among_new = new.encoded[start : start + _ROWS] @ new.keys[: start + _ROWS].T
        for position in range(start, min(start + _ROWS, len(new.facts))):
            fact, earlier = new.facts[position], among_new[position - start, :position]
            earlier = earlier.masked_fill(~valid[:position], -torch.inf)
            if not valid[position]:
                continue
            given = earlier.topk(min(NUM_READ, position))
            scored: list[tuple[float, NewFact | None]] = [
                *zip(new.scores[position].tolist(), new.held[position], strict=True),
                *((score, new.facts[at]) for score, at in zip(*map(Tensor.tolist, given), strict=True)),
            ]
            least = float(new.thresholds[position]) - config.verifier_margin
            for score, old in sorted(scored, key=lambda one: -one[0])[:NUM_READ]:
                if old is not None and score * config.scale > least and not old.conflicts_with(fact):
                    yield position, old
