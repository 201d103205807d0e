"""The index of the facts in use: a cache of the store, in memory and beside the store's file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .. import timestamps
from .files import read_file, read_manifest, write_files
from .key_index import KeyIndex
from .space import Space, State

logger = logging.getLogger(__name__)

_FILE = "index.safetensors"


class LiveIndex:
    """Finds keys among the facts of a namespace that are present and valid now. It follows the store by itself.

    Beside a store on disk it leaves a copy of itself, checked when read and made anew if it is missing, damaged, or
    not of this store. Use it inside a `view` of the store.

    Args:
        space: The namespace.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._index: KeyIndex | None = None
        # The state of the namespace that the index is of, and the one that its file is of.
        self._state = State()
        self._saved: State | None = None
        # When a fact next begins or ceases to be valid.
        self._next_change: str | None = None

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        threads: int,
        where: Mapping[str, Any] | None = None,
        valid_only: bool = True,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """As [`KeyIndex.search`], with the keys found, `[b, n, dim]`.

        Args:
            queries: `[b, dim]`, `b` > 0.
            k: How many.
            threads: How many may search.
            where: Values that the metadata of a fact must have; all facts by default.
            valid_only: Whether to leave out what is not valid now.
        """
        index = self._current()
        if not valid_only:
            index = self._with_idle(index)
        among = None if where is None else self._space.labelled_ids(where)
        ids, scores = index.search(queries, k, threads, among)
        return ids, scores, index.get(ids)

    def _with_idle(self, index: KeyIndex) -> KeyIndex:
        """The index together with the present facts that are not valid now."""
        idle = np.setdiff1d(self._space.ids(), index.ids, assume_unique=True)
        if not len(idle):
            return index
        whole = KeyIndex(self._space.store.dim or 0)
        whole.add(index.ids, index.keys)
        whole.add(idle, self._space.keys(idle))
        return whole

    def save(self) -> None:
        """Writes the index beside the store, if it was used and has changed. Failing is no harm."""
        if self._index is None or self._directory is None:
            return
        try:
            index = self._current()
            if self._state != self._saved:
                arrays: dict[str, NDArray] = {"ids": index.ids, "keys": index.keys}
                write_files(self._directory, {_FILE: save_arrays(arrays)}, self._origin(self._state.next_id))
                self._saved = self._state
        except (OSError, ValueError) as error:
            logger.warning(f"The index was not saved, and will be made anew ({error}).")

    def _current(self) -> KeyIndex:
        """The index, brought in step with the store."""
        space, state, time = self._space, self._space.state, timestamps.now()
        is_due = self._next_change is not None and self._next_change <= time
        if self._index is not None and state == self._state and not is_due:
            return self._index
        index, self._index = self._index, None
        if index is None:
            index, is_due = self._read(state), True
        elif state.rekeyed_at != self._state.rekeyed_at:
            index, is_due = KeyIndex(space.store.dim or 0), True
        if is_due:
            valid = space.valid_ids(time)
            index.remove(np.setdiff1d(index.ids, valid, assume_unique=True))
            new = np.setdiff1d(valid, index.ids, assume_unique=True)
        else:
            index.remove(np.intersect1d(space.departed_ids(self._state.num_past), index.ids).astype(np.int64))
            new = space.valid_ids(time, first=self._state.next_id)
        index.add(new, space.keys(new))
        self._index, self._state = index, state
        self._next_change = space.next_validity_change(time)
        return index

    def _read(self, state: State) -> KeyIndex:
        """The index as it was saved, or an empty one where that cannot be used."""
        index = KeyIndex(self._space.store.dim or 0)
        if self._directory is None or not self._directory.exists():
            return index
        try:
            manifest = read_manifest(self._directory)
            next_id = manifest["next_id"]
            if next_id > state.next_id or any(manifest[name] != it for name, it in self._origin(next_id).items()):
                raise ValueError("it is of another store, or of other keys.")
            arrays = load_arrays(read_file(self._directory, _FILE, manifest))
            index.add(arrays["ids"], arrays["keys"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning(f"The index is made anew: {error}")
            return KeyIndex(self._space.store.dim or 0)
        return index

    def _origin(self, next_id: int) -> dict[str, Any]:
        """What only the index of this namespace can say, if it was made when the next id was `next_id`.

        A copy of the store that went on by itself gave the id before it at another moment, if at all.
        """
        last = self._space.get(next_id - 1)
        return {
            "store": self._space.store.uuid,
            "namespace": self._space.name,
            "next_id": next_id,
            "last_created_at": last and last.created_at,
            "rekeyed_at": self._space.state.rekeyed_at,
        }

    @property
    def _directory(self) -> Path | None:
        path = self._space.store.path
        name = hashlib.sha256(self._space.name.encode()).hexdigest()[:16]
        return path and path.with_name(path.name + "-index") / name
