"""ROME: a fact as a key and a value of one MLP (Meng et al., NeurIPS 2022, arXiv 2202.05262)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...datasets import EditExample
from .memory.editor import MemoryEditor
from .memory.layers import Layer
from .memory.moments import KeyText
from .memory.values import ValueSearch, fact_lookups, find_value, read_at

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: Ten texts of 5 tokens and ten of 10, of which the mean key is taken (ROME, section 3.1 and the authors' settings).
CONTEXTS = ((5, 10), (10, 10))


class Rome(MemoryEditor):
    """Changes the last map of one MLP by rank one, so that the key of a subject gives the value of its new fact.

    The key k* is the mean of the MLP's hidden activation at the subject's last token over contexts (eq. 3), the value
    v* what has the model say the answer there (eq. 4). With C the second moment of keys, the change that disturbs
    other keys the least, in the sense of |W K - V|, is (eq. 2)

        W' = W + L (C^-1 k*)^T,   L = (v* - W k*) / (C^-1 k*)^T k*.

    Facts are written one after the other, each into the weights that the ones before it left. k* is the same in both
    places of eq. 2, as the paper has it; in the authors' code the denominator has the key without context, by which
    single edits can break a model (arXiv 2403.07175).

    Published: steps, rates and factors of the search for v*, and contexts. Chosen here: the number of traced facts and
    of counted keys, and the ridge of C, to what a CPU does in minutes.

    Args:
        model: The model.
        layer: The layer to write to; by default the one that causal tracing shows.
        text: Whose keys are to be disturbed as little as possible.
        search: How v* is found.
        contexts: Pairs of a length in tokens and how many texts of it.
    """

    facts_at_once = 1

    def __init__(
        self,
        model: RecipeForCausalLM,
        layer: int | None = None,
        text: KeyText | None = None,
        search: ValueSearch = ValueSearch(),  # noqa: B008
        contexts: Sequence[tuple[int, int]] = CONTEXTS,
    ) -> None:
        super().__init__(model, search, contexts, layer, text)

    def written(self) -> list[Layer]:
        assert self.layer is not None
        return [self.layers[self.layer]]

    def edit(self, facts: Sequence[EditExample]) -> None:
        (layer,) = self.begin(facts)
        self.saved.keep([layer])
        for fact in facts:
            left, right = self.rank_one(layer, fact)
            layer.add(torch.outer(left, right))

    def rank_one(self, layer: Layer, fact: EditExample) -> tuple[Tensor, Tensor]:
        """The change that writes a fact to a layer: L `[d_llm]` and C^-1 k* `[d_key]`, whose outer product it is."""
        (moments,) = self.moments.get([layer.number])
        read = read_at(self.lm, fact_lookups(self.tokenizer, fact, self.contexts), [layer], [])
        key, before = read["key", layer.number].mean(0), read["value", layer.number].mean(0)
        value, loss = find_value(self.lm, layer.down, self.tokenizer, fact, self.contexts, self.search)
        self.settings["last loss"] = round(loss, 4)
        right = moments.solve(key[:, None])[:, 0]
        return (value - before) / (right @ key), right
