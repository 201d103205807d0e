"""MALMEN: MEND's edits of many facts, joined by least squares (Tan et al., ICLR 2024, arXiv 2311.04661)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .memory.gradients import Factors
from .mend import Mend

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


class Malmen(Mend):
    """Takes many facts in at once: sums of MEND's edits would cancel, so the change is solved for that does them all.

    For each token, MEND's edit would change what the map gives for its own input u by d = -a (u~^T u) d~. With these
    in the columns of U and D, the change of the map is the ridge regression (eq. 6)

        S = D U^T (U U^T + l I)^-1,

    where l is learned for each layer. The network is trained through the solution, by the same losses.

    Published: the normal equation and a learned l. Chosen here: what MEND has, eight facts of an edit in training, and
    an l that starts at the mean square of the channels of u, so that it does not depend on how large keys are.

    Args:
        model: The model.
        steps: Training steps at most.
        seconds: No training step is begun after this long.
        num_layers: How many of the last layers are edited.
        rank: Of the network.
        learning_rate: Of Adam.
        batch_size: Facts of one edit in training.
        directory: Where trained networks are kept; by default beside the Hub's cache.

    Raises:
        ValueError: If the layers of the model cannot be found, or a number is not above 0.
    """

    facts_at_once = None

    def __init__(
        self,
        model: RecipeForCausalLM,
        steps: int = 1000,
        seconds: float = 3600.0,
        num_layers: int = 3,
        rank: int = 256,
        learning_rate: float = 1e-4,
        batch_size: int = 8,
        directory: Path | None = None,
    ) -> None:
        super().__init__(model, steps, seconds, num_layers, rank, learning_rate, batch_size, directory)

    def update(self, index: int, factors: Factors) -> Tensor:
        keys = factors[0]
        own_keys, gradients = self.network(index, factors)
        differences = -self.network.rates[index] * (own_keys * keys).sum(-1, keepdim=True) * gradients
        ridge = self.network.log_ridges[index].exp() * self.network.running(index)[0].square.mean()
        return solve(keys, differences, ridge)


def solve(keys: Tensor, differences: Tensor, ridge: Tensor) -> Tensor:
    """The change S `[d_llm, d_key]` of least |S U - D|^2 + l |S|^2, for U^T `[n, d_key]` and D^T `[n, d_llm]`.

    By the smaller of the two systems, of keys or of channels, which give the same.
    """
    number, width = keys.shape
    if number < width:
        gram = keys @ keys.T + ridge * torch.eye(number, device=keys.device)
        return torch.linalg.solve(gram, differences).T @ keys
    moment = keys.T @ keys + ridge * torch.eye(width, device=keys.device)
    return torch.linalg.solve(moment, keys.T @ differences).T
