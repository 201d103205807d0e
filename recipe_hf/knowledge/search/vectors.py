"""Validation of keys and queries, which become float32 arrays on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

#: No number of a key or query is larger, so that dot products, and sums of them, are finite in float32.
MAX_MAGNITUDE = 1e15


def check_vectors(name: str, vectors: Tensor, dim: int | None, count: int | None = None) -> NDArray[np.float32]:
    """`vectors` as an array `[count, dim]`.

    Args:
        name: Their name in errors.
        vectors: Of any floating point type, on any device.
        dim: Their width; None for any.
        count: Their number; None for any.

    Raises:
        ValueError: If they are of another type or shape, or hold NaN or numbers beyond `MAX_MAGNITUDE`.
    """
    import torch

    if not isinstance(vectors, torch.Tensor) or not vectors.is_floating_point():
        got = vectors.dtype if isinstance(vectors, torch.Tensor) else type(vectors).__name__
        raise ValueError(f"{name} must be a floating point tensor of shape {_shape(dim, count)}, got {got}.")
    return check_array(name, vectors.detach().to("cpu", torch.float32).contiguous().numpy(), dim, count)


def check_array(name: str, array: NDArray[Any], dim: int | None, count: int | None = None) -> NDArray[np.float32]:
    """Like `check_vectors`, for an array."""
    if array.dtype.kind != "f":
        raise ValueError(f"{name} must be a floating point tensor of shape {_shape(dim, count)}, got {array.dtype}.")
    fits = array.ndim == 2 and dim in (None, array.shape[1]) and count in (None, len(array)) and array.shape[1]
    if not fits:
        raise ValueError(f"{name} must have the shape {_shape(dim, count)}, got {list(array.shape)}.")
    array = array.astype(np.float32, copy=False)
    if not np.abs(array).max(initial=0) <= MAX_MAGNITUDE:
        row, column = np.argwhere(~(np.abs(array) <= MAX_MAGNITUDE))[0]
        raise ValueError(
            f"{name} must be finite, and at most {MAX_MAGNITUDE:g} in size, got {array[row, column]} in row {row}."
        )
    return array


def _shape(dim: int | None, count: int | None) -> str:
    return f"[{'b' if count is None else count}, {'dim' if dim is None else dim}]"
