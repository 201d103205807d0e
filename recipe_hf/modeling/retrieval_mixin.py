"""`retrieve` and `explain`: which fact a prompt asks for, and why no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..knowledge import KnowledgeBase
from ..knowledge.checks import check_namespace, check_positive, checked_where
from ..knowledge.facts import Fact
from .encoding import EncodingMixin
from .gate import Asked, Near, Reader, decide, why_not_usable
from .legibility import legible_queries, why_not_asked, withheld
from .outputs import Candidate, Explanation, Retrieval
from .queries import check_queries

# How many more facts are looked up for a query with words that the encoder does not know: as many may seem its answer.
_ALIKE = 32


class RetrievalMixin(EncodingMixin):
    """The part of [`RecipeForCausalLM`] that looks facts up: it needs the retriever, not the base."""

    _knowledge: KnowledgeBase

    @property
    def knowledge(self) -> KnowledgeBase:
        """The facts. Assign another knowledge base to swap them; its keys are made anew if other weights made them."""
        return self._knowledge

    @knowledge.setter
    def knowledge(self, knowledge: KnowledgeBase) -> None:
        width = self.config.knowledge_dim
        if not isinstance(knowledge, KnowledgeBase) or knowledge.dim not in (None, width):
            got = f"one of width {knowledge.dim}" if isinstance(knowledge, KnowledgeBase) else type(knowledge).__name__
            raise ValueError(f"knowledge must be a KnowledgeBase of width {width}, got {got}.")
        self._knowledge = knowledge

    def retrieve(
        self,
        queries: str | Sequence[str],
        batch_size: int = 64,
        *,
        where: Mapping[str, Any] | None = None,
        namespace: str | None = None,
    ) -> list[Retrieval]:
        """Looks queries up: for each the closest fact, and whether it is closer than the sentinel (eq. 8 and 9).

        Args:
            queries: The texts to look up. An empty one, or one of words that the encoder does not know, finds nothing.
            batch_size: How many to encode at once.
            where: Values that the metadata of a fact must have, all of them, for it to be found.
            namespace: Whose facts to look among; those of `knowledge` by default.

        Raises:
            ValueError: If `queries` are not strings, or another argument is not as described.
        """
        return self._look_up(check_queries(queries), batch_size, where, namespace)[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _look_up(
        self,
        queries: list[str],
        batch_size: int = 64,
        where: Mapping[str, Any] | None = None,
        namespace: str | None = None,
    ) -> tuple[list[Retrieval], Tensor]:
        """Retrievals, and the keys `[len(queries), k, knowledge_dim]` of each query's best facts."""
        check_positive("batch_size", batch_size)
        self._check_filters(where, namespace)
        k = self.config.top_k_facts
        nothing = Retrieval(None, None, -torch.inf, 0.0, False)
        retrievals = [nothing] * len(queries)
        keys = torch.zeros(len(queries), k, self.config.knowledge_dim)
        legible = legible_queries(self.retriever, queries)
        if not legible:
            return retrievals, keys
        knowledge = self._knowledge_of(namespace)
        encoded, thresholds = self._encode_queries(knowledge, [queries[row] for row in legible], batch_size)
        hits = knowledge.lookup(encoded, self._num_near + _ALIKE * any(legible.values()), where)
        asked = [
            Asked(queries[row], threshold, self._usable(unknown, threshold, *near))
            for (row, unknown), threshold, *near in zip(
                legible.items(), thresholds.tolist(), hits.facts, hits.scores, hits.keys, strict=True
            )
        ]
        for row, query, decided in zip(legible, asked, self._decide(asked), strict=True):
            found = [near.retrieval(query.threshold) for near in decided[:k]]
            best, *others = found or [replace(nothing, threshold=query.threshold)]
            retrievals[row] = replace(best, others=tuple(other for other in others if other.fired))
            for rank, near in enumerate(decided[:k]):
                keys[row, rank] = near.key
        return retrievals, keys

    def look_up(
        self, queries: list[str], wheres: Sequence[Mapping[str, Any] | None], namespaces: Sequence[str | None]
    ) -> tuple[list[Retrieval], Tensor]:
        """As `retrieve`, each query by a `where` and a namespace of its own; also the keys `[n, k, knowledge_dim]`."""
        together: dict[Any, list[int]] = {}
        for row, (where, namespace) in enumerate(zip(wheres, namespaces, strict=True)):
            asked = None if where is None else json.dumps(checked_where(where), sort_keys=True)
            together.setdefault((asked, namespace), []).append(row)
        found: list[Any] = [None] * len(queries)
        for (_, namespace), rows in together.items():
            hits, keys = self._look_up([queries[row] for row in rows], where=wheres[rows[0]], namespace=namespace)
            for row, *hit in zip(rows, hits, keys, strict=True):
                found[row] = hit
        retrievals, all_keys = zip(*found, strict=True)
        return list(retrievals), torch.stack(all_keys)

    @torch.inference_mode(False)
    @torch.no_grad()
    def explain(
        self, query: str, k: int = 5, *, where: Mapping[str, Any] | None = None, namespace: str | None = None
    ) -> Explanation:
        """Says which facts are nearest to a query, which of them are used for it, and why the others are not.

        Args:
            query: The text to look up.
            k: How many facts to name, beside those that are used.
            where: As in `retrieve`. Nearer facts that it leaves out are named too, as are those not valid now.
            namespace: As in `retrieve`.

        Raises:
            ValueError: If an argument is not as described.
        """
        (query,) = check_queries(query, 1)
        check_positive("k", k)
        self._check_filters(where, namespace)
        legible = legible_queries(self.retriever, [query])
        if not legible:
            return Explanation(query, 0.0, (), why_not_asked(self.retriever, query))
        knowledge = self._knowledge_of(namespace)
        encoded, thresholds = self._encode_queries(knowledge, [query])
        threshold = thresholds.item()
        nearest = knowledge.lookup(encoded, k, valid_only=False)
        hits = knowledge.lookup(encoded, self._num_near + _ALIKE * any(legible.values()), where)
        usable = self._usable(legible[0], threshold, hits.facts[0], hits.scores[0], hits.keys[0])
        ids = {near.fact.id for near in usable}
        every = self._near(nearest.facts[0], nearest.scores[0], nearest.keys[0])
        others = [near for near in every if near.fact.id not in ids]
        (decided,) = self._decide([Asked(query, threshold, usable)])
        (apart,) = decide([Asked(query, threshold, others)], self.config, None)
        reads = any(near.logit is not None for near in decided)
        used = {near.fact.id for near in decided[: self.config.top_k_facts] if near.fired}
        not_told_apart = withheld(self.retriever, legible[0], [near.fact for near in every])
        shown = used | {near.fact.id for near in every}
        candidates = [
            Candidate(
                near.fact,
                near.score,
                near.fact.id in used,
                "used" if near.fact.id in used else self._why_not(near, where, near.fact.id in not_told_apart, reads),
                near.probability,
            )
            for near in sorted([*decided, *apart], key=lambda near: (-near.score, near.fact.id))
            if near.fact.id in shown
        ]
        return Explanation(query, threshold, tuple(candidates))

    @torch.inference_mode(False)
    @torch.no_grad()
    def nearest(
        self, query: str, k: int = 5, *, where: Mapping[str, Any] | None = None, namespace: str | None = None
    ) -> list[tuple[Fact, float]]:
        """The facts nearest to a query with their scores, used or not, best first. Arguments are as in `retrieve`."""
        (query,) = check_queries(query, 1)
        self._check_filters(where, namespace)
        if not legible_queries(self.retriever, [query]):
            return []
        knowledge = self._knowledge_of(namespace)
        hits = knowledge.lookup(self._encode_queries(knowledge, [query])[0], k, where)
        return [(near.fact, near.score) for near in self._near(hits.facts[0], hits.scores[0], hits.keys[0])]

    @property
    def _num_near(self) -> int:
        """How many facts to look up for a query: those that may be used, and those that the verifier reads."""
        return max(self.config.top_k_facts, self._num_read)

    @property
    def _num_read(self) -> int:
        """How many facts the verifier reads for a query at most; 0 where the threshold decides."""
        return 0 if self.verifier is None else self.config.num_verified_facts

    def _near(self, facts: Sequence[Fact | None], scores: Tensor, keys: Tensor) -> list[Near]:
        scaled = (scores * self.config.scale).tolist()
        hits = zip(facts, scaled, keys, strict=True)
        return [Near(fact, score, key) for fact, score, key in hits if fact is not None]

    def _usable(
        self, unknown: list[str], threshold: float, facts: Sequence[Fact | None], scores: Tensor, keys: Tensor
    ) -> list[Near]:
        """The nearest facts that may be used for a query with these unknown words."""
        near = self._near(facts, scores, keys)
        least = threshold - (self.config.verifier_margin if self._num_read else 0.0)
        not_told_apart = withheld(self.retriever, unknown, [each.fact for each in near if each.score > least])
        return [each for each in near if each.fact.id not in not_told_apart][: self._num_near]

    def _decide(self, asked: Sequence[Asked]) -> list[list[Near]]:
        encoder = self._current
        assert encoder is not None, "queries were encoded"
        size = self.query_cache_size
        reader = None
        if self.verifier is not None and self._num_read:
            reader = Reader(self.verifier, self.retriever, encoder.readings, size)
        return decide(asked, self.config, reader)

    def _why_not(self, near: Near, where: Mapping[str, Any] | None, is_withheld: bool, reads: bool) -> str:
        if reason := why_not_usable(near.fact, where):
            return reason
        if is_withheld and near.fired:
            return "not used: to the encoder, which does not know its words or the query's, it is as any other"
        if reads and near.logit is None:
            return "not used: too far below the best, or below the threshold, for the verifier to read it"
        if near.fired:
            before = "closer" if near.logit is None else "more probable, or newer"
            return f"not used: top_k_facts is {self.config.top_k_facts}, and as many are {before}"
        if near.logit is not None:
            return f"not used: the verifier takes it for the answer with {near.probability:.0%} only"
        return "not used: not above the threshold"

    def _knowledge_of(self, namespace: str | None) -> KnowledgeBase:
        return self.knowledge if namespace is None else self.knowledge.namespace(namespace)

    def _check_filters(self, where: Any, namespace: Any) -> None:
        """Checks what says which facts may be used, also where no query asks for one."""
        check_positive("config.top_k_facts", self.config.top_k_facts)
        if where is not None:
            checked_where(where)
        if namespace is not None:
            check_namespace(namespace)
