"""From what the residual stream lacks to what an MLP must give, where norms and factors stand between the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Layer, hooked
from .values import Lookup, read_at

#: An MLP whose output reaches the stream so nearly as it is, is taken to be added to it as it is.
_ROUNDING = 1e-3
#: Channels that the stream hardly gets, below this share of the mean square, are not made up for.
_DAMPING = 1e-2


@torch.no_grad()
def to_values(lm: Any, layer: Layer, lookups: Sequence[Lookup], missing: Tensor) -> Tensor:
    """What must be added to the values of a layer for the stream to get `missing`, `[n, d_llm]` both.

    What a value is multiplied by on its way, channel by channel, is seen from the stream with it and without it: 1 in
    most models; a factor in some; and where a norm stands behind the MLP, the norm's weight over the value's own size.

    Args:
        lm: The model.
        layer: The layer.
        lookups: Where the facts are looked up.
        missing: What the stream is to get there.
    """
    read = read_at(lm, lookups, [layer], [layer])
    value = read["value", layer.number]
    with silenced(layer, lookups):
        without = read_at(lm, lookups, [], [layer])["state", layer.number]
    added = read["state", layer.number] - without
    overall = (added * value).sum(-1, keepdim=True) / value.square().sum(-1, keepdim=True)
    if ((added - value).norm(dim=-1) < _ROUNDING * value.norm(dim=-1)).all():
        return missing
    size = value.square().mean(-1, keepdim=True).sqrt()
    gain = torch.where(value.abs() > _ROUNDING * size, added / value, overall)
    return missing * gain / (gain.square() + _DAMPING * gain.square().mean(-1, keepdim=True))


def silenced(layer: Layer, lookups: Sequence[Lookup]) -> Any:
    """Context in which the MLP of a layer gives nothing."""

    def silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    return hooked([layer.down.register_forward_hook(silence)])
