"""Encoding: keys of statements and representations of queries, by the weights as they are now."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..knowledge import KnowledgeBase
from ..knowledge.checks import check_positive
from ..knowledge.facts import NewFact
from .query_cache import QueryCache
from .retriever import Retriever
from .verifier import Verifier
from .weights import deterministic, key_fingerprint, weight_versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Encoder:
    """The retriever as it was when last looked at.

    Attributes:
        versions: Those of its weights.
        fingerprint: Names the weights that make keys.
        sentinel: The sentinel's key, `[knowledge_dim]`.
        queries: Representations that these weights made.
        readings: What the verifier read with them.
    """

    versions: tuple[Any, ...]
    fingerprint: str
    sentinel: Tensor
    queries: QueryCache
    readings: QueryCache


class EncodingMixin:
    """The part of [`RecipeForCausalLM`] that encodes: it needs the retriever, not the base."""

    config: Any
    retriever: Retriever
    verifier: Verifier | None
    # How many queries are remembered, to be encoded once; a change of the weights forgets them all.
    query_cache_size = 1024
    _current: Encoder | None = None

    @torch.no_grad()
    def _encode_queries(
        self, knowledge: KnowledgeBase, queries: list[str], batch_size: int = 64
    ) -> tuple[Tensor, Tensor]:
        """The queries' representations `[b, knowledge_dim]` and thresholds `[b]`, for keys that are up to date."""
        encoder = self._refresh(knowledge)
        with deterministic(self.retriever):
            encoded = encoder.queries.encode(
                queries, lambda texts: self.encode_queries(texts, batch_size), self.query_cache_size
            )
            return encoded, encoded @ encoder.sentinel * self.config.scale

    @torch.inference_mode(False)
    def encode_queries(self, queries: Sequence[str], batch_size: int = 64) -> Tensor:
        """Representations `[len(queries), knowledge_dim]` of queries (eq. 8), by the present weights, in float32."""
        check_positive("batch_size", batch_size)
        with torch.no_grad(), deterministic(self.retriever):
            return self.retriever.encode_queries(queries, batch_size).float()

    @torch.inference_mode(False)
    def encode_statements(self, statements: Sequence[str], batch_size: int = 64) -> Tensor:
        """Keys `[len(statements), knowledge_dim]` of statements (eq. 6), by the present weights, in float32."""
        check_positive("batch_size", batch_size)
        with torch.no_grad(), deterministic(self.retriever):
            return self.retriever.encode_statements(statements, batch_size).float()

    def _check_lengths(self, facts: Mapping[str, NewFact]) -> None:
        if self.retriever.tokenizer is None:
            raise RuntimeError("The retriever has no tokenizer: load the model with from_pretrained.")
        encoded = self.retriever.tokenizer([fact.statement for fact in facts.values()], verbose=False)["input_ids"]
        for (place, fact), ids in zip(facts.items(), encoded, strict=True):
            if len(ids) > self.retriever.max_length:
                raise ValueError(
                    f"{place} must be at most the encoder's {self.retriever.max_length} tokens, got "
                    f"{len(ids)} in {fact.statement[:60]!r}...; truncation=True would cut it."
                )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _refresh(self, knowledge: KnowledgeBase) -> Encoder:
        """Brings the stored keys in step with the weights, and says what these are.

        Versions of the weights say whether anything was written; only then a hash says whether it changed the keys.
        """
        of_verifier = () if self.verifier is None else weight_versions(self.verifier)
        versions = (self.retriever.tokenizer, *weight_versions(self.retriever), of_verifier)
        current = self._current
        if current is None or current.versions != versions:
            fingerprint = key_fingerprint(self.retriever)
            with deterministic(self.retriever):
                sentinel = self.retriever.encode_sentinel().float()
            current = self._current = Encoder(versions, fingerprint, sentinel, QueryCache(), QueryCache())
        found = current.fingerprint
        while len(knowledge) and knowledge.encoder_fingerprint != found:
            facts = list(knowledge)
            logger.info(f"The weights changed: encoding the statements of {len(facts)} facts again.")
            ids = [fact.id for fact in facts]
            keys = self.encode_statements([fact.statement for fact in facts])
            try:
                knowledge.replace_keys(keys, found, ids)
            except PermissionError as error:
                raise PermissionError(
                    f"The keys of {knowledge!r} were made by other weights than the model's, and it is read only: "
                    f"open it once to be written (read_only=False), so that they are made anew."
                ) from error
            except ValueError:
                if ids == [fact.id for fact in knowledge]:
                    raise
        return current
