"""The gate: which of the facts nearest to a query are used for it (paper eq. 9; beyond the paper, a verifier)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..knowledge import timestamps
from ..knowledge.facts import Fact
from .configuration import RecipeConfig
from .outputs import Retrieval, probability_of
from .query_cache import QueryCache
from .retriever import Retriever
from .verifier import MAX_QUERY_TOKENS, Verifier, answer_in, as_update
from .weights import deterministic


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


@dataclass(frozen=True, eq=False)
class Reader:
    """The verifier, with what it has read already.

    Attributes:
        verifier: The verifier.
        retriever: The retriever, whose tokenizer and word embeddings it shares.
        readings: What it has read.
        cache_size: How many of these to keep.
    """

    verifier: Verifier
    retriever: Retriever
    readings: QueryCache
    cache_size: int

    def takes(self, query: str) -> bool:
        """Whether a query is one line, of no more tokens than the verifier reads."""
        tokenizer: Any = self.retriever.tokenizer
        if "\n" in query.strip():
            return False
        return len(tokenizer(query, add_special_tokens=False, verbose=False)["input_ids"]) <= MAX_QUERY_TOKENS

    def read(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """What [`Verifier.read`] says of queries and statements, `[len(pairs), 3]`; what is new, in one call."""
        pair_of = {"\0".join(pair): pair for pair in pairs}

        def read_new(texts: list[str]) -> Tensor:
            return self.verifier.read(self.retriever, [pair_of[text] for text in texts])

        with deterministic(self.verifier):
            return self.readings.encode(["\0".join(pair) for pair in pairs], read_new, self.cache_size)


def decide(asked: Sequence[Asked], config: RecipeConfig, reader: Reader | None) -> list[list[Near]]:
    """For each query its facts with what the gate makes of them, those let through first.

    Without a verifier, a fact is let through if its score exceeds the threshold (eq. 9). With one, the
    `config.num_verified_facts` nearest whose score is at most `config.verifier_margin` below the threshold, and
    `config.verifier_gap` below the best, are read together with the query, all in one call, and those let through that
    it affirms, the most probable first; but before that one a newer one that takes its place. It was trained on no
    query of several lines, or of more tokens than it reads: there, the threshold decides.

    Args:
        asked: What was looked up.
        config: The model's.
        reader: The verifier, if there is one.
    """
    decided = [[_by_threshold(near, query.threshold, config) for near in query.near] for query in asked]
    if reader is None:
        return decided
    is_read = [reader.takes(query.query) for query in asked]
    open_ = [
        (row, rank)
        for row, query in enumerate(asked)
        if is_read[row]
        for rank, near in enumerate(query.near[: config.num_verified_facts])
        if _is_read(near.score, query.near[0].score, query.threshold, config)
    ]
    if open_:
        found = reader.read([(asked[row].query, decided[row][rank].fact.statement) for row, rank in open_])
        margins = torch.tensor([decided[row][rank].score - asked[row].threshold for row, rank in open_])
        logits = reader.verifier.calibrated(found[:, 0], margins)
        rows = zip(open_, logits.tolist(), logits.sigmoid().tolist(), found[:, 1:].long().tolist(), strict=True)
        for (row, rank), logit, probability, span in rows:
            near = decided[row][rank]
            answer = near.answer
            if answer is None and logit > 0:
                answer = answer_in(reader.retriever, near.fact.statement, *span)
            decided[row][rank] = replace(near, fired=logit > 0, probability=probability, logit=logit, answer=answer)
    fired = [sorted(_affirmed(row), key=lambda near: -near.logit) for row in decided]  # type: ignore[operator]
    _newest_first(fired, config, reader)
    return [_in_order(first, row) if reads else row for first, row, reads in zip(fired, decided, is_read, strict=True)]


def _in_order(first: Sequence[Near], row: Sequence[Near]) -> list[Near]:
    """The facts affirmed, then the others, of which none fires."""
    return [*first, *(replace(near, fired=False) for near in row if near not in first)]


def _affirmed(row: Sequence[Near]) -> list[Near]:
    return [near for near in row if near.logit is not None and near.fired]


def _newest_first(fired: list[list[Near]], config: RecipeConfig, reader: Reader) -> None:
    """Puts before each row's most probable fact the newest of those affirmed that takes its place."""
    newer = [
        (row, near) for row, affirmed in enumerate(fired) for near in affirmed[1:] if _age(near) > _age(affirmed[0])
    ]
    if not newer or config.supersede_threshold is None:
        return
    found = reader.read([(as_update(near.fact.statement), fired[row][0].fact.statement) for row, near in newer])
    taking = [
        one for one, logit in zip(newer, found[:, 0].tolist(), strict=True) if logit > config.supersede_threshold
    ]
    for row, near in sorted(taking, key=lambda one: _age(one[1])):
        fired[row].remove(near)
        fired[row].insert(0, near)


def _age(near: Near) -> tuple[str, int]:
    return near.fact.begin, near.fact.id


def _is_read(score: float, best: float, threshold: float, config: RecipeConfig) -> bool:
    """Whether the verifier reads a fact of this score."""
    near_best = config.verifier_gap is None or score >= best - config.verifier_gap
    return near_best and score > threshold - config.verifier_margin


def _by_threshold(near: Near, threshold: float, config: RecipeConfig) -> Near:
    margin = near.score - threshold
    probability = probability_of(margin, config.similarity_temperature)
    return replace(near, fired=margin > 0, probability=probability, answer=near.fact.answer)


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
