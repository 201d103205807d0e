"""WilKE: ROME at the layer that each fact fits best (Hu et al., Findings of ACL 2024, arXiv 2402.10987)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ...datasets import EditExample
from .memory.layers import Layer
from .memory.moments import KeyText
from .memory.values import ValueSearch
from .rome import CONTEXTS, Rome

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: Share of the layers that are scanned, from the lowest: that of GPT-2 XL in the authors' settings (24 of 48).
_SCANNED = 0.5


class Wilke(Rome):
    """Writes each fact, as ROME does, to the layer whose pattern it matches: where the least change of weights does.

    A layer that does not detect the pattern of a fact has a small key for it, and needs a large change. For each of
    the lower layers l the change D_l of ROME is made, and the one with the least

        |D_l|_F / |W_l|_F

    is written: the authors' code so measures the degree of the match, which the paper estimates from the norms of the
    value's change, of the key and of the weights.

    Published: those of ROME, and half of the layers to scan. It costs as many times ROME as layers are scanned.

    Args:
        model: The model.
        num_scanned: How many layers are scanned, from the lowest; by default half of them.
        text: Whose keys are to be disturbed as little as possible.
        search: How values are found.
        contexts: Pairs of a length in tokens and how many texts of it.

    Raises:
        ValueError: If `num_scanned` is not among the numbers of layers.
    """

    def __init__(
        self,
        model: RecipeForCausalLM,
        num_scanned: int | None = None,
        text: KeyText | None = None,
        search: ValueSearch = ValueSearch(),  # noqa: B008
        contexts: Sequence[tuple[int, int]] = CONTEXTS,
    ) -> None:
        super().__init__(model, 0, text, search, contexts)
        number = max(1, round(_SCANNED * len(self.layers))) if num_scanned is None else num_scanned
        if not 1 <= number <= len(self.layers):
            raise ValueError(f"num_scanned must be between 1 and {len(self.layers)}, got {number}.")
        self.scanned = self.layers[:number]
        #: How many facts went to each layer.
        self.chosen = [0] * number
        del self.settings["layer"]
        self.settings |= {"layers scanned": number, "facts by layer": self.chosen}

    def written(self) -> list[Layer]:
        return self.scanned

    def edit(self, facts: Sequence[EditExample]) -> None:
        self.begin(facts)
        for fact in facts:
            changes = [self.rank_one(layer, fact) for layer in self.scanned]
            degrees = [
                left.norm() * right.norm() / layer.weight().float().norm()
                for layer, (left, right) in zip(self.scanned, changes, strict=True)
            ]
            best = int(torch.stack(degrees).argmin())
            self.saved.keep([self.scanned[best]])
            self.scanned[best].add(torch.outer(*changes[best]))
            self.chosen[best] += 1
