"""Rows of codes: keys as short codes, to choose some thousands, and rounded to 8 bits, to choose among these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTH = 192  # Dimensions that short codes are of,
_BLOCK = 4  # and how many share 4 bits.
# How many rows of a part each step hands on, beyond `k`.
_BY_SHORT_CODES = 1000
_BY_DIRECTIONS = 150
_BY_KEYS = 32
_SCAN = 8192  # Rounded vectors that are compared at once.
_SMALL = 32  # Up to so many vectors, threads of a matrix product cost more than they bring.
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
        return np.concatenate([np.empty(0), *products]) * (self.scales[rows] * query.scales)


class Projection:
    """The main directions of some keys, in a random rotation, and the short codes of what lies in them.

    The rotation spreads the variance evenly over the blocks of a code, which made the codes better than any order of
    the directions did.

    Attributes:
        matrix: `[dim, width]`.
    """

    def __init__(self, matrix: NDArray[np.float32], index: Any) -> None:
        self.matrix = matrix
        self._packed = _packed(matrix)
        self._index = index

    @classmethod
    def fit(cls, keys: NDArray[np.float32]) -> Projection:
        """Fits directions and codes to a sample of keys `[n, dim]`."""
        import faiss

        dim = keys.shape[1]
        width = min(_WIDTH, -(-dim // _BLOCK) * _BLOCK)
        kept = min(dim, width)
        directions = np.linalg.eigh(keys.T @ keys)[1][:, -kept:]
        rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0][:kept]
        matrix = np.ascontiguousarray(directions @ rotation, np.float32)
        index = faiss.IndexPQFastScan(width, width // _BLOCK, 4, faiss.METRIC_INNER_PRODUCT)
        projected = keys @ matrix
        repeats = -(-(1 << 4) // len(projected))  # faiss wants as many vectors as there are values of a code.
        index.pq.cp.min_points_per_centroid = 1
        with _one_thread():
            index.train(np.tile(projected, (repeats, 1)))
        return cls(matrix, index)

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors `[n, dim]` projected, `[n, width]`."""
        if len(vectors) > _SMALL:
            return vectors @ self.matrix
        import numkong

        return np.asarray(numkong.dots_packed(vectors, self._packed)).astype(np.float32)

    def empty(self) -> Any:
        """A faiss index without codes in it."""
        import faiss

        return faiss.deserialize_index(faiss.serialize_index(self._index))


class Query:
    """A query `[dim]`, as the steps of a search need it."""

    def __init__(self, query: NDArray[np.float32], projection: Projection) -> None:
        self.projected = projection.apply(query[None])
        self.in_directions = Rounded.of(self.projected)
        self.rounded = Rounded.of(query[None])
        self.length = np.linalg.norm(query)


