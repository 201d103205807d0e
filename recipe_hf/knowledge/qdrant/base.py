"""The knowledge base in Qdrant: the same interface, the same results, shared by several machines."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..base import KnowledgeBase, OnConflict
from ..checks import check_namespace, checked_ids
from ..contents import Contents
from ..facts import Fact, NewFact, parse_facts
from .engine import QdrantEngine
from .server import Server
from .space import QdrantSpace
from .store import QdrantStore

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor


class QdrantKnowledgeBase(KnowledgeBase):
    """A [`KnowledgeBase`] whose facts are in Qdrant: give it to a model by `model.knowledge = ...`.

    Every operation happens whole or not at all, and is made, on as many replicas as it takes, when it returns. Any
    number of machines may read, and change facts, one after the other. A namespace is a collection of its own.

    Copies (`snapshot`, `load`, `pickle`) live in memory; `copy_to` writes a file, and `copy_from` reads one in.

    Args:
        location: The URL of a server or a cluster; or for Qdrant's local mode, which serves one process and small
            tests, a directory or ":memory:".
        collection: The name of the collection, made if it is not there. Those of namespaces begin with it.
        dim: Width of the keys, `knowledge_dim`. By default that of the collection.
        namespace: As in [`KnowledgeBase.namespace`].
        read_only: Whether to refuse changes.
        exact: Whether a query is compared with every key. If not, Qdrant walks its HNSW graph, which is faster beyond
            some hundred thousand facts, and may miss the closest. Either way it only names candidates: scores and
            order are float32 dot products with the keys themselves.
        timeout: Seconds that a request may take; whole ones. A connection that fails is tried once more. A writer of
            which nothing is heard for three times as long is taken for dead.
        replication_factor: On how many nodes of a cluster a new collection is kept. More than half of them must take
            a change.
        **client_options: Further arguments of `QdrantClient`, such as `api_key` and `prefer_grpc`.

    Raises:
        BlockingIOError: If the directory is used by another process.
        ConnectionError: If the server cannot be reached.
        ValueError: If the collection is of something else, `dim` is not its width, or it is new and there is no `dim`.
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
        """Puts a copy of everything in another knowledge base here, with the same ids, times, history and keys.

        Of several namespaces, each is copied whole or not at all, one after the other.

        Args:
            knowledge: The other one.
            namespace: Which namespace of it to copy alone, into this one. By default all are copied, each to the one
                of its name.

        Raises:
            ValueError: If there are or were facts in such a namespace here, or the keys are of another width.
        """
        if namespace is None:
            everything = knowledge._everything()
        else:
            everything = {self._space.name: knowledge.namespace(namespace)._contents()}
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
        """Puts a copy of everything into a file, and opens that: see [`KnowledgeBase.copy_to`]."""
        return (copy.deepcopy(self) if namespace is None else self.snapshot()).copy_to(path, namespace)

    @classmethod
    def _holding_all(cls, everything: Mapping[str, Contents], full_scan_threshold: int) -> KnowledgeBase:  # type: ignore[override]
        return KnowledgeBase._holding_all(everything, full_scan_threshold)

    # ------------------------------------------------------------------ the same, with fewer requests

    def add(
        self,
        facts: Iterable[Any],
        keys: Tensor,
        on_conflict: OnConflict = "replace",
        encoder_fingerprint: str | None = None,
        supersedes: Sequence[Sequence[NewFact]] = (),
    ) -> list[int]:
        """As [`KnowledgeBase.add`]."""
        new = parse_facts(facts)
        with self._store.change():
            self._space.load_subjects(fact.about for fact in new)
            self._space.load(old.id for of_one in supersedes for old in of_one if isinstance(old, Fact))
            return super().add(new, keys, on_conflict, encoder_fingerprint, supersedes)

    def conflicts(self, facts: Iterable[NewFact]) -> list[list[Fact]]:
        """As [`KnowledgeBase.conflicts`]."""
        new = list(facts)
        with self._store.view():
            self._space.load_subjects(fact.about for fact in new)
            return super().conflicts(new)

    def remove(self, ids: int | Iterable[int]) -> None:
        """As [`KnowledgeBase.remove`]."""
        ids = checked_ids(ids, or_one=True)
        with self._store.change():
            self._space.load(ids)
            super().remove(ids)

    def keys(self, ids: Iterable[int]) -> Tensor:
        """As [`KnowledgeBase.keys`]."""
        ids = checked_ids(ids)
        with self._store.view():
            self._space.load(ids, with_keys=True)
            return super().keys(ids)

    def _contents(self) -> Contents:
        with self._store.view():
            self._space.load_all(with_keys=True)
            self._space.load_all(past=True, with_keys=True)
            return super()._contents()
