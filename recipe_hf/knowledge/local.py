"""The engine of knowledge bases in memory and in files: SQLite stores the facts, an index beside it finds them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from .contents import Contents
from .search.live_index import LiveIndex
from .sqlite.space import SqliteSpace
from .sqlite.store import SqliteStore


class LocalEngine:
    """A store, and the indexes of its namespaces.

    Args:
        store: The store.
        full_scan_threshold: Up to this many facts, a query is compared with every key.
    """

    def __init__(self, store: SqliteStore, full_scan_threshold: int) -> None:
        self.store = store
        self._threshold = full_scan_threshold
        self._indexes: dict[str, LiveIndex] = {}

    def index(self, namespace: str) -> LiveIndex:
        """The index of a namespace. Each call returns the same one."""
        new = LiveIndex(SqliteSpace(self.store, namespace), self._threshold)
        return self._indexes.setdefault(namespace, new)  # Atomic.

    def namespaces(self) -> list[str]:
        """The names of all namespaces that hold or held facts."""
        with self.store.view():
            return self.store.namespaces()

    def fill(self, everything: Mapping[str, Contents], path: str | os.PathLike[str] | None = None) -> None:
        """Puts what several namespaces hold into empty ones, all or none.

        Raises:
            ValueError: If there are or were facts in one of them; the message names `path`.
        """
        with self.store.change():
            for name, contents in everything.items():
                space = SqliteSpace(self.store, name)
                if space.state.next_id:
                    raise ValueError(f"path must be that of an empty knowledge base, got {path}, which has facts.")
                contents.fill(space)

    def close(self) -> None:
        """Closes the file. Without it nothing is lost, but the indexes may have to be rebuilt."""
        store = self.store
        try:
            if store.is_open and store.path is not None and not store.read_only and store.missing_file is None:
                with store.view():
                    for index in list(self._indexes.values()):
                        index.save()
        finally:
            store.close()
