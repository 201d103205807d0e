"""Opening and closing a knowledge base: in memory, in a file, or in a namespace of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .checks import check_namespace, check_positive
from .engine import Engine, Index, Space, Store
from .local import LocalEngine
from .search.live_index import FULL_SCAN_THRESHOLD
from .sqlite.store import SqliteStore

if TYPE_CHECKING:
    from typing import Self


class Opening:
    """The part of [`KnowledgeBase`] that is a namespace of an engine."""

    full_scan_threshold = FULL_SCAN_THRESHOLD
    _engine: Engine
    _index: Index
    _space: Space
    _store: Store

    def __init__(self, dim: int, *, full_scan_threshold: int = FULL_SCAN_THRESHOLD) -> None:
        check_positive("dim", dim)
        check_positive("full_scan_threshold", full_scan_threshold)
        self.full_scan_threshold = full_scan_threshold
        self._enter(LocalEngine(SqliteStore.memory(dim), full_scan_threshold), "")

    def _enter(self, engine: Engine, namespace: str) -> None:
        """Makes this the knowledge base of a namespace."""
        check_namespace(namespace)
        self._engine = engine
        self._index = engine.index(namespace)
        self._space = self._index.space
        self._store = self._space.store

    @classmethod
    def _of(cls, engine: Engine, namespace: str, full_scan_threshold: int) -> Self:
        base = cls.__new__(cls)
        base.full_scan_threshold = full_scan_threshold
        base._enter(engine, namespace)
        return base

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        dim: int | None = None,
        *,
        read_only: bool = False,
        namespace: str = "",
        full_scan_threshold: int = FULL_SCAN_THRESHOLD,
    ) -> Self:
        """Opens the knowledge base in a file, or makes one if there is none.

        When `add` or another change returns, it is on disk. One process may write at a time, and any number may read
        meanwhile. Beside the file lie its write-ahead log, the name of the writing process, and the index, which is
        rebuilt whenever it is missing, outdated or damaged.

        Args:
            path: The file.
            dim: Width of the keys. By default that of the keys in the file, or of the first ones added.
            read_only: Whether to leave writing to another process, whose changes become visible as they are made.
            namespace: Which namespace of the file, as in `namespace`.
            full_scan_threshold: As for a knowledge base in memory.

        Raises:
            BlockingIOError: If it is open for writing already; the message says where.
            FileNotFoundError: If there is no such file and `read_only` is set.
            OSError: If the file cannot be read or written.
            ValueError: If the file is damaged, of a newer version, or something else; if `dim` is not the width of its
                keys.
        """
        if dim is not None:
            check_positive("dim", dim)
        check_positive("full_scan_threshold", full_scan_threshold)
        check_namespace(namespace)
        engine = LocalEngine(SqliteStore.open(path, dim, read_only), full_scan_threshold)
        return cls._of(engine, namespace, full_scan_threshold)

    def close(self) -> None:
        """Closes the file, for all namespaces. Without it nothing is lost, but the index may have to be rebuilt."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def namespace(self, name: str) -> Self:
        """The knowledge base of another namespace of the same store, with facts and ids of its own.

        No fact of one can be found, listed, replaced or removed from another.

        Args:
            name: The namespace; "" is the default one.
        """
        return self._of(self._engine, name, self.full_scan_threshold)

    def namespaces(self) -> list[str]:
        """The names of all namespaces that hold or held facts."""
        return self._engine.namespaces()

    @property
    def dim(self) -> int | None:
        """Width of the keys; None in a store that has none yet."""
        return self._store.dim
