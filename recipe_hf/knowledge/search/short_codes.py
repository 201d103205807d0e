"""Short codes of keys (4-bit product quantisation, by faiss): how they are made, and the scan through all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTH = 192  # Dimensions of what is coded,
_BLOCK = 4  # and how many of them share 4 bits.
_SMALL = 32  # Up to this many vectors, threads of a matrix product cost more than they save.
SHARDS = 2  # Each is scanned by a thread of its own.


class Projection:
    """The main directions of a sample of keys, randomly rotated, and the codes fitted to what lies in them.

    The rotation spreads the variance evenly over the blocks of a code, which gave better codes than any order of the
    directions.

    Attributes:
        matrix: `[dim, width]`.
    """

    def __init__(self, matrix: NDArray[np.float32], index: Any) -> None:
        self.matrix = matrix
        self._packed: Any = None
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

        if self._packed is None:
            self._packed = numkong.dots_pack(np.ascontiguousarray(self.matrix.T))
        return np.asarray(numkong.dots_packed(vectors, self._packed)).astype(np.float32)

    def empty(self) -> bytes:
        """A faiss index without codes in it."""
        import faiss

        return faiss.serialize_index(self._index).tobytes()


class ShortCodes:
    """Short codes in rows without gaps, dealt to the shards in turn. A search scans all of them.

    Args:
        shards: As `contents` gave them, or empty ones.
    """

    def __init__(self, shards: Sequence[bytes]) -> None:
        import faiss

        self._shards: list[Any] = [faiss.deserialize_index(np.frombuffer(shard, np.uint8)) for shard in shards]
        self._packer = self._shards[0].get_CodePacker()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def __len__(self) -> int:
        return sum(shard.ntotal for shard in self._shards)

    def contents(self) -> list[bytes]:
        """Everything, as bytes, for each shard."""
        import faiss

        return [faiss.serialize_index(shard).tobytes() for shard in self._shards]

    def add(self, projected: NDArray[np.float32]) -> None:
        """Adds the codes of projected keys `[n, width]`."""
        first = len(self)
        with _one_thread():
            for number, shard in enumerate(self._shards):
                own = projected[(number - first) % SHARDS :: SHARDS]
                if len(own):  # faiss cannot add nothing to nothing.
                    shard.add(np.ascontiguousarray(own))

    def remove(self, row: int) -> None:
        """Removes a row; the last one takes its place."""
        last, packer = len(self) - 1, self._packer
        code = packer.unpack_1(*self._block(last))
        block, place = self._block(row)
        packer.pack_1(code, place, block)
        # faiss combines new codes with what is in a free place by a bitwise or: clear it.
        block, place = self._block(last)
        packer.pack_1(np.zeros(packer.code_size, np.uint8), place, block)
        self._shards[last % SHARDS].ntotal -= 1

    def code(self, row: int) -> NDArray[np.uint8]:
        """The code of a row."""
        code: NDArray[np.uint8] = self._packer.unpack_1(*self._block(row))
        return code

    def _block(self, row: int) -> tuple[NDArray[np.uint8], int]:
        """The block of codes that a row is in, a view, and its place there."""
        import faiss

        codes = self._shards[row % SHARDS].codes
        number, place = divmod(row // SHARDS, self._packer.nvec)
        size = self._packer.block_size
        whole = faiss.rev_swig_ptr(codes.get(), codes.size())
        return whole[number * size : (number + 1) * size].reshape(1, size), place

    def best(self, query: NDArray[np.float32], n: int, threads: int) -> NDArray[np.int64]:
        """The `n` rows that seem best for a projected query `[1, width]`, an equal part from each shard.

        Fewer if many codes are alike.
        """
        with _one_thread():
            searches = [partial(shard.search, query, -(-n // SHARDS)) for shard in self._shards]
            others = [self._others().submit(search) for search in searches[1:]] if threads > 1 else []
            found = [search() for search in searches[: SHARDS - len(others)]] + [other.result() for other in others]
        return np.concatenate([rows[0][rows[0] >= 0] * SHARDS + i for i, (_, rows) in enumerate(found)])

    def _others(self) -> ThreadPoolExecutor:
        """Threads for all shards but one, made anew after a fork."""
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(SHARDS - 1, "knowledge-search")
        return self._pool[1]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which faiss uses the calling thread alone: its other threads would wait busily."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
