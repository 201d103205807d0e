"""One namespace in Qdrant: reads and writes its facts, present and past, as points.

The counterpart of [`..sqlite.space`].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from ..engine import State
from ..facts import Fact, NewFact, PastFact, canonical, spellings
from ..rows import COLUMNS, ENDING, ending, key_sum, to_fact, to_row
from .store import KEY, QdrantStore, Row

_COLUMNS = (*COLUMNS, "labels")


class QdrantSpace:
    """The points of the namespace that `store` is of. Use it inside a `view` or a `change` of the store."""

    def __init__(self, store: QdrantStore) -> None:
        self.store = store
        self.name = store.namespace

    @property
    def state(self) -> State:
        """The state it is in."""
        return self.store.unit.state

    @state.setter
    def state(self, state: State) -> None:
        self.store.unit.state = state

    def change(self) -> AbstractContextManager[None]:
        """Context of one change, at whose end the store writes the state: see [`QdrantStore.change`]."""
        return self.store.change()

    def fix_dim(self, dim: int) -> None:
        """Does nothing: a collection has its width from the start."""

    # ------------------------------------------------------------------ reading points

    def prefetch(self, ids: Iterable[object] = (), about: Iterable[str] = (), with_keys: bool = False) -> None:
        """Reads points in few requests, so that reading them one by one needs none."""
        self._load(ids, with_keys)
        self._load_subjects(about)

    def _load(self, ids: Iterable[object], with_keys: bool = False) -> None:
        unit = self.store.unit
        there = [id for id in ids if isinstance(id, int) and 0 <= id < unit.committed.next_id]
        new = [id for id in dict.fromkeys(there) if self._is_unread(id, with_keys)]
        for start in range(0, len(new), 256):
            for record in self.store.retrieve(new[start : start + 256], with_keys):
                self.take(record, with_keys)

    def load_all(self, *conditions: models.FieldCondition, past: bool = False, with_keys: bool = False) -> None:
        """Reads the points of all present or all past facts that meet conditions."""
        for record in self.store.scroll(self.filter(conditions, past=past), with_keys):
            self.take(record, with_keys)

    def _load_subjects(self, subjects: Iterable[str]) -> None:
        """Reads the points of all present facts about prompts or statements."""
        unit = self.store.unit
        names = dict.fromkeys(name for subject in subjects for name in spellings(subject))
        new = [name for name in names if name not in unit.subjects]
        unit.subjects.update({name: [] for name in new})
        for start in range(0, len(new), 256):
            self.load_all(_about(new[start : start + 256]))
        for id, row in unit.rows.items() if new else ():
            if row.columns["about"] in new and row.columns["departure"] is None:
                unit.subjects[row.columns["about"]].append(id)

    def take(self, record: models.Record | models.ScoredPoint, with_keys: bool) -> int:
        """Keeps what was read of a point, unless this change altered it; returns the fact's id."""
        unit, payload = self.store.unit, record.payload or {}
        id: int = payload["id"]
        if self._is_unread(id, with_keys):
            columns = dict.fromkeys(_COLUMNS) | payload
            if columns["departure"] is not None and columns["departure"] >= unit.committed.num_past:
                columns |= dict.fromkeys((*ENDING, "ending_sum"))
            columns |= unit.ended.get(id, {})
            vector = record.vector.get(KEY) if with_keys and isinstance(record.vector, dict) else None
            key = None if vector is None else np.asarray(vector, np.float32)
            unit.rows[id] = Row(columns, key, with_keys)
        return id

    def filter(
        self, conditions: Iterable[Any] = (), excluded: Iterable[Any] = (), *, past: bool = False
    ) -> models.Filter:
        """The filter that the points of present, or past, facts match."""
        unit = self.store.unit
        left = models.FieldCondition(key="departure", range=models.Range(lt=unit.committed.num_past))
        counts = [
            models.FieldCondition(key="id", range=models.Range(lt=unit.committed.next_id)),
            models.FieldCondition(key="generation", match=models.MatchValue(value=unit.generation)),
            *conditions,
        ]
        if past:
            return models.Filter(must=[*counts, left], must_not=[*excluded])
        return models.Filter(must=counts, must_not=[left, *excluded])

    def usable(self, where: Mapping[str, Any] | None, time: str | None) -> models.Filter:
        """The filter for facts that are valid at `time` and whose metadata hold all of `where`."""
        labels = [
            models.FieldCondition(key="labels", match=models.MatchValue(value=_label(name, value)))
            for name, value in (where or {}).items()
        ]
        if time is None:
            return self.filter(labels)
        instant: Any = time
        idle = [
            models.FieldCondition(key="valid_from", range=models.DatetimeRange(gt=instant)),
            models.FieldCondition(key="valid_until", range=models.DatetimeRange(lte=instant)),
        ]
        return self.filter(labels, idle)

    def _is_unread(self, id: int, with_keys: bool) -> bool:
        row = self.store.unit.rows.get(id)
        return row is None or (with_keys and not row.key_was_read)

    # ------------------------------------------------------------------ facts

    def get(self, id: int) -> Fact | None:
        """The fact with this id, present or past."""
        self._load([id])
        row = self.store.unit.rows.get(id)
        return None if row is None else self._fact(row)

    def present(self) -> list[Fact]:
        """The facts there are now, oldest first."""
        self.load_all()
        rows = self.store.unit.rows
        return [self._fact(rows[id]) for id in sorted(rows) if rows[id].columns["departure"] is None]

    def past(self, about: str | None = None) -> list[PastFact]:
        """The facts that left, in order; with `about`, those about this prompt or statement."""
        names = None if about is None else spellings(about)
        self.load_all(*([] if names is None else [_about(names)]), past=True)
        left = [row for row in self.store.unit.rows.values() if row.columns["departure"] is not None]
        left.sort(key=lambda row: row.columns["departure"])
        facts = [self._fact(row) for row in left if names is None or row.columns["about"] in names]
        return [fact for fact in facts if isinstance(fact, PastFact)]

    def conflicts(self, new: NewFact) -> list[Fact]:
        """The present facts that cannot stay beside `new`."""
        self._load_subjects([new.about])
        unit = self.store.unit
        ids = {id for name in spellings(new.about) for id in unit.subjects[name]}
        rows = [unit.rows[id] for id in sorted(ids)]
        facts = [self._fact(row) for row in rows if row.columns["departure"] is None]
        return [fact for fact in facts if fact.conflicts_with(new)]

    def insert(self, fact: Fact, key: NDArray[np.float32] | None, departure: int | None = None) -> None:
        """Adds the point of a fact. A past one has a `departure`, and may have no key."""
        columns = to_row(self.name, fact, key, departure)
        columns["labels"] = [_label(name, value) for name, value in fact.metadata.items()]
        unit = self.store.unit
        unit.rows[fact.id] = Row(columns, None if key is None else key.copy(), True)
        unit.written[fact.id] = None
        if columns["about"] in unit.subjects:
            unit.subjects[columns["about"]].append(fact.id)

    def end(self, fact: Fact, departure: int, ended_at: str, reason: str, replaced_by: int | None = None) -> None:
        """Makes a present fact a past one."""
        unit = self.store.unit
        columns = ending(ended_at, reason, replaced_by, departure)
        unit.rows[fact.id].columns.update(columns)
        if fact.id not in unit.written:
            unit.ended[fact.id] = {name: value for name, value in columns.items() if value is not None}

    def _fact(self, row: Row) -> Fact:
        fact = to_fact(self.name, row.columns)
        if fact is None:
            raise self._damage(f"fact {row.columns['id']}")
        return fact

    # ------------------------------------------------------------------ ids and keys

    def ids(self) -> NDArray[np.int64]:
        """Ids of the present facts, ascending."""
        return np.array([fact.id for fact in self.present()], np.int64)

    def key(self, id: int) -> NDArray[np.float32] | None:
        """The key `[dim]` of a fact, present or past; None for a past one whose key is not known.

        Raises:
            ValueError: If it is not as it was written.
        """
        self._load([id], with_keys=True)
        row = self.store.unit.rows[id]
        if row.key is None and row.columns["key_sum"] is None:
            return None
        if row.key is None or key_sum(row.key) != row.columns["key_sum"]:
            raise self._damage(f"the key of fact {id}")
        return row.key

    def keys(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Keys `[len(ids), dim]` of present facts."""
        ids = list(ids)
        self._load(ids, with_keys=True)
        keys = np.empty((len(ids), self.store.dim or 0), np.float32)
        for place, id in enumerate(ids):
            keys[place] = self.key(int(id))
        return keys

    def replace_keys(self, ids: Sequence[int], keys: NDArray[np.float32]) -> None:
        """Gives present facts new keys, and drops those of past ones, which other weights made."""
        unit = self.store.unit
        self.load_all()
        self.load_all(past=True)
        for row in unit.rows.values():
            row.key, row.key_was_read, row.columns["key_sum"] = None, True, None
        for id, key in zip(ids, keys, strict=True):
            unit.rows[id].key, unit.rows[id].columns["key_sum"] = key.copy(), key_sum(key)
        unit.written, unit.ended, unit.is_rekeyed = dict.fromkeys(unit.rows), {}, True

    def _damage(self, what: str) -> ValueError:
        return ValueError(f"{self.store.path} is damaged ({what} is not as it was written): restore its snapshot.")


def _about(names: Sequence[str]) -> models.FieldCondition:
    return models.FieldCondition(key="about", match=models.MatchAny(any=list(names)))


def _label(name: str, value: object) -> str:
    return f"{canonical(name)}: {canonical(value)}"
