"""The engine of knowledge bases in Qdrant: one collection for each namespace."""

from __future__ import annotations

from .index import QdrantIndex
from .space import QdrantSpace
from .store import QdrantStore


class QdrantEngine:
    """The collection of the default namespace, and those of the others.

    Args:
        store: The default namespace's.
        exact: Whether Qdrant compares a query with every key, rather than search its HNSW graph.
    """

    def __init__(self, store: QdrantStore, exact: bool) -> None:
        self._store = store
        self._exact = exact
        self._indexes: dict[str, QdrantIndex] = {}

    def index(self, namespace: str) -> QdrantIndex:
        """The index of a namespace. Each call returns the same one."""
        if namespace not in self._indexes:
            store = self._store if namespace == self._store.namespace else self._store.of(namespace)
            self._indexes.setdefault(namespace, QdrantIndex(QdrantSpace(store), self._exact))
        return self._indexes[namespace]

    def namespaces(self) -> list[str]:
        """The names of all namespaces that hold or held facts."""
        return self._store.namespaces()

    def close(self) -> None:
        """Closes the connection, for all namespaces."""
        self._store.close()
