"""A cache of encoded queries: what was looked up lately need not be encoded again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class QueryCache:
    """Representations of the queries asked last, by one state of the weights. Threads may share it.

    It keeps digests of the queries, not their texts. A copy of it starts empty.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, Tensor] = {}  # The one used last comes last.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[QueryCache], tuple[()]]:
        return type(self), ()

    def encode(self, queries: Sequence[str], encode: Callable[[list[str]], Tensor], size: int) -> Tensor:
        """Representations `[len(queries), dim]`; those not known are asked of `encode`, each once.

        Args:
            queries: Texts, at least one.
            encode: Gives the representations `[n, dim]` of `n` texts.
            size: How many representations to keep, at most.
        """
        digests = [hashlib.sha256(query.encode("utf-8", "surrogatepass")).digest() for query in queries]
        with self._lock:
            self._shrink(size)
            found = {digest: self._rows.pop(digest) for digest in dict.fromkeys(digests) if digest in self._rows}
            self._rows |= found
        new = {digest: query for digest, query in zip(digests, queries, strict=True) if digest not in found}
        if new:
            rows = dict(zip(new, encode(list(new.values())).unbind(), strict=True))
            found |= rows
            with self._lock:
                # Copies: a view would keep its whole batch.
                self._rows |= {digest: row.clone() for digest, row in rows.items()}
                self._shrink(size)
        return torch.stack([found[digest] for digest in digests])

    def _shrink(self, size: int) -> None:
        for digest in list(self._rows)[: max(0, len(self._rows) - size)]:
            del self._rows[digest]
