"""AlphaEdit: MEMIT within the null space of the keys to preserve (Fang et al., ICLR 2025, arXiv 2410.02355)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...datasets import EditExample
from .memit import CONTEXTS, SEARCH, Memit
from .memory.layers import Layer
from .memory.moments import KeyText
from .memory.values import ValueSearch

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


class AlphaEdit(Memit):
    """Like MEMIT, but no change touches what the preserved keys read: D P = D, and D K_0 = 0.

    P projects onto the eigenvectors of the preserved keys' second moment whose eigenvalues are next to nothing (eq. 6
    to 8), so that in truth D K_0 is nearly 0. With K the keys of the facts at hand and K_p those of facts edited in
    before (eq. 14),

        D = R K^T P (K_p K_p^T P + K K^T P + a I)^-1.

    Published: the search for values, and 100 facts at a time. For the null space the authors take eigenvalues below
    0.02, and a = 10 (1 in eq. 14): both depend on how large keys are, which differs from model to model by orders of
    magnitude. Chosen here, as the authors recommend elsewhere, is a share of the keys' energy, the sum of the
    eigenvalues: the smallest that hold a fifth of it together are of the null space, which is what 0.02 comes to in
    SmolLM2-135M (some 1,220 of 1,536 directions). a is in units of the mean eigenvalue.

    Args:
        model: The model.
        layer: The layer in the middle; by default the one that causal tracing shows.
        text: Whose keys are preserved.
        num_layers: How many layers are written to.
        null_space: Share of the preserved keys' energy that the null space may have.
        ridge: a.
        search: How values are found.
        contexts: Pairs of a length in tokens and how many texts of it.

    Raises:
        ValueError: If `num_layers`, `null_space` or `ridge` is not above 0.
    """

    facts_at_once = 100

    def __init__(
        self,
        model: RecipeForCausalLM,
        layer: int | None = None,
        text: KeyText | None = None,
        num_layers: int = 5,
        null_space: float = 0.2,
        ridge: float = 1.0,
        search: ValueSearch = SEARCH,
        contexts: Sequence[tuple[int, int]] = CONTEXTS,
    ) -> None:
        for name, value in (("null_space", null_space), ("ridge", ridge)):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        super().__init__(model, layer, text, num_layers, search=search, contexts=contexts)
        self.null_space = null_space
        self.ridge = ridge
        self._projections: dict[int, Tensor] = {}
        #: K_p K_p^T of each layer.
        self._earlier: dict[int, Tensor] = {}
        self.settings |= {"null space": {}}

    def edit(self, facts: Sequence[EditExample]) -> None:
        super().edit(facts)
        # Of the weights as they are now, as the next facts will find them.
        for layer in self.written():
            keys = self.keys(layer, facts).T.cpu()
            self._earlier[layer.number] = self._earlier.get(layer.number, 0) + keys @ keys.T

    def undo(self) -> None:
        super().undo()
        self._earlier = {}

    def projection(self, layer: Layer) -> Tensor:
        """P of a layer, `[d_key, d_key]`."""
        if layer.number not in self._projections:
            (moments,) = self.moments.get([layer.number])
            values, vectors = torch.linalg.eigh(moments.second.double())
            null = vectors[:, values.cumsum(0) <= self.null_space * values.sum()]
            self._projections[layer.number] = (null @ null.T).float()
            self.settings["null space"][str(layer.number)] = f"{null.shape[1]} of {len(values)}"
        return self._projections[layer.number]

    def change(self, layer: Layer, keys: Tensor, residual: Tensor) -> Tensor:
        projection, keys, residual = self.projection(layer), keys.cpu(), residual.cpu()
        (moments,) = self.moments.get([layer.number])
        a = self.ridge * moments.second.diagonal().mean()
        both = keys @ keys.T + self._earlier.get(layer.number, 0)
        system = projection @ both + a * torch.eye(len(keys))
        return residual @ torch.linalg.solve(system, projection @ keys).T
