"""Fast search among many keys by compressed codes of them in memory; the keys themselves, in the store, decide."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .code_rows import CodeRows, Query
from .key_index import Found, nothing
from .short_codes import SHARDS, Projection

_SAMPLE = 50_000  # Keys that the codes are fitted to.
_CHUNK = 20_000  # Keys encoded at once.
_REFIT_GROWTH = 4  # Codes are refitted when there are this many times the facts they were fitted to.
_ROWS_FILE = "rows.safetensors"
_ROUNDED_FILES = ("keys.codes", "directions.codes")  # Large ones.

Fetch = Callable[[NDArray[np.int64]], NDArray[np.float32]]


def is_available() -> bool:
    """Whether the libraries of `recipe-hf[scale]` are installed."""
    return all(importlib.util.find_spec(name) for name in ("faiss", "numkong"))


class CodeIndex:
    """Finds the keys with the largest dot products without reading all keys. The counterpart of [`KeyIndex`].

    Each step is on fewer facts than the one before. All 4-bit product-quantisation codes are compared with the query
    (24 bytes a fact; faiss's fast scan). The best 2,000 are compared by their 192 main directions, then the best 300
    of these by the whole keys, both rounded to 8 bits. The float32 keys, which `fetch` brings from the store, are
    compared for those that rounding could have put behind the best. There are no clusters and no graph: what is added
    can be found at once, what is removed is gone at once, and neither makes the index worse.

    Why not faiss's own index of such steps: `IndexRefine` cannot remove, `IndexPQFastScan` removes in time that grows
    with its size (one of 200,000 took a second), and it cannot search among given ids.

    Args:
        dim: Width of the keys.
        fetch: Returns the keys `[n, dim]` of ids.
    """

    def __init__(self, dim: int, fetch: Fetch) -> None:
        self._dim = dim
        self._fetch = fetch
        self._rows: CodeRows | None = None
        self._num_fitted = 0
        # The row of an id, or -1.
        self._row_of: NDArray[np.int64] = np.empty(0, np.int64)

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[n]`, ascending."""
        return np.flatnonzero(self._row_of >= 0)

    def holding(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `ids` that are there."""
        ids = np.asarray(ids, np.int64)
        ids = ids[ids < len(self._row_of)]
        return ids[self._row_of[ids] >= 0]

    def build(self, ids: NDArray[np.int64]) -> None:
        """Rebuilds the index, of the keys of `ids`, which it fetches."""
        self._rows, self._row_of, self._num_fitted = None, np.empty(0, np.int64), len(ids)
        if not len(ids):
            return
        draw = np.random.default_rng(0)
        sample = ids if len(ids) <= _SAMPLE else np.sort(draw.choice(ids, _SAMPLE, replace=False))
        self._rows = CodeRows(Projection.fit(self._fetch(sample)))
        self.add(ids)

    def add(self, ids: NDArray[np.int64]) -> None:
        """Adds the keys of `ids`, none of which is there."""
        if self._rows is None or len(self) + len(ids) > _REFIT_GROWTH * self._num_fitted:
            self.build(np.concatenate([self.ids, ids]))
            return
        for start in range(0, len(ids), _CHUNK):
            chosen = ids[start : start + _CHUNK]
            if chosen.max() >= len(self._row_of):
                row_of = np.full(max(int(chosen.max()) + 1, len(self._row_of) * 5 // 4), -1, np.int64)
                row_of[: len(self._row_of)] = self._row_of
                self._row_of = row_of
            self._row_of[chosen] = self._rows.add(chosen, self._fetch(chosen))

    def remove(self, ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Removes the keys of `ids`, which must be there."""
        if self._rows is None or len(ids) > len(self) // 2:
            self.build(np.setdiff1d(self.ids, ids))
            return
        for id in np.asarray(ids, np.int64).tolist():
            row, self._row_of[id] = int(self._row_of[id]), -1
            moved = self._rows.remove(row)
            if moved != id:
                self._row_of[moved] = row

    def search(
        self, queries: NDArray[np.float32], k: int, threads: int, among: NDArray[np.int64] | None = None
    ) -> Found:
        """As [`KeyIndex.search`]. With `among`, the 8-bit keys of all those ids are compared."""
        among = None if among is None else self.holding(among)
        k = min(k, len(self) if among is None else len(among))
        ids, scores, keys = nothing(len(queries), k, self._dim)
        if not k or self._rows is None:
            return ids, scores, keys
        rows = None if among is None else np.sort(self._row_of[among])
        for number, vector in enumerate(queries):
            candidates = self._rows.nearest(Query(vector, self._rows.projection), k, threads, rows)
            ids[number], scores[number], keys[number] = self._decide(vector, k, *candidates)
        return ids, scores, keys

    def _decide(
        self,
        query: NDArray[np.float32],
        k: int,
        ids: NDArray[np.int64],
        scores: NDArray[np.float64],
        errors: NDArray[np.float64],
    ) -> Found:
        """The best `k` of candidates with approximate scores, by their keys."""
        kth = np.partition(scores, -k)[-k]
        ids = np.sort(ids[scores >= kth - errors - errors.max()])
        keys = self._fetch(ids)
        exact = (keys * query).sum(-1)
        best = np.argsort(-exact, kind="stable")[:k]
        return ids[best], exact[best], keys[best]

    # ------------------------------------------------------------------ files

    def files(self) -> Iterator[tuple[str, Any]]:
        """Names and contents of the files that hold an index that is not empty."""
        assert self._rows is not None
        arrays: dict[str, NDArray[Any]] = {"num_fitted": np.array([self._num_fitted])}
        arrays["projection"] = self._rows.projection.matrix
        for number, content in enumerate(self._rows.short_codes.contents()):
            yield f"{number}.faiss", content
        for name, array in self._rows.arrays().items():
            if name in _ROUNDED_FILES:
                yield name, array.data
            else:
                arrays[name] = array
        yield _ROWS_FILE, save_arrays(arrays)

    @classmethod
    def of_files(cls, dim: int, fetch: Fetch, read: Callable[[str], NDArray[np.uint8]]) -> CodeIndex:
        """The index that was saved as `files`; `read` reads one of them.

        Raises:
            KeyError, RuntimeError, ValueError: If it is not one.
        """
        index = cls(dim, fetch)
        arrays = {name: array.copy() for name, array in load_arrays(read(_ROWS_FILE).tobytes()).items()}
        index._num_fitted = int(arrays["num_fitted"][0])
        arrays |= {name: read(name).view(np.int8) for name in _ROUNDED_FILES}
        shards = [read(f"{number}.faiss").tobytes() for number in range(SHARDS)]
        index._rows = CodeRows(Projection(arrays["projection"], None), arrays, shards)
        index._row_of = np.full(int(index._rows.ids.max(initial=-1)) + 1, -1, np.int64)
        index._row_of[index._rows.ids] = np.arange(len(index))
        return index
