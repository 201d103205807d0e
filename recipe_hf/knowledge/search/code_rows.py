"""The table of an index: keys as short codes, to choose thousands, and as 8-bit numbers, to choose among these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .short_codes import SHARDS, Projection, ShortCodes

# How many rows are compared by their rounded directions, then by their rounded keys, at least.
_BY_SHORT_CODES = 2000
_BY_DIRECTIONS = 300
_SCAN = 8192  # Rounded vectors that are compared at once.
# Rounding to steps of s errs by s / sqrt(12) in each dimension; six deviations.
_ERROR = 6 / 12**0.5

Candidates = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


class Rounded:
    """Vectors rounded to 8 bits, `codes * scales`, in rows that grow.

    Attributes:
        codes: `[capacity, dim]`.
        scales: `[capacity]`.
    """

    def __init__(self, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        self.codes = codes
        self.scales = scales

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> Rounded:
        """Rounds vectors `[n, dim]`."""
        scales = np.maximum(np.abs(vectors).max(1), np.finfo(np.float32).tiny * 128) / 127
        return cls(np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32))

    def products(self, query: Rounded, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """About the dot products of a query and the vectors in `rows`."""
        import numkong

        products = [
            np.asarray(numkong.cdist(query.codes, self.codes.take(rows[start : start + _SCAN], 0), "dot"))[0]
            for start in range(0, len(rows), _SCAN)
        ]
        scales: NDArray[np.float32] = self.scales[rows] * query.scales
        return np.concatenate([np.empty(0), *products]) * scales


class Query:
    """A query `[dim]`, as the steps of a search need it."""

    def __init__(self, query: NDArray[np.float32], projection: Projection) -> None:
        self.projected = projection.apply(query[None])
        self.in_directions = Rounded.of(self.projected)
        self.rounded = Rounded.of(query[None])
        self.length = np.linalg.norm(query)


class CodeRows:
    """Codes of keys in rows without gaps: the last row takes the place of a removed one.

    Args:
        projection: Makes the short codes.
        arrays: The rows of an index that was saved, as `arrays` gave them.
        short_codes: Their short codes, as `ShortCodes.contents` gave them.
    """

    def __init__(
        self,
        projection: Projection,
        arrays: dict[str, NDArray[Any]] | None = None,
        short_codes: Sequence[bytes] | None = None,
    ) -> None:
        self.projection = projection
        arrays = arrays or {}
        self._ids = arrays.get("ids", np.empty(0, np.int64))
        self._max_length = float(arrays.get("max_length", [0.0])[0])
        dim, width = projection.matrix.shape
        self._rounded, self._in_directions = (
            Rounded(
                arrays.get(f"{name}.codes", np.empty(0, np.int8)).reshape(-1, size),
                arrays.get(f"{name}.scales", np.empty(0, np.float32)),
            )
            for name, size in (("keys", dim), ("directions", width))
        )
        self.short_codes = ShortCodes(short_codes or [projection.empty()] * SHARDS)
        if {len(rows) for rows in self._rows()} != {len(self)}:
            raise ValueError("the files of the index do not belong together.")

    def __len__(self) -> int:
        return len(self.short_codes)

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[n]`; a view."""
        return self._ids[: len(self)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is kept of the rows, beside their short codes, each as one row of numbers; views."""
        arrays = {"ids": self.ids, "max_length": np.array([self._max_length])}
        for name, rounded in (("keys", self._rounded), ("directions", self._in_directions)):
            arrays[f"{name}.codes"] = rounded.codes[: len(self)].reshape(-1)
            arrays[f"{name}.scales"] = rounded.scales[: len(self)]
        return arrays

    def _rows(self) -> tuple[NDArray[Any], ...]:
        keys, directions = self._rounded, self._in_directions
        return self._ids, keys.codes, keys.scales, directions.codes, directions.scales

    def add(self, ids: NDArray[np.int64], keys: NDArray[np.float32]) -> NDArray[np.int64]:
        """Adds keys `[n, dim]` under `ids`; returns their rows."""
        first, end = len(self), len(self) + len(ids)
        if end > len(self._ids):
            self._grow(max(end, first * 5 // 4))
        self._ids[first:end] = ids
        projected = self.projection.apply(keys)
        for rounded, vectors in ((self._rounded, keys), (self._in_directions, projected)):
            new = Rounded.of(vectors)
            rounded.codes[first:end], rounded.scales[first:end] = new.codes, new.scales
        self._max_length = max(self._max_length, float(np.linalg.norm(keys, axis=1).max(initial=0)))
        self.short_codes.add(projected)
        return np.arange(first, end)

    def _grow(self, capacity: int) -> None:
        self._ids, *others = (_grown(rows, len(self), capacity) for rows in self._rows())
        self._rounded, self._in_directions = Rounded(*others[:2]), Rounded(*others[2:])

    def remove(self, row: int) -> int:
        """Removes a row; returns the id of the row that took its place, the last one."""
        last = len(self) - 1
        for rows in self._rows():
            rows[row] = rows[last]
        self.short_codes.remove(row)
        return int(self._ids[row])

    def nearest(self, query: Query, k: int, threads: int, among: NDArray[np.int64] | None = None) -> Candidates:
        """Candidates for the best `k` rows: ids, scores, and their possible errors. With `among`, all those rows."""
        rows, n = among, max(_BY_SHORT_CODES, 50 * k)
        if rows is None and n < len(self):
            rows = np.sort(self.short_codes.best(query.projected, n, threads))
            # If too many codes are alike, faiss names fewer.
            rows = self._best_by_directions(query, rows, _BY_DIRECTIONS + 20 * k) if len(rows) >= n else None
        if rows is None:
            rows = np.arange(len(self))
        scores = self._rounded.products(query.rounded, rows)
        errors = _ERROR * np.hypot(self._rounded.scales[rows] * query.length, query.rounded.scales * self._max_length)
        return self._ids[rows], scores, errors

    def _best_by_directions(self, query: Query, rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
        scores = self._in_directions.products(query.in_directions, rows)
        return rows[np.argpartition(-scores, n)[:n]] if n < len(rows) else rows


def _grown(rows: NDArray[Any], used: int, capacity: int) -> NDArray[Any]:
    larger = np.empty((capacity, *rows.shape[1:]), rows.dtype)
    larger[:used] = rows[:used]
    return larger
