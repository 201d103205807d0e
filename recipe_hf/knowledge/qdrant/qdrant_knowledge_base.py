"""The knowledge base in Qdrant: the same interface, the same results, shared by several machines."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..checks import check_namespace
from ..contents import Contents
from ..knowledge_base import KnowledgeBase
from .engine import QdrantEngine
from .server import Server
from .space import QdrantSpace
from .store import QdrantStore

if TYPE_CHECKING:
    from typing import Self


class QdrantKnowledgeBase(KnowledgeBase):
    """A [`KnowledgeBase`] whose facts are in Qdrant: give it to a model by `model.knowledge = ...`.

    Every operation happens whole or not at all, and has reached as many replicas as it needs when it returns. Any
    number of machines may read; they change facts one after the other. A namespace is a collection of its own.

    Copies (`snapshot`, `load`, `pickle`) live in memory; `copy_to` writes a file, and `copy_from` reads one in.

    Args:
        location: The URL of a server or a cluster; or for Qdrant's local mode, which serves one process and small
            tests, a directory or ":memory:".
        collection: The name of the collection, made if it is not there. Names of those of namespaces begin with it.
        dim: Width of the keys, `knowledge_dim`. By default that of the collection.
        namespace: As in [`KnowledgeBase.namespace`].
        read_only: Whether to refuse changes.
        exact: Whether a query is compared with every key. If not, Qdrant searches its HNSW graph, which is faster from
            some hundred thousand facts on, and may miss the closest. Either way it only names candidates: scores and
            order are float32 dot products with the keys themselves.
        timeout: Seconds that a request may take, an integer. A connection that fails is tried once more. The lease of
            a writer expires after three times as long without a sign of life.
        replication_factor: On how many nodes of a cluster a new collection is kept. A change must reach more than half
            of them.
        **client_options: Further arguments of `QdrantClient`, such as `api_key` and `prefer_grpc`.

    Raises:
        BlockingIOError: If another process uses the directory.
        ConnectionError: If the server cannot be reached.
        ValueError: If the collection is something else, or `dim` not its width, or missing for a new one.
    """

    _store: QdrantStore
    _space: QdrantSpace

    def __init__(
        self,
        location: str | os.PathLike[str],
        collection: str = "recipe",
        dim: int | None = None,
        *,
        namespace: str = "",
        read_only: bool = False,
        exact: bool = True,
        timeout: int = 10,
        replication_factor: int = 1,
        **client_options: Any,
    ) -> None:
        given = {"timeout": timeout, "replication_factor": replication_factor} | ({} if dim is None else {"dim": dim})
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        check_namespace(namespace)
        server = Server(location, timeout, **client_options)
        try:
            store = QdrantStore(server, collection, dim, "", read_only, replication_factor)
            if store.dim is None and not read_only:
                raise ValueError(f"dim must be given for a new collection, and {collection!r} is one, got None.")
            if not read_only:
                store.create()
            self._enter(QdrantEngine(store, exact), namespace)
        except BaseException:
            server.close()
            raise

    @classmethod
    def open(cls, *args: Any, **kwargs: Any) -> Self:
        """The same as the constructor."""
        return cls(*args, **kwargs)

    def copy_from(self, knowledge: KnowledgeBase, namespace: str | None = None) -> None:
        """Copies everything from another knowledge base to this one, with the same ids, times, history and keys.

        Of several namespaces, each is copied whole or not at all, one after the other.

        Args:
            knowledge: The other one.
            namespace: The namespace of it to copy to this one. By default all are copied, each to the one of its name.

        Raises:
            ValueError: If such a namespace here has or had facts, or the keys are of another width.
        """
        if namespace is None:
            everything = knowledge._everything()
        else:
            everything = {self._space.name: knowledge.namespace(namespace).contents()}
        bases = {name: self.namespace(name) for name in everything}
        for name, contents in everything.items():
            bases[name]._check_empty()
            if contents.dim not in (None, self.dim):
                raise ValueError(f"knowledge must have keys of width {self.dim}, got {contents.dim}.")
        for name, contents in everything.items():
            with bases[name]._space.change():
                bases[name]._check_empty()
                contents.fill(bases[name]._space)

    def _check_empty(self) -> None:
        with self._store.view():
            if self._space.state.next_id:
                raise ValueError(f"copy_from needs an empty knowledge base, got {self!r}, which holds or held facts.")

    def copy_to(self, path: str | os.PathLike[str], namespace: str | None = None) -> KnowledgeBase:  # type: ignore[override]
        """Copies everything to a file, and opens it: see [`KnowledgeBase.copy_to`]."""
        return (copy.deepcopy(self) if namespace is None else self.snapshot()).copy_to(path, namespace)

    @classmethod
    def _holding_all(cls, everything: Mapping[str, Contents], full_scan_threshold: int) -> KnowledgeBase:  # type: ignore[override]
        return KnowledgeBase._holding_all(everything, full_scan_threshold)

    def contents(self) -> Contents:
        """As [`KnowledgeBase.contents`], with few requests."""
        with self._store.view():
            self._space.load_all(with_keys=True)
            self._space.load_all(past=True, with_keys=True)
            return super().contents()
