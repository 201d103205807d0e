"""Exact search: every query is compared with every key, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# No product, nor a sum of some of its terms, exceeds two to this power: it is finite in float32.
_LARGEST_EXPONENT = 126

# Ids and dot products `[b, k]` of the keys found for `b` queries, and these keys `[b, k, dim]`; `k` is at most the
# number of keys searched.
Found = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


def nothing(num_queries: int, k: int, dim: int) -> Found:
    """An empty result: ids of -1, scores of minus infinity, keys of zeros."""
    return (
        np.full((num_queries, k), -1, np.int64),
        np.full((num_queries, k), -np.inf, np.float32),
        np.zeros((num_queries, k, dim), np.float32),
    )


class KeyIndex:
    """Finds the keys with the largest dot products, exactly. It takes no lock: its owner does.

    Holds one contiguous float32 matrix that grows by doubling. Removed rows are dropped before the next use, which
    costs no more than a search: that reads the whole matrix.

    Args:
        dim: Width of the keys.
    """

    def __init__(self, dim: int) -> None:
        self._num_rows = 0
        self._removed: set[int] = set()
        self._ids: NDArray[np.int64] = np.empty(0, np.int64)
        self._keys: NDArray[np.float32] = np.empty((0, dim), np.float32)
        # The largest absolute number of any key that is or was there, or a larger one.
        self._largest = 0.0

    def __len__(self) -> int:
        return self._num_rows - len(self._removed)

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[n]`, ascending. A view: it must not be changed, nor kept past the next change of the index."""
        self._compact()
        return self._ids[: self._num_rows]

    @property
    def keys(self) -> NDArray[np.float32]:
        """`[n, dim]`, in the order of `ids`. A view: it must not be kept past the next change of the index."""
        self._compact()
        return self._keys[: self._num_rows]

    def add(self, ids: Sequence[int] | NDArray[np.int64], keys: NDArray[np.float32]) -> None:
        """Adds `keys` `[n, dim]` under ascending `ids`, none of which is there."""
        if len(ids) and self._num_rows and ids[0] <= self._ids[self._num_rows - 1]:
            ids, keys = np.concatenate([self.ids, ids]), np.concatenate([self.keys, keys])
            order = np.argsort(ids)
            ids, keys, self._num_rows = ids[order], keys[order], 0
        needed = self._num_rows + len(ids)
        if needed > len(self._ids):
            capacity = max(needed, 2 * len(self._ids))
            self._ids, self._keys = _grown(self._ids, capacity), _grown(self._keys, capacity)
        self._ids[self._num_rows : needed] = ids
        self._keys[self._num_rows : needed] = keys
        self._num_rows = needed
        self._largest = max(self._largest, float(keys.max(initial=0)), -float(keys.min(initial=0)))

    def remove(self, ids: Iterable[int]) -> None:
        """Removes the keys of `ids`, which must be there."""
        self._removed.update(ids)

    def holding(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `ids`, all different, that are there."""
        return np.intersect1d(ids, self.ids, assume_unique=True).astype(np.int64) if len(ids) else self.ids[:0]

    def search(
        self, queries: NDArray[np.float32], k: int, threads: int, among: NDArray[np.int64] | None = None
    ) -> Found:
        """The best keys for each query `[b, dim]`, `b` > 0, best first; of equal best keys the smallest id wins.

        With `among`, only those ids count.
        """
        ids, keys = self.ids, self.keys
        if among is not None:
            ids, rows, _ = np.intersect1d(ids, among, assume_unique=True, return_indices=True)
            keys = keys[rows]
        k = min(k, len(ids))
        if not k:
            return nothing(len(queries), 0, keys.shape[1])
        from usearch.index import MetricKind
        from usearch.index import search as usearch_search

        found = usearch_search(keys, self._scaled(queries), k, MetricKind.IP, exact=True, threads=threads)
        rows = np.sort(found.keys.astype(np.int64).reshape(len(queries), k), axis=1)
        scores = (keys[rows] * queries[:, None]).sum(-1)
        order = np.argsort(-scores, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, 1)
        return ids[rows], np.take_along_axis(scores, order, 1), keys[rows]

    def _scaled(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """The queries times powers of two, which is exact, so that their products are as large as possible.

        usearch ranks by 1 - r_q . r_k in float32, where the 1 would round small products away.
        """
        _, exponents = np.frexp(np.abs(queries).max(1, keepdims=True))
        _, of_keys = np.frexp(self._largest)
        room = _LARGEST_EXPONENT - of_keys - queries.shape[1].bit_length()
        scaled: NDArray[np.float32] = np.ldexp(queries, min(room, _LARGEST_EXPONENT) - exponents)
        return scaled

    def _compact(self) -> None:
        if self._removed:
            kept = np.isin(self._ids[: self._num_rows], list(self._removed), invert=True)
            first, self._num_rows, end = int(kept.argmin()), int(kept.sum()), self._num_rows
            for rows in (self._ids, self._keys):
                rows[first : self._num_rows] = rows[first:end][kept[first:]]
            self._removed = set()


def _grown(rows: NDArray[Any], capacity: int) -> NDArray[Any]:
    larger = np.empty((capacity, *rows.shape[1:]), rows.dtype)
    larger[: len(rows)] = rows
    return larger