class CodeRows:
    """Codes of keys in rows without gaps: the last row takes the place of one that is removed.

    Args:
        projection: What short codes are made with.
        arrays: The rows of an index that was saved, as `arrays` gave them.
        short_codes: Its short codes.
    """

    def __init__(
        self, projection: Projection, arrays: dict[str, NDArray] | None = None, short_codes: bytes | None = None
    ) -> None:
        self.projection = projection
        dim, width = projection.matrix.shape
        arrays = arrays or {}
        self._ids = arrays.get("ids", np.empty(0, np.int64))
        self._max_length = float(arrays.get("max_length", [0.0])[0])
        self._rounded, self._in_directions = (
            Rounded(
                arrays.get(f"{name}.codes", np.empty(0, np.int8)).reshape(-1, size),
                arrays.get(f"{name}.scales", np.empty(0, np.float32)),
            )
            for name, size in (("keys", dim), ("directions", width))
        )
        self._index = projection.empty() if short_codes is None else _deserialized(short_codes)
        if {len(rows) for rows in self._rows()} != {self._index.ntotal}:
            raise ValueError("the files of the index do not belong together.")

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[n]`; a view."""
        return self._ids[: len(self)]

    def arrays(self) -> dict[str, NDArray]:
        """All that is kept of the rows, beside their short codes, each as one row of numbers; views."""
        arrays = {"ids": self.ids, "max_length": np.array([self._max_length])}
        for name, rounded in (("keys", self._rounded), ("directions", self._in_directions)):
            arrays |= {
                f"{name}.codes": rounded.codes[: len(self)].reshape(-1),
                f"{name}.scales": rounded.scales[: len(self)],
            }
        return arrays

    def short_codes(self) -> bytes:
        """All short codes and what made them."""
        import faiss

        return faiss.serialize_index(self._index).tobytes()

    def _rows(self) -> Iterator[NDArray]:
        yield self._ids
        for rounded in (self._rounded, self._in_directions):
            yield rounded.codes
            yield rounded.scales

    def add(self, ids: NDArray[np.int64], keys: NDArray[np.float32]) -> NDArray[np.int64]:
        """Adds keys `[n, dim]` under `ids`; gives their rows."""
        if not len(ids):  # faiss cannot add none to none.
            return np.empty(0, np.int64)
        first, end = len(self), len(self) + len(ids)
        if end > len(self._ids):
            self._grow(max(end, first * 5 // 4))
        self._ids[first:end] = ids
        projected = self.projection.apply(keys)
        for rounded, vectors in ((self._rounded, keys), (self._in_directions, projected)):
            new = Rounded.of(vectors)
            rounded.codes[first:end], rounded.scales[first:end] = new.codes, new.scales
        self._max_length = max(self._max_length, float(np.linalg.norm(keys, axis=1).max()))
        with _one_thread():
            self._index.add(projected)
        return np.arange(first, end)

    def _grow(self, capacity: int) -> None:
        self._ids = _grown(self._ids, len(self), capacity)
        for rounded in (self._rounded, self._in_directions):
            rounded.codes = _grown(rounded.codes, len(self), capacity)
            rounded.scales = _grown(rounded.scales, len(self), capacity)

    def remove(self, row: int) -> int:
        """Removes a row; gives the id of the row that took its place, the last one."""
        import faiss

        if not self._rounded.codes.flags.writeable:  # As they were read.
            self._grow(len(self))
        last, index = len(self) - 1, self._index
        packer = index.get_CodePacker()
        blocks = faiss.rev_swig_ptr(index.codes.get(), index.codes.size()).reshape(-1, 1, packer.block_size)
        (block, place), (last_block, last_place) = divmod(row, packer.nvec), divmod(last, packer.nvec)
        packer.pack_1(packer.unpack_1(blocks[last_block], last_place), place, blocks[block])
        # faiss adds codes to what is in a free place by a bitwise or.
        packer.pack_1(np.zeros(packer.code_size, np.uint8), last_place, blocks[last_block])
        for rows in self._rows():
            rows[row] = rows[last]
        index.ntotal = last
        return int(self._ids[row])

    def nearest(self, query: Query, k: int, among: NDArray[np.int64] | None = None) -> Candidates:
        """Candidates for the best `k` rows: ids, scores, and how wrong these may be. With `among`, of these rows."""
        rows, n = among, max(_BY_SHORT_CODES, 50 * k)
        if rows is None and n < len(self):
            with _one_thread():
                rows = self._index.search(query.projected, n)[1][0]
            rows = np.sort(rows[rows >= 0])  # faiss pads with -1.
            rows = rows[_best(self._in_directions.products(query.in_directions, rows), _BY_DIRECTIONS + 10 * k)]
        elif rows is None:
            rows = np.arange(len(self))
        scores = self._rounded.products(query.rounded, rows)
        best = _best(scores, _BY_KEYS + k)
        rows, scores = rows[best], scores[best]
        errors = _ERROR * np.hypot(self._rounded.scales[rows] * query.length, query.rounded.scales * self._max_length)
        return self._ids[rows], scores, errors


def _best(scores: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Where the largest `n` are, in no order."""
    return np.argpartition(-scores, n)[:n] if n < len(scores) else np.arange(len(scores))


def _packed(matrix: NDArray[np.float32]) -> Any:
    import numkong

    return numkong.dots_pack(np.ascontiguousarray(matrix.T))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which faiss uses the calling thread alone: its others would wait busily."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _deserialized(content: bytes) -> Any:
    import faiss

    return faiss.deserialize_index(np.frombuffer(content, np.uint8))


def _grown(rows: NDArray, used: int, capacity: int) -> NDArray:
    larger = np.empty((capacity, *rows.shape[1:]), rows.dtype)
    larger[:used] = rows[:used]
    return larger
