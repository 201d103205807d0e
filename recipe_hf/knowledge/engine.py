"""The interface of a storage engine: all that [`KnowledgeBase`] uses; [`local`] and [`qdrant.engine`] implement it.

An [`Engine`] holds namespaces. The facts of one are a [`Space`], in a [`Store`] whose changes are whole; an [`Index`]
searches among their keys. All of it is used inside a `view` or a `change`, by any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .facts import Fact, NewFact, PastFact
from .search.key_index import Found


@dataclass(frozen=True)
class State:
    """The state of a namespace at one moment.

    Attributes:
        size: How many facts are present.
        next_id: The next fact's id.
        num_past: How many facts have left.
        encoder_fingerprint: Names the weights that made the keys.
        rekeyed_at: When all keys were last replaced; empty if never.
        changed_at: When anything was last changed.
    """

    size: int = 0
    next_id: int = 0
    num_past: int = 0
    encoder_fingerprint: str | None = None
    rekeyed_at: str = ""
    changed_at: str = ""


class Engine(Protocol):
    """Holds namespaces, each with facts and ids of its own that no other can reach."""

    def index(self, namespace: str) -> Index:
        """The index of a namespace, and through its `space` the facts. Each call returns the same one."""

    def namespaces(self) -> list[str]:
        """The names of all namespaces that hold or held facts."""

    def close(self) -> None:
        """Closes all namespaces. May be called more than once."""


class Store(Protocol):
    """What keeps facts."""

    @property
    def path(self) -> Path | str | None:
        """What to call it in messages; None in memory."""

    @property
    def dim(self) -> int | None:
        """Width of the keys; None before there is one."""

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""

    def view(self) -> AbstractContextManager[None]:
        """Context in which everything read is as of one moment. A nested one joins the outer one."""

    def change(self) -> AbstractContextManager[None]:
        """Context whose changes are all made, and last, when it ends; if it raises, none is. So with those in it."""


class Space(Protocol):
    """The facts of a namespace. Whoever adds and ends facts sets `state` before the change ends."""

    state: State

    @property
    def name(self) -> str:
        """The namespace."""

    @property
    def store(self) -> Store:
        """What keeps it."""

    def change(self) -> AbstractContextManager[None]:
        """Context whose changes are all made, durably, when it ends; if it raises, none is."""

    def fix_dim(self, dim: int) -> None:
        """Sets the width of keys, unless it is set already."""

    def prefetch(self, ids: Iterable[object] = (), about: Iterable[str] = (), with_keys: bool = False) -> None:
        """Says what is about to be read, one by one, so that a remote engine can fetch it in one request.

        Args:
            ids: Ids of facts; anything else is ignored.
            about: Prompts or statements of present facts.
            with_keys: Whether the keys of `ids` are about to be read too.
        """

    def get(self, id: int) -> Fact | None:
        """The fact with this id, present or past."""

    def present(self) -> list[Fact]:
        """The facts there are now, oldest first."""

    def past(self, about: str | None = None) -> list[PastFact]:
        """The facts that left, in order; with `about`, those about this prompt or statement."""

    def conflicts(self, new: NewFact) -> list[Fact]:
        """The present facts that cannot stay beside `new`."""

    def insert(self, fact: Fact, key: NDArray[np.float32] | None, departure: int | None = None) -> None:
        """Adds a fact. A past one has a `departure`, its number in the order of leaving, and may have no key."""

    def end(self, fact: Fact, departure: int, ended_at: str, reason: str, replaced_by: int | None = None) -> None:
        """Makes a present fact a past one."""

    def ids(self) -> NDArray[np.int64]:
        """Ids of the present facts, ascending."""

    def key(self, id: int) -> NDArray[np.float32] | None:
        """The key `[dim]` of a fact, present or past; None for a past one whose key is not known."""

    def keys(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Keys `[len(ids), dim]` of present facts."""

    def replace_keys(self, ids: Sequence[int], keys: NDArray[np.float32]) -> None:
        """Gives present facts new keys, and drops those of past ones, which other weights made."""


class Index(Protocol):
    """Search among the keys of a namespace. It keeps up with every change by itself."""

    @property
    def space(self) -> Space:
        """The namespace."""

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        threads: int,
        where: Mapping[str, Any] | None = None,
        valid_only: bool = True,
    ) -> Found:
        """The best keys for each query, best first; of equal best keys the smallest id wins.

        If there are fewer than `k` keys, there are fewer columns, or the rest is filled as in [`nothing`].

        Args:
            queries: `[b, dim]`, `b` > 0.
            k: How many keys to find for each query.
            threads: How many threads may be used.
            where: Values that the metadata of a fact must have; all facts by default.
            valid_only: Whether to leave out what is not valid now.
        """
