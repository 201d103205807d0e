"""Rows of codes: keys as short codes, to choose some thousands, and rounded to 8 bits, to choose among these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTH = 192  # Dimensions that short codes are of,
_BLOCK = 4  # and how many share 4 bits.
_SHORTLIST = 1000
_MARGIN = 32  # Candidates that are handed on, beyond those asked for.
_SCAN = 8192  # 8-bit keys that are compared at once.
_SMALL = 32  # Up to so many vectors, threads of a matrix product cost more than they bring.
# Rounding to steps of s errs by s / sqrt(12) in each dimension; six deviations.
_ERROR = 6 / 12**0.5

Candidates = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


def quantized(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Vectors `[n, dim]` as `codes * scales`: 8-bit codes `[n, dim]`, and scales `[n]`."""
    scales = np.maximum(np.abs(vectors).max(1), np.finfo(np.float32).tiny * 128) / 127
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32)


class Projection:
    """The main directions of some keys, in a random rotation, and the short codes of what lies in them.

    The rotation spreads the variance evenly over the blocks of a code, which made the codes better than any order of
    the directions did.

    Attributes:
        matrix: `[dim, width]`.
    """

    def __init__(self, matrix: NDArray[np.float32], index: Any) -> None:
        self.matrix = matrix
        self._transposed = np.ascontiguousarray(matrix.T)
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

        return np.asarray(numkong.cdist(vectors, self._transposed, "dot")).astype(np.float32)

    def empty(self) -> Any:
        """A faiss index without codes in it."""
        import faiss

        return faiss.deserialize_index(faiss.serialize_index(self._index))


class Query:
    """A query `[dim]`, as the steps of a search need it."""

    def __init__(self, query: NDArray[np.float32], projection: Projection) -> None:
        self.vector = query
        self.projected = projection.apply(query[None])
        self.codes, (self.scale,) = quantized(query[None])
        self.length = np.linalg.norm(query)


class CodeRows:
    """Codes of keys in rows without gaps: the last row takes the place of one that is removed.

    Args:
        projection: What short codes are made with.
        ids, scales, codes, short_codes, max_length: The rows of an index that was saved.

    Attributes:
        max_length: The largest norm of a key that was added.
    """

    def __init__(
        self,
        projection: Projection,
        ids: NDArray[np.int64] | None = None,
        scales: NDArray[np.float32] | None = None,
        codes: NDArray[np.int8] | None = None,
        short_codes: bytes | None = None,
        max_length: float = 0.0,
    ) -> None:
        self.projection = projection
        dim = len(projection.matrix)
        self._ids = np.empty(0, np.int64) if ids is None else ids
        self._scales = np.empty(0, np.float32) if scales is None else scales
        self._codes = np.empty((0, dim), np.int8) if codes is None else codes
        self.max_length = max_length
        self._index = projection.empty() if short_codes is None else _deserialized(short_codes)
        lengths = {len(self._ids), len(self._scales), len(self._codes), self._index.ntotal}
        if len(lengths) > 1 or self._codes.shape[1] != dim:
            raise ValueError("the files of the index do not belong together.")

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def ids(self) -> NDArray[np.int64]:
        """`[n]`; a view."""
        return self._ids[: len(self)]

    @property
    def scales(self) -> NDArray[np.float32]:
        """`[n]`; a view."""
        return self._scales[: len(self)]

    @property
    def codes(self) -> NDArray[np.int8]:
        """`[n, dim]`, keys rounded to 8 bits; a view."""
        return self._codes[: len(self)]

    def short_codes(self) -> bytes:
        """All short codes and what made them."""
        import faiss

        return faiss.serialize_index(self._index).tobytes()

    def add(self, ids: NDArray[np.int64], keys: NDArray[np.float32]) -> NDArray[np.int64]:
        """Adds keys `[n, dim]` under `ids`; gives their rows."""
        if not len(ids):  # faiss cannot add none to none.
            return np.empty(0, np.int64)
        first, end = len(self), len(self) + len(ids)
        if end > len(self._ids):
            capacity = max(end, first * 5 // 4)
            self._ids, self._scales, self._codes = (
                _grown(rows, first, capacity) for rows in (self._ids, self._scales, self._codes)
            )
        self._ids[first:end] = ids
        self._codes[first:end], self._scales[first:end] = quantized(keys)
        self.max_length = max(self.max_length, float(np.linalg.norm(keys, axis=1).max()))
        with _one_thread():
            self._index.add(self.projection.apply(keys))
        return np.arange(first, end)

    def remove(self, row: int) -> int:
        """Removes a row; gives the id of the row that took its place, the last one."""
        import faiss

        last, index = len(self) - 1, self._index
        packer = index.get_CodePacker()
        blocks = faiss.rev_swig_ptr(index.codes.get(), index.codes.size()).reshape(-1, 1, packer.block_size)
        (block, place), (last_block, last_place) = divmod(row, packer.nvec), divmod(last, packer.nvec)
        packer.pack_1(packer.unpack_1(blocks[last_block], last_place), place, blocks[block])
        # faiss adds codes to what is in a free place by a bitwise or.
        packer.pack_1(np.zeros(packer.code_size, np.uint8), last_place, blocks[last_block])
        for rows in (self._ids, self._scales, self._codes):
            rows[row] = rows[last]
        index.ntotal = last
        return int(self._ids[row])

    def nearest(self, query: Query, k: int, among: NDArray[np.int64] | None = None) -> Candidates:
        """Candidates for the best `k` rows: ids, scores, and how wrong these may be. With `among`, of these rows."""
        import numkong

        rows, n = among, max(_SHORTLIST, 50 * k)
        if rows is None and n < len(self):
            with _one_thread():
                rows = self._index.search(query.projected, n)[1][0]
            rows = np.sort(rows[rows >= 0])  # faiss pads with -1.
        elif rows is None:
            rows = np.arange(len(self))
        products = [
            np.asarray(numkong.cdist(query.codes, self._codes.take(rows[start : start + _SCAN], 0), "dot"))[0]
            for start in range(0, len(rows), _SCAN)
        ]
        scales = self._scales[rows]
        scores = np.concatenate([np.empty(0), *products]) * (scales * query.scale)
        if len(rows) > k + _MARGIN:
            best = np.argpartition(-scores, k + _MARGIN)[: k + _MARGIN]
            rows, scores, scales = rows[best], scores[best], scales[best]
        errors = _ERROR * np.hypot(scales * query.length, query.scale * self.max_length)
        return self._ids[rows], scores, errors


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
