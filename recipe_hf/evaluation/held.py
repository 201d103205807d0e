"""The facts that an evaluation holds: all at once, or each alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..datasets import EditExample
from ..knowledge import KnowledgeBase
from ..knowledge.facts import compose_statement
from ..modeling.outputs import Retrieval
from ..modeling.weights import deterministic

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM


def encode_queries(model: RecipeForCausalLM, queries: Sequence[str]) -> Tensor:
    """Representations of queries, `[len(queries), knowledge_dim]`."""
    with torch.no_grad(), deterministic(model.retriever):
        return model.retriever.encode_queries(queries).float()


@contextmanager
def remembering(model: RecipeForCausalLM, queries: int) -> Iterator[None]:
    """Lets the model remember so many queries: none where it is timed, all where they are asked with other facts."""
    own, model.query_cache_size = model.query_cache_size, queries
    try:
        yield
    finally:
        model.query_cache_size = own


@contextmanager
def hold(
    model: RecipeForCausalLM, facts: Sequence[EditExample], as_statements: bool = False, alone: bool = False
) -> Iterator[Held]:
    """Adds facts to an empty knowledge base of the model, which has its own again afterwards.

    Args:
        model: The model.
        facts: The facts.
        as_statements: Whether they are told as whole statements, without their answers apart.
        alone: Whether each is the only one for the questions about it.
    """
    own, model.knowledge = model.knowledge, KnowledgeBase(model.config.knowledge_dim)
    try:
        yield Held(model, facts, as_statements, alone)
    finally:
        model.knowledge = own


class Held:
    """Facts in the model's knowledge base; those held alone have a namespace each.

    Attributes:
        ids: Their ids; of those held alone their positions.
    """

    def __init__(
        self, model: RecipeForCausalLM, facts: Sequence[EditExample], as_statements: bool, alone: bool
    ) -> None:
        self.model = model
        self.alone = alone
        told: list[Any] = [(e.prompt, e.answer) for e in facts]
        told = [compose_statement(*fact) for fact in told] if as_statements else told
        if alone:
            self.ids = list(range(len(facts)))
            for position, fact in enumerate(told):
                model.add_knowledge([fact], namespace=str(position))
        else:
            self.ids = model.add_knowledge(told) if told else []

    def retrieve(self, queries: Sequence[str], about: Sequence[int]) -> list[Retrieval]:
        """Looks up queries, each of which is about the fact at a position among those added."""
        if not self.alone:
            return self.model.retrieve(queries)
        found = [self.model.retrieve(query, namespace=str(at))[0] for query, at in zip(queries, about, strict=True)]
        return [hit if hit.id is None else replace(hit, id=at) for hit, at in zip(found, about, strict=True)]

    def continuous_prompts(self, facts: Sequence[tuple[int, str | None]]) -> tuple[Tensor, Tensor]:
        """Continuous prompts of facts, each by its id, with what it answers if that is known, and their mask."""
        knowledge = self.model.knowledge
        if self.alone:
            keys = torch.cat([knowledge.namespace(str(position)).keys([0]) for position, _ in facts])
        else:
            keys = knowledge.keys([number for number, _ in facts])
        return self.model.continuous_prompts(keys, [answer for _, answer in facts])

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
