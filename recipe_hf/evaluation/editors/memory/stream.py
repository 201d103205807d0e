"""From what the residual stream lacks to what an MLP must give, where norms and factors stand between the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Layer, hooked
from .values import Lookup, read_at

#: What is less than this, beside the rest, may be rounding.
_ROUNDING = 1e-3
#: Halvings of an interval that is at most 10^12 wide.
_HALVINGS = 60


@torch.no_grad()
def to_values(lm: Any, layer: Layer, lookups: Sequence[Lookup], missing: Tensor) -> Tensor:
    """What must be added to the values of a layer for the stream to get `missing`, `[n, d_llm]` both.

    What the stream gets of a value is seen from the stream with it, without it, and with twice of it. If it gets twice
    as much, it gets the value times a factor, which is 1 in most models. Otherwise a norm stands between the two, and
    no value can give it just anything: then of all values of the same size the one is taken that gives the nearest.

    Args:
        lm: The model.
        layer: The layer.
        lookups: Where the facts are looked up.
        missing: What the stream is to get there.
    """
    value = read_at(lm, lookups, [layer], [])["value", layer.number]
    without, once, twice = (_stream(lm, layer, lookups, times) for times in (0.0, 1.0, 2.0))
    added = once - without
    factor = (added * value).sum(-1, keepdim=True) / value.square().sum(-1, keepdim=True)
    if (twice - once - added).norm() < 10 * _ROUNDING * added.norm():
        return missing / factor
    size = value.square().mean(-1, keepdim=True).sqrt()
    gains = torch.where(value.abs() > _ROUNDING * size, added / value, factor)
    return nearest_of_size(gains, added + missing, value.norm(dim=-1, keepdim=True)) - value


def nearest_of_size(gains: Tensor, target: Tensor, size: Tensor) -> Tensor:
    """The `x` of norm `size` for which `gains * x` is nearest to `target`, row by row, `[n, d]`.

    It is g t / (g^2 + m), for the m above -min(g^2) by which it has its norm.
    """
    squares = gains.square()
    least = squares.amin(-1, keepdim=True)
    low = 1e-12 * squares.amax(-1, keepdim=True)
    high = (gains * target).norm(dim=-1, keepdim=True) / size
    found = gains * target
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = gains * target / (squares - least + middle)
        is_long = found.norm(dim=-1, keepdim=True) > size
        low, high = torch.where(is_long, middle, low), torch.where(is_long, high, middle)
    return found * size / found.norm(dim=-1, keepdim=True)


def _stream(lm: Any, layer: Layer, lookups: Sequence[Lookup], times: float) -> Tensor:
    """The stream behind a layer where facts are looked up, the value being so many times what it is."""

    def multiply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return times * output

    with hooked([layer.down.register_forward_hook(multiply)]):
        return read_at(lm, lookups, [], [layer])["state", layer.number]
