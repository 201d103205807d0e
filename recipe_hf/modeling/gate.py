"""The gate: which of the facts nearest to a query are used for it (paper eq. 9; beyond the paper, a verifier)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import timestamps
from .configuration import RecipeConfig
from .facts import Fact
from .outputs import Retrieval, probability_of
from .query_cache import QueryCache
from .retriever import Retriever
from .verifier import Verifier, answer_in
from .weights import deterministic

# Of facts affirmed with logits as close as this, the newest is used: they answer the same, and the last one counts.
_EQUALLY_AFFIRMED = 1.0


@dataclass(frozen=True, eq=False)
class Near:
    """A fact that is near a query, and what the gate makes of it.

    Attributes:
        fact: The fact.
        score: Scaled dot product of query and key.
        key: Its key, `[knowledge_dim]`.
        fired: Whether the gate lets it through.
        probability: How likely the query asks for it.
        logit: That of this probability, where the verifier read the fact; None for others.
        answer: What it answers, if that is known: as it was told, or else as the verifier finds it in the statement.
    """

    fact: Fact
    score: float
    key: Tensor
    fired: bool = False
    probability: float = 0.0
    logit: float | None = None
    answer: str | None = None

    def retrieval(self, threshold: float) -> Retrieval:
        """What is told of it."""
        fact, answer = self.fact, self.answer
        return Retrieval(fact.id, fact.statement, self.score, threshold, self.fired, self.probability, answer=answer)


@dataclass(frozen=True, eq=False)
class Asked:
    """A query, its threshold, and the facts nearest to it, best first."""

    query: str
    threshold: float
    near: Sequence[Near]


def decide(
    asked: Sequence[Asked],
    config: RecipeConfig,
    retriever: Retriever,
    verifier: Verifier | None,
    readings: QueryCache,
    cache_size: int,
) -> list[list[Near]]:
    """For each query its facts with what the gate makes of them, those let through first.

    Without a verifier, a fact is let through if its score exceeds the threshold (eq. 9). With one, the
    `config.num_verified_facts` nearest whose score is at most `config.verifier_margin` below the threshold, and
    `config.verifier_gap` below the best, are read together with the query, all in one call, and those let through that
    it affirms, the most probable first. Of several that are as probable the newest is first.

    Args:
        asked: What was looked up.
        config: The model's.
        retriever: The retriever, whose tokenizer and word embeddings the verifier shares.
        verifier: The verifier, if there is one.
        readings: What the verifier has read already.
        cache_size: How many of its readings to keep.
    """
    decided = [[_by_threshold(near, query.threshold, config) for near in query.near] for query in asked]
    if verifier is None:
        return decided
    open_ = [
        (row, rank)
        for row, query in enumerate(asked)
        for rank, near in enumerate(query.near[: config.num_verified_facts])
        if _is_read(near.score, query.near[0].score, query.threshold, config)
    ]
    if open_:
        pairs = [(asked[row].query, decided[row][rank].fact.statement) for row, rank in open_]
        texts = ["\0".join(pair) for pair in pairs]
        pair_of = dict(zip(texts, pairs, strict=True))
        with deterministic(verifier):
            found = readings.encode(
                texts, lambda new: verifier.read(retriever, [pair_of[text] for text in new]), cache_size
            )
        margins = torch.tensor([decided[row][rank].score - asked[row].threshold for row, rank in open_])
        logits = verifier.calibrated(found[:, 0], margins)
        rows = zip(open_, logits.tolist(), logits.sigmoid().tolist(), found[:, 1:].long().tolist(), strict=True)
        for (row, rank), logit, probability, span in rows:
            near = decided[row][rank]
            answer = near.answer
            if answer is None and logit > 0:
                answer = answer_in(retriever, near.fact.statement, *span)
            decided[row][rank] = replace(near, fired=logit > 0, probability=probability, logit=logit, answer=answer)
    return [_in_order([near if near.logit is not None else replace(near, fired=False) for near in r]) for r in decided]


def _is_read(score: float, best: float, threshold: float, config: RecipeConfig) -> bool:
    """Whether the verifier reads a fact of this score."""
    near_best = config.verifier_gap is None or score >= best - config.verifier_gap
    return near_best and score > threshold - config.verifier_margin


def _by_threshold(near: Near, threshold: float, config: RecipeConfig) -> Near:
    margin = near.score - threshold
    probability = probability_of(margin, config.similarity_temperature)
    return replace(near, fired=margin > 0, probability=probability, answer=near.fact.answer)


def _in_order(found: list[Near]) -> list[Near]:
    """The facts let through before the others, the most probable first, the newest of those that are as probable."""
    fired = sorted((near for near in found if near.fired), key=lambda near: -(near.logit or 0.0))
    if fired:
        least = (fired[0].logit or 0.0) - _EQUALLY_AFFIRMED
        equal = [near for near in fired if (near.logit or 0.0) >= least]
        newest = max(equal, key=lambda near: (near.fact.begin, near.fact.id))
        fired = [newest, *(near for near in fired if near is not newest)]
    return fired + [near for near in found if not near.fired]


def why_not_usable(fact: Fact, where: Mapping[str, Any] | None) -> str | None:
    """Why a fact is not used, whatever is asked; None if it may be."""
    now = timestamps.now()
    if fact.valid_from is not None and now < fact.valid_from:
        return f"not used: valid from {fact.valid_from}"
    if not fact.is_valid_at(now):
        return f"not used: valid until {fact.valid_until}"
    if not fact.has(where or {}):
        return f"not used: its metadata are not those of where, {dict(where or {})}"
    return None
