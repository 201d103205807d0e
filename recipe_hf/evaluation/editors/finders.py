"""Finders: what holds facts, and finds the one that a query asks for, for editors that look facts up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...datasets import EditExample
from ...knowledge import KnowledgeBase
from ...knowledge.facts import compose_statement
from ...modeling.frozen_base import loading
from ..inputs import digest, versions, weights_digest
from .editor import Found
from .thresholds import choose_threshold, questions_to_tune

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


class Hit(NamedTuple):
    """What was found for a query, and what the best fact says: its statement, and its answer if that is known."""

    found: Found
    statement: str
    answer: str | None


class Finder(ABC):
    """Holds facts, and finds the one that a query asks for."""

    threshold: float | None = None

    @abstractmethod
    def hold(self, facts: Sequence[EditExample]) -> None:
        """Takes facts in, beside those of earlier calls."""

    @abstractmethod
    def find(self, queries: Sequence[str]) -> list[Hit]:
        """For each query the best fact, and whether it is used."""

    @abstractmethod
    def keys(self, positions: Sequence[int]) -> Tensor:
        """Keys of facts, `[len(positions), dim]`."""

    @abstractmethod
    def release(self) -> None:
        """Lets go of all facts."""

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:  # noqa: B027
        """Chooses a threshold, if there is one to choose."""


class SentinelFinder(Finder):
    """RECIPE's retriever and gate (paper eq. 8 and 9), in a knowledge base that the model has meanwhile.

    Args:
        model: The model. It has its own knowledge again once the facts are let go.
        as_statements: Whether facts are told as whole statements, without their answers apart.
    """

    def __init__(self, model: RecipeForCausalLM, as_statements: bool = False) -> None:
        self.model = model
        self.as_statements = as_statements
        self._own: KnowledgeBase | None = None
        self._position: dict[int, int] = {}
        self._ids: list[int] = []

    def hold(self, facts: Sequence[EditExample]) -> None:
        if self._own is None:
            self._own, self.model.knowledge = self.model.knowledge, KnowledgeBase(self.model.config.knowledge_dim)
        told: list[Any] = [(fact.prompt, fact.answer) for fact in facts]
        told = [compose_statement(*fact) for fact in told] if self.as_statements else told
        self._ids += self.model.add_knowledge(told) if told else []
        self._position = {id_: position for position, id_ in enumerate(self._ids)}

    def find(self, queries: Sequence[str]) -> list[Hit]:
        hits = self.model.retrieve(queries)
        best = [None if hit.id is None else self._position[hit.id] for hit in hits]
        return [
            Hit(
                Found(position if hit.fired else None, position, hit.score, hit.threshold, hit.probability),
                hit.statement or "",
                hit.answer,
            )
            for position, hit in zip(best, hits, strict=True)
        ]

    def keys(self, positions: Sequence[int]) -> Tensor:
        return self.model.knowledge.keys([self._ids[position] for position in positions])

    def release(self) -> None:
        if self._own is not None:
            self.model.knowledge, self._own = self._own, None
        self._ids, self._position = [], {}


class ThresholdFinder(Finder):
    """The nearest fact by dot product, used if that exceeds one absolute threshold.

    Args:
        encode_statements: From statements to keys, `[n, dim]`.
        encode_queries: From queries to vectors, `[n, dim]`.
        threshold: The threshold; `tune` chooses one.
    """

    def __init__(
        self,
        encode_statements: Callable[[list[str]], Tensor],
        encode_queries: Callable[[list[str]], Tensor],
        threshold: float | None = None,
    ) -> None:
        self.encode_statements = encode_statements
        self.encode_queries = encode_queries
        self.threshold = threshold
        self._facts: list[EditExample] = []
        self._keys = torch.empty(0)

    def hold(self, facts: Sequence[EditExample]) -> None:
        keys = self.encode_statements([compose_statement(fact.prompt, fact.answer) for fact in facts])
        self._keys = torch.cat([self._keys.to(keys), keys]) if self._facts else keys
        self._facts += facts

    def find(self, queries: Sequence[str]) -> list[Hit]:
        if self.threshold is None:
            raise RuntimeError("The finder has no threshold: call tune.")
        hits = []
        for score, nearest in zip(*(found.tolist() for found in self._nearest(queries)), strict=True):
            used = nearest if score > self.threshold else None
            fact = self._facts[nearest]
            found = Found(used, nearest, score, self.threshold)
            hits.append(Hit(found, compose_statement(fact.prompt, fact.answer), fact.answer))
        return hits

    def keys(self, positions: Sequence[int]) -> Tensor:
        return self._keys[list(positions)]

    def release(self) -> None:
        self._facts, self._keys = [], torch.empty(0)

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        texts, own = questions_to_tune(facts, asked)
        self.hold(facts)
        scores, nearest = self._nearest(texts)
        self.release()
        is_right = torch.tensor([position == n for position, n in zip(own, nearest.tolist(), strict=True)])
        self.threshold = choose_threshold(scores, is_right)

    def _nearest(self, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        scores, nearest = (self.encode_queries(list(queries)) @ self._keys.T).max(1)
        return scores.cpu(), nearest.cpu()


def without_sentinel(model: RecipeForCausalLM) -> ThresholdFinder:
    """RECIPE's retriever with one absolute threshold in place of the sentinel (ablation of the paper's Table 4)."""
    scale = model.config.scale
    return ThresholdFinder(model.encode_statements, lambda texts: model.encode_queries(texts) * scale)


def sentence_transformer(name_or_path: str, threshold: float | None = None) -> ThresholdFinder:
    """A sentence-transformers model by cosine, as it comes."""
    from sentence_transformers import SentenceTransformer

    with loading(f"sentence_model={name_or_path!r} cannot be loaded"):
        encoder = SentenceTransformer(name_or_path)

    def encode(texts: list[str]) -> Tensor:
        return encoder.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)

    return ThresholdFinder(encode, encode, threshold)


def describe_sentence_transformer(name_or_path: str) -> dict[str, Any]:
    """What the vectors of a sentence-transformers model depend on, whatever it is called."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(name_or_path)
    return {
        "sentence_model_weights": weights_digest(encoder),
        "sentence_model_modules": digest([repr(encoder)]),
        "versions": versions("sentence-transformers"),
    }
