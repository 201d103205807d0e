"""MEMIT: many facts at once, spread over several MLPs (Meng et al., ICLR 2023, arXiv 2210.07229)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...datasets import EditExample
from .memory.editor import MemoryEditor
from .memory.layers import Layer
from .memory.moments import KeyText
from .memory.stream import to_values
from .memory.values import ValueSearch, fact_lookups, find_value, read_at

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: Five texts of 10 tokens (authors' code).
CONTEXTS = ((10, 5),)
#: The authors' settings for GPT-J.
SEARCH = ValueSearch(steps=25, clamp=0.75)


class Memit(MemoryEditor):
    """Changes the last maps of the MLPs of several layers, so that the subjects of all facts give their values.

    For each fact, z is what the residual stream must be at the subject's last token at the last of these layers, L,
    for the fact to be said (eq. 16). Layer by layer, from the lowest l to L, what is still missing is spread over the
    layers that are left (eq. 20), and the least squares of old and new keys solved (eq. 14, 19):

        R = (z - h_L) / (L - l + 1),   D = R K^T (C_0 + K K^T)^-1,   C_0 = lambda E[k k^T],

    where K has for each fact the mean key over contexts, read anew after the layers below have changed.

    Published: the search for z, contexts, and lambda = 15,000 for GPT-J. As k^T C^-1 k is on average the width of a
    key, 16,384 there, lambda is in these widths here. Chosen here: five layers, the traced one in their middle (the
    authors name 3 to 8 for GPT-J, whose layer in ROME is 5). Where an MLP's output is scaled or normalised before it
    is added to the stream (Granite; Gemma 2 and 3, OLMo 2), R is what by that makes the stream get its share, or comes
    nearest to it (see `to_values`).

    Args:
        model: The model.
        layer: The layer in the middle; by default the one that causal tracing shows.
        text: Whose keys are to be disturbed as little as possible.
        num_layers: How many layers are written to; fewer where there are no more.
        preserve: lambda in widths of a key: how much the keys of `text` weigh beside those of facts.
        search: How z is found.
        contexts: Pairs of a length in tokens and how many texts of it.

    Raises:
        ValueError: If `num_layers` or `preserve` is not above 0.
    """

    def __init__(
        self,
        model: RecipeForCausalLM,
        layer: int | None = None,
        text: KeyText | None = None,
        num_layers: int = 5,
        preserve: float = 15_000 / 16_384,
        search: ValueSearch = SEARCH,
        contexts: Sequence[tuple[int, int]] = CONTEXTS,
    ) -> None:
        for name, value in (("num_layers", num_layers), ("preserve", preserve)):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        super().__init__(model, search, contexts, layer, text)
        self.num_layers = num_layers
        self.preserve = preserve

    def written(self) -> list[Layer]:
        # Behind the last layer of the model, no token reads another.
        assert self.layer is not None
        end = max(1, len(self.layers) - 1)
        first = max(0, min(self.layer - self.num_layers // 2, end - self.num_layers))
        return self.layers[first : min(first + self.num_layers, end)]

    def edit(self, facts: Sequence[EditExample]) -> None:
        layers = self.begin(facts)
        self.settings["layers"] = [layer.number for layer in layers]
        last = layers[-1]
        targets, losses = zip(
            *(find_value(self.lm, last.module, self.tokenizer, fact, self.contexts, self.search) for fact in facts),
            strict=True,
        )
        self.settings["mean last loss"] = round(sum(losses) / len(losses), 4)
        self.saved.keep(layers)
        bare = [fact_lookups(self.tokenizer, fact, [""])[0] for fact in facts]
        for layer in layers:
            keys = self.keys(layer, facts)
            missing = torch.stack(targets) - read_at(self.lm, bare, [], [last])["state", last.number]
            residual = to_values(self.lm, layer, bare, missing / (1 + last.number - layer.number))
            layer.add(self.change(layer, keys.T, residual.T))

    def keys(self, layer: Layer, facts: Sequence[EditExample]) -> Tensor:
        """For each fact, its mean key over contexts, `[n, d_key]`."""
        lookups = [lookup for fact in facts for lookup in fact_lookups(self.tokenizer, fact, self.contexts)]
        keys = read_at(self.lm, lookups, [layer], [])["key", layer.number]
        return keys.unflatten(0, (len(facts), -1)).mean(1)

    def change(self, layer: Layer, keys: Tensor, residual: Tensor) -> Tensor:
        """D for keys `[d_key, n]` and what is to be added to their values, `[d_llm, n]`."""
        (moments,) = self.moments.get([layer.number])
        # (C_0 + K K^T)^-1 K = C_0^-1 K (I + K^T C_0^-1 K)^-1: a system of facts, not of channels.
        old = moments.solve(keys.double()) / (self.preserve * len(keys))
        system = torch.eye(keys.shape[1]).to(old) + keys.double().T @ old
        return (residual.double() @ torch.linalg.solve(system, old.T)).float()
