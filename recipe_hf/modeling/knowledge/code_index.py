"""Search among many keys by codes of them in memory; the keys themselves, wherever they are, decide."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .code_rows import CodeRows, Projection, Query

_SAMPLE = 50_000  # Keys that the codes are fitted to.
_CHUNK = 20_000  # Keys that are coded at once.
_REFIT_GROWTH = 4  # The codes are fitted anew when there are as many times the facts that they were fitted to.
_PARTS = 2  # Searched by a thread each.
_ROWS_FILE = "rows.safetensors"

Fetch = Callable[[NDArray[np.int64]], NDArray[np.float32]]


def is_available() -> bool:
    """Whether the libraries of `recipe-hf[scale]` are installed."""
    return all(importlib.util.find_spec(name) for name in ("faiss", "numkong"))


class CodeIndex:
    """Finds the keys with the largest dot products without reading all keys. The counterpart of [`KeyIndex`].

    Each step is on fewer facts than the one before. All 4-bit product-quantisation codes are compared with the query
    (24 bytes a fact; faiss's fast scan). The best 2,000 are compared by their 192 main directions, then the best 300
    of these by the whole keys, both rounded to 8 bits. The float32 keys, which `fetch` brings from the store, are
    compared for those that rounding could have put behind the best. No clusters, no graph: what is added can be found,
    what is removed is gone at once, and neither wears the index out.

    Args:
        dim: Width of the keys.
        fetch: Gives the keys `[n, dim]` of ids.
    """

    def __init__(self, dim: int, fetch: Fetch) -> None:
        self._dim = dim
        self._fetch = fetch
        self._parts: list[CodeRows] = []
        self._num_fitted = 0
        # Where an id is: `row * _PARTS + part`, or -1.
        self._places: NDArray[np.int64] = np.empty(0, np.int64)
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[n]`, ascending."""
        return np.flatnonzero(self._places >= 0)

    def holding(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `ids` that are there."""
        ids = np.asarray(ids, np.int64)
        ids = ids[ids < len(self._places)]
        return ids[self._places[ids] >= 0]

    def build(self, ids: NDArray[np.int64]) -> None:
        """Makes the index of `ids` anew, of keys that it fetches."""
        self._parts, self._places, self._num_fitted = [], np.empty(0, np.int64), len(ids)
        if not len(ids):
            return
        draw = np.random.default_rng(0)
        sample = ids if len(ids) <= _SAMPLE else np.sort(draw.choice(ids, _SAMPLE, replace=False))
        projection = Projection.fit(self._fetch(sample))
        self._parts = [CodeRows(projection) for _ in range(_PARTS)]
        self.add(ids)

    def add(self, ids: NDArray[np.int64]) -> None:
        """Adds the keys of `ids`, none of which is there."""
        if len(self) + len(ids) > _REFIT_GROWTH * self._num_fitted:
            self.build(np.concatenate([self.ids, ids]))
            return
        for start in range(0, len(ids), _CHUNK):
            chosen = ids[start : start + _CHUNK]
            keys = self._fetch(chosen)
            if chosen.max() >= len(self._places):
                places = np.full(max(int(chosen.max()) + 1, len(self._places) * 5 // 4), -1, np.int64)
                places[: len(self._places)] = self._places
                self._places = places
            smallest_first = sorted(range(_PARTS), key=lambda part: len(self._parts[part]))
            for turn, part in enumerate(smallest_first):
                rows = self._parts[part].add(chosen[turn::_PARTS], keys[turn::_PARTS])
                self._places[chosen[turn::_PARTS]] = rows * _PARTS + part

    def remove(self, ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Removes the keys of `ids`, which must be there."""
        if len(ids) > len(self) // 2:
            self.build(np.setdiff1d(self.ids, ids))
            return
        for id in np.asarray(ids, np.int64).tolist():
            row, part = divmod(int(self._places[id]), _PARTS)
            self._places[id] = -1
            moved = self._parts[part].remove(row)
            if moved != id:
                self._places[moved] = row * _PARTS + part

    def get(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The keys of `ids`, which must be there: any shape -> that shape and `dim`."""
        return self._fetch(ids.ravel()).reshape(*ids.shape, self._dim)

    def search(
        self, queries: NDArray[np.float32], k: int, threads: int, among: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As [`KeyIndex.search`]. With `among`, the 8-bit keys of all those ids are compared."""
        among = None if among is None else self.holding(among)
        k = min(k, len(self) if among is None else len(among))
        ids, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        if not k:
            return ids, scores
        rows = self._rows(among)
        for number, vector in enumerate(queries):
            query = Query(vector, self._parts[0].projection)
            searches = [
                partial(part.nearest, query, k, chosen) for part, chosen in zip(self._parts, rows, strict=True)
            ]
            candidates = [np.concatenate(arrays) for arrays in zip(*self._run(searches, threads), strict=True)]
            ids[number], scores[number] = self._decide(vector, k, *candidates)
        return ids, scores

    def _rows(self, among: NDArray[np.int64] | None) -> list[NDArray[np.int64] | None]:
        """The rows of ids in each part; None for all of them."""
        if among is None:
            return [None] * _PARTS
        places = self._places[among]
        return [np.sort(places[places % _PARTS == part] // _PARTS) for part in range(_PARTS)]

    def _decide(
        self,
        query: NDArray[np.float32],
        k: int,
        ids: NDArray[np.int64],
        scores: NDArray[np.float64],
        errors: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best `k` of candidates with nearly right scores, by their keys."""
        kth = np.partition(scores, -k)[-k]
        ids = np.sort(ids[scores >= kth - errors - errors.max()])
        exact = (self._fetch(ids) * query).sum(-1)
        best = np.argsort(-exact, kind="stable")[:k]
        return ids[best], exact[best]

    def _run(self, searches: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
        if threads == 1:
            return [search() for search in searches]
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(_PARTS - 1, "knowledge-search")
        others = [self._pool[1].submit(search) for search in searches[1:]]
        return [searches[0](), *(other.result() for other in others)]

    # ------------------------------------------------------------------ files

    def files(self) -> Iterator[tuple[str, Any]]:
        """Names and contents of the files that hold the index."""
        arrays: dict[str, NDArray] = {"num_fitted": np.array([self._num_fitted])}
        arrays["projection"] = self._parts[0].projection.matrix
        for number, part in enumerate(self._parts):
            yield f"{number}.faiss", part.short_codes()
            for name, array in part.arrays().items():
                if name.endswith(".codes"):
                    yield f"{number}.{name}", array.data
                else:
                    arrays[f"{number}.{name}"] = array
        yield _ROWS_FILE, save_arrays(arrays)

    @classmethod
    def of_files(cls, dim: int, fetch: Fetch, read: Callable[[str], bytes]) -> CodeIndex:
        """The index that `files` gave; `read` reads one of them.

        Raises:
            KeyError, RuntimeError, ValueError: If it is not one.
        """
        index = cls(dim, fetch)
        arrays: Mapping[str, NDArray] = load_arrays(read(_ROWS_FILE))
        index._num_fitted = int(arrays["num_fitted"][0])
        projection = Projection(arrays["projection"], None)
        for number in range(_PARTS):
            prefix = f"{number}."
            rows = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            for name in ("keys.codes", "directions.codes"):
                rows[name] = np.frombuffer(read(prefix + name), np.int8)
            index._parts.append(CodeRows(projection, rows, read(prefix + "faiss")))
        index._places = np.full(max((int(part.ids.max(initial=-1)) for part in index._parts), default=-1) + 1, -1)
        for number, part in enumerate(index._parts):
            index._places[part.ids] = np.arange(len(part)) * _PARTS + number
        return index
