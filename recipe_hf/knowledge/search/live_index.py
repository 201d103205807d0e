"""The search index of a namespace: kept in step with its store, and cached beside the store's file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .. import timestamps
from ..engine import Space, State, Store
from ..files import MANIFEST, read_array, read_manifest, write_files
from . import code_index
from .code_index import CodeIndex
from .key_index import Found, KeyIndex

logger = logging.getLogger(__name__)

FULL_SCAN_THRESHOLD = 10_000
_FILE = "index.safetensors"
_CHUNK = 20_000  # Keys read at once.
_UNSAVED = 0.1  # The share of new facts at which an index of codes is saved again.


class TrackedStore(Store, Protocol):
    """A store on this machine, beside which an index may be saved."""

    @property
    def path(self) -> Path | None:
        """The file; None in memory."""

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written to it, or beside it."""

    @property
    def uuid(self) -> str:
        """Names the store, as long as it exists."""


class TrackedSpace(Space, Protocol):
    """A space that says which facts came and went, so that an index can keep up with it."""

    @property
    def store(self) -> TrackedStore:
        """What keeps it."""

    def valid_ids(self, time: str, first: int = 0) -> NDArray[np.int64]:
        """Ids of the present facts that are used at `time`, from the id `first` on, ascending."""

    def idle_ids(self, time: str) -> NDArray[np.int64]:
        """Ids of the present facts that are not used at `time`, ascending."""

    def begun_ids(self, since: str, time: str) -> NDArray[np.int64]:
        """Ids of the present facts that are used at `time`, and were not at `since`, before it, ascending."""

    def ended_ids(self, since: str, time: str) -> NDArray[np.int64]:
        """Ids of the present facts that ceased to be used after `since`, up to `time`, ascending."""

    def next_validity_change(self, time: str) -> str | None:
        """When, after `time`, a present fact next begins or ceases to be used."""

    def departed_ids(self, first: int) -> list[int]:
        """Ids of the facts that left, from the departure `first` on."""

    def departure(self, number: int) -> Sequence[int | str] | None:
        """Id and time of the departure with this number; None if there was none."""

    def labelled_ids(self, where: Mapping[str, Any]) -> NDArray[np.int64]:
        """Ids of the present facts whose metadata hold all of `where`, ascending."""


