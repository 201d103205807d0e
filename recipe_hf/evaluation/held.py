"""The facts that an evaluation holds: all at once, or each alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..datasets import EditExample
from ..modeling.editing import deterministic
from ..modeling.facts import compose_statement
from ..modeling.knowledge import KnowledgeBase
from ..modeling.outputs import Retrieval

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

#: What a fact tells its continuous prompt: its statement, and its answer if that is told apart.
Told = tuple[str, str | None]


class Held(Protocol):
    """Facts that questions are looked up among."""

    ids: list[int]

    def retrieve(self, queries: Sequence[str], about: Sequence[int]) -> list[Retrieval]:
        """Looks up queries, each of which is about the fact at a position among those added."""

    def retrieve_encoded(self, encoded: Tensor, about: Sequence[int]) -> list[Retrieval]:
        """The same for what [`encode_queries`] gave."""

    def told(self, fact_id: int) -> Told:
        """What a fact tells its continuous prompt."""

    def continuous_prompts(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Continuous prompts of facts and their mask, as in [`RecipeForCausalLM.continuous_prompts`]."""


def encode_queries(model: RecipeForCausalLM, queries: Sequence[str]) -> Tensor:
    """Representations of queries, `[len(queries), knowledge_dim]`."""
    with torch.no_grad(), deterministic(model.retriever):
        return model.retriever.encode_queries(queries).float()


def _gated(
    model: RecipeForCausalLM, encoded: Tensor, ids: Sequence[int], statements: Sequence[str], scores: Tensor
) -> list[Retrieval]:
    """What the gate makes of the dot products of queries and their best keys (paper eq. 9).

    Raises:
        ValueError: If the model has a verifier, which would read the queries.
    """
    if model.verifier is not None:
        raise ValueError(
            "num_edits=1 and general prompts go by the retriever alone: load the model with verifier=False."
        )
    with deterministic(model.retriever):
        sentinel = model.retriever.encode_sentinel().float()
    scale, temperature = model.config.scale, model.config.similarity_temperature
    thresholds = (encoded @ sentinel * scale).tolist()
    rows = zip(ids, statements, (scores * scale).tolist(), thresholds, strict=True)
    return [Retrieval.gated(*row, temperature) for row in rows]


@contextmanager
def hold_together(
    model: RecipeForCausalLM, facts: Sequence[EditExample], as_statements: bool = False
) -> Iterator[HeldTogether]:
    """Adds facts to an empty knowledge base of the model, which has its own again afterwards."""
    own = model.knowledge
    model.knowledge = KnowledgeBase(model.config.knowledge_dim)
    try:
        yield HeldTogether(model, facts, as_statements)
    finally:
        model.knowledge = own


class HeldTogether:
    """Facts in the model's knowledge base."""

    def __init__(self, model: RecipeForCausalLM, facts: Sequence[EditExample], as_statements: bool) -> None:
        self.model = model
        told: list[Any] = [(e.prompt, e.answer) for e in facts]
        told = [compose_statement(*fact) for fact in told] if as_statements else told
        self.ids = model.add_knowledge(told) if told else []

    def retrieve(self, queries: Sequence[str], about: Sequence[int]) -> list[Retrieval]:
        return self.model.retrieve(queries)

    def retrieve_encoded(self, encoded: Tensor, about: Sequence[int]) -> list[Retrieval]:
        ids, scores = self.model.knowledge.search(encoded)
        found = ids[:, 0].tolist()
        return _gated(self.model, encoded, found, [self.told(i)[0] for i in found], scores[:, 0])

    def told(self, fact_id: int) -> Told:
        fact = self.model.knowledge[fact_id]
        return fact.statement, fact.answer

    def continuous_prompts(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.model.continuous_prompts(self.model.knowledge.keys(ids), [self.told(i)[1] for i in ids])

    def share_equal_after_removal(self, prompts: Sequence[str], batch_size: int) -> float:
        """Removes all facts: the share of prompts whose logits are then, bit for bit, those of the base alone."""
        model: Any = self.model
        model.remove_knowledge([fact.id for fact in model.knowledge])
        equal = 0
        for start in range(0, len(prompts), batch_size):
            ids = [model.tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + batch_size]]
            width = max(map(len, ids))
            batch = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
            kept = {"input_ids": batch, "attention_mask": mask, "logits_to_keep": 1, "use_cache": False}
            equal += int((model(**kept).logits == model.lm(**kept).logits).flatten(1).all(1).sum())
        return equal / len(prompts)


class HeldAlone:
    """Facts each of which is the only one for the questions about it. All are encoded once."""

    def __init__(self, model: RecipeForCausalLM, facts: Sequence[EditExample], as_statements: bool) -> None:
        self.model = model
        self.ids = list(range(len(facts)))
        self._told: list[Told] = [
            (compose_statement(e.prompt, e.answer), None if as_statements else e.answer) for e in facts
        ]
        with deterministic(model.retriever):
            self._keys = model.retriever.encode_statements([statement for statement, _ in self._told]).float()

    def retrieve(self, queries: Sequence[str], about: Sequence[int]) -> list[Retrieval]:
        return self.retrieve_encoded(encode_queries(self.model, queries), about)

    def retrieve_encoded(self, encoded: Tensor, about: Sequence[int]) -> list[Retrieval]:
        scores = (encoded * self._keys[list(about)]).sum(-1)
        return _gated(self.model, encoded, about, [self._told[i][0] for i in about], scores)

    def told(self, fact_id: int) -> Told:
        return self._told[fact_id]

    def continuous_prompts(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.model.continuous_prompts(self._keys[list(ids)], [self._told[i][1] for i in ids])