class LiveIndex:
    """Finds keys among the facts of a namespace that are present and valid now. It keeps up with the store by itself.

    Up to a number of facts it compares a query with every key; beyond it, it searches by codes ([`code_index`]). It
    saves a copy of itself beside a store on disk, checked when read, and rebuilt if it is missing, damaged, or of
    another store. Use it inside a `view` of the store.

    Args:
        space: The namespace.
        full_scan_threshold: Up to this many facts, a query is compared with every key.
    """

    def __init__(self, space: TrackedSpace, full_scan_threshold: int = FULL_SCAN_THRESHOLD) -> None:
        self.space = space
        self._threshold = full_scan_threshold
        self._index: KeyIndex | CodeIndex | None = None
        # The state of the namespace that the index is of, and the one that its file is of.
        self._state = State()
        self._saved: State | None = None
        # When it was last brought in step, and when a fact next begins or ceases to be valid.
        self._time = ""
        self._next_change: str | None = None

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        threads: int,
        where: Mapping[str, Any] | None = None,
        valid_only: bool = True,
    ) -> Found:
        """As [`Index.search`][recipe_hf.knowledge.engine.Index.search]: at most as many as there are."""
        index = self._current()
        among = None if where is None else self.space.labelled_ids(where)
        ids, scores, keys = index.search(queries, k, threads, among)
        idle = KeyIndex(self.space.store.dim or 0)
        if not valid_only:
            idle.add(idle_ids := self.space.idle_ids(timestamps.now()), self.space.keys(idle_ids))
        if not len(idle):
            return ids, scores, keys
        others, other_scores, other_keys = idle.search(queries, k, threads, among)
        ids, scores = np.concatenate([ids, others], 1), np.concatenate([scores, other_scores], 1)
        keys = np.concatenate([keys, other_keys], 1)
        best = np.lexsort((ids, -scores))[:, :k]
        return (
            np.take_along_axis(ids, best, 1),
            np.take_along_axis(scores, best, 1),
            np.take_along_axis(keys, best[..., None], 1),
        )

    def save(self) -> None:
        """Writes the index beside the store, if it was used and has changed. A failure is only logged."""
        if self._index is None or self._directory is None:
            return
        with _failing_is_no_harm():
            index = self._current()
            if self._state != self._saved:
                self._write(index)

    def _write(self, index: KeyIndex | CodeIndex) -> None:
        assert self._directory is not None
        if isinstance(index, CodeIndex):
            files: dict[str, Any] = dict(index.files())
        else:
            files = {_FILE: save_arrays({"ids": index.ids, "keys": index.keys})}
        write_files(self._directory, files, {**self._origin(self._state), "time": self._time})
        self._saved = self._state
        for path in self._directory.iterdir():
            if path.name not in (*files, MANIFEST):  # Left by an index of the other kind.
                path.unlink()

    def _save_if_much_is_new(self) -> None:
        """Saves an index of codes now and then: if nobody closes it, rebuilding it would take long."""
        store, index = self.space.store, self._index
        if not isinstance(index, CodeIndex) or store.path is None or store.read_only:
            return
        saved = self._saved or State()
        num_changes = self._state.next_id - saved.next_id + self._state.num_past - saved.num_past
        if num_changes > max(self._threshold, _UNSAVED * len(index)):
            self._saved = self._state  # Even if it fails, so as not to try each time.
            with _failing_is_no_harm():
                self._write(index)

    def _current(self) -> KeyIndex | CodeIndex:
        """The index, brought in step with the store."""
        space, state, time = self.space, self.space.state, timestamps.now()
        until = self._next_change
        if self._index is not None and state == self._state and self._time <= time and (not until or time < until):
            return self._index
        index, self._index = self._index, None
        if index is None:
            index = self._read(state)
        elif state.rekeyed_at != self._state.rekeyed_at:
            index = self._nothing()
        if time < self._time:  # The clock was set back.
            valid = space.valid_ids(time)
            index.remove(np.setdiff1d(index.ids, valid, assume_unique=True))
            new = np.setdiff1d(valid, index.ids, assume_unique=True)
        else:
            gone = np.union1d(space.departed_ids(self._state.num_past), space.ended_ids(self._time, time))
            index.remove(index.holding(gone.astype(np.int64)))
            begun = space.begun_ids(self._time, time)
            new = np.union1d(begun[begun < self._state.next_id], space.valid_ids(time, first=self._state.next_id))
        self._index, self._state, self._time = self._with(index, new), state, time
        self._next_change = space.next_validity_change(time)
        self._save_if_much_is_new()
        return self._index

    def _with(self, index: KeyIndex | CodeIndex, new: NDArray[np.int64]) -> KeyIndex | CodeIndex:
        """The index with the keys of `new` added, of the kind that fits the number of facts."""
        space, size = self.space, len(index) + len(new)
        dim = space.store.dim or 0
        if isinstance(index, CodeIndex):
            if size > self._threshold // 2:
                index.add(new)
                return index
            ids = np.union1d(index.ids, new)
            index, new = KeyIndex(dim), ids
        elif size > self._threshold:
            if code_index.is_available():
                codes = CodeIndex(dim, space.keys)
                codes.build(np.union1d(index.ids, new))
                return codes
            if len(index) <= self._threshold:  # Once.
                logger.warning(
                    f"Each lookup compares the keys of all {size} facts: beyond {self._threshold}, "
                    f"pip install 'recipe-hf[scale]' makes it faster."
                )
        for start in range(0, len(new), _CHUNK):
            index.add(new[start : start + _CHUNK], space.keys(new[start : start + _CHUNK]))
        return index

    def _nothing(self) -> KeyIndex:
        """An empty index, as before the first fact."""
        self._state, self._time = State(), ""
        return KeyIndex(self.space.store.dim or 0)

    def _read(self, state: State) -> KeyIndex | CodeIndex:
        """The saved index, or an empty one if that cannot be used."""
        directory = self._directory
        index: KeyIndex | CodeIndex = self._nothing()
        if directory is None or not directory.exists():
            return index
        try:
            manifest = read_manifest(directory)
            saved = replace(state, next_id=manifest["next_id"], num_past=manifest["num_past"])
            is_later = saved.next_id > state.next_id or saved.num_past > state.num_past
            if is_later or any(manifest[name] != it for name, it in self._origin(saved).items()):
                raise ValueError("it is of another store, or of other keys.")
            is_of_keys = _FILE in manifest["files"]
            if not is_of_keys and not code_index.is_available():
                return index
            index = self._of_files(lambda name: read_array(directory, name, manifest), is_of_keys)
            self._state, self._time = saved, manifest["time"]
            if saved == state:
                self._saved = state
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            logger.warning(f"The index is rebuilt: {error}")
            return self._nothing()
        return index

    def _of_files(self, read: Callable[[str], NDArray[np.uint8]], is_of_keys: bool) -> KeyIndex | CodeIndex:
        dim = self.space.store.dim or 0
        if not is_of_keys:
            return CodeIndex.of_files(dim, self.space.keys, read)
        arrays, index = load_arrays(read(_FILE).tobytes()), KeyIndex(dim)
        index.add(arrays["ids"], arrays["keys"])
        return index

    def _origin(self, state: State) -> dict[str, Any]:
        """What identifies an index made of this namespace when its state was `state`.

        In a copy of the store that was changed separately, the last fact was added, and the last one ended, at another
        time, if at all.
        """
        last = self.space.get(state.next_id - 1)
        return {
            "store": self.space.store.uuid,
            "namespace": self.space.name,
            "next_id": state.next_id,
            "last_created_at": last and last.created_at,
            "num_past": state.num_past,
            "last_departure": self.space.departure(state.num_past - 1),
            "rekeyed_at": self.space.state.rekeyed_at,
        }

    @property
    def _directory(self) -> Path | None:
        path = self.space.store.path
        name = hashlib.sha256(self.space.name.encode()).hexdigest()[:16]
        return path and path.with_name(path.name + "-index") / name


@contextmanager
def _failing_is_no_harm() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        logger.warning(f"The index was not saved, and will be rebuilt ({error}).")
