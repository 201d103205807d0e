"""One namespace of an SQLite store: reads and writes its facts, present and past, as rows.

A namespace is a knowledge base of its own, with its own ids. Every SQL statement here names it, so that none reaches
the facts of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import State
from ..facts import Fact, NewFact, PastFact, canonical, spellings
from ..rows import COLUMNS, ending, key_bytes, key_sum, to_fact, to_row
from .store import FACT_COLUMNS, SqliteStore, damage

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM facts WHERE namespace = ?"
# A plus keeps SQLite from going through all facts in their order, rather than to those about something.
_CONFLICTING = """AND about IN (?, ?, ?) AND departure IS NULL AND (valid_until IS NULL OR valid_until > ?)
AND (valid_from IS NULL OR ? IS NULL OR valid_from < ?) ORDER BY +id"""
_PAST_ABOUT = "AND +departure IS NOT NULL AND about IN (?, ?, ?) ORDER BY +departure"
_INSERT = f"INSERT INTO facts VALUES ({', '.join('?' * len(FACT_COLUMNS))})"


class SqliteSpace:
    """The rows of the namespace `name` in `store`. Use it inside a `view` or a `change` of the store."""

    def __init__(self, store: SqliteStore, name: str) -> None:
        self.store = store
        self.name = name
        self._changing: State | None = None

    @contextmanager
    def change(self) -> Iterator[None]:
        """Context of one change, which writes the state once, at its end: see [`SqliteStore.change`]."""
        with self.store.change():
            self._changing = before = self.state
            try:
                yield
                state, self._changing = self._changing, None
                if state != before:
                    self.state = state
            finally:
                self._changing = None

    @property
    def state(self) -> State:
        """The state it is in."""
        if self._changing is not None:
            return self._changing
        rows = self.store.execute(
            "SELECT size, next_id, num_past, encoder_fingerprint, rekeyed_at, changed_at FROM namespaces "
            "WHERE name = ?",
            (self.name,),
        )
        return next((State(*row) for row in rows), State())

    @state.setter
    def state(self, state: State) -> None:
        if self._changing is not None:
            self._changing = state
            return
        self.store.execute(
            "INSERT OR REPLACE INTO namespaces VALUES (?, ?, ?, ?, ?, ?, ?)", (self.name, *vars(state).values())
        )

    def fix_dim(self, dim: int) -> None:
        """Sets the width of keys, unless it is set already."""
        self.store.execute("UPDATE store SET dim = ? WHERE dim IS NULL", (dim,))

    # ------------------------------------------------------------------ facts

    def prefetch(self, ids: Iterable[object] = (), about: Iterable[str] = (), with_keys: bool = False) -> None:
        """Does nothing: reading one by one costs no more."""

    def get(self, id: int) -> Fact | None:
        """The fact with this id, present or past."""
        if not -1 < id < 2**63:
            return None
        return next(self._facts("AND id = ?", (id,)), None)

    def present(self) -> list[Fact]:
        """The facts there are now, oldest first."""
        return list(self._facts("AND departure IS NULL ORDER BY id"))

    def past(self, about: str | None = None) -> list[PastFact]:
        """The facts that left, in order; with `about`, those about this prompt or statement."""
        if about is None:
            found = self._facts("AND departure IS NOT NULL ORDER BY departure")
        else:
            found = self._facts(_PAST_ABOUT, spellings(about))
        return [fact for fact in found if isinstance(fact, PastFact)]

    def conflicts(self, new: NewFact) -> list[Fact]:
        """The present facts that cannot stay beside `new`."""
        found = self._facts(_CONFLICTING, (*spellings(new.about), new.begin, new.valid_until, new.valid_until))
        return [fact for fact in found if fact.conflicts_with(new)]

    def insert(self, fact: Fact, key: NDArray[np.float32] | None, departure: int | None = None) -> None:
        """Adds the row of a fact. A past one has a `departure`, and may have no key."""
        row = to_row(self.name, fact, key, departure)
        self.store.execute(_INSERT, (self.name, *row.values(), None if key is None else key_bytes(key)))
        if departure is None:
            self._label("INSERT INTO labels VALUES (?, ?, ?, ?)", fact)

    def end(self, fact: Fact, departure: int, ended_at: str, reason: str, replaced_by: int | None = None) -> None:
        """Makes a present fact a past one."""
        columns = ending(ended_at, reason, replaced_by, departure)
        changes = ", ".join(f"{name} = ?" for name in columns)
        self.store.execute(
            f"UPDATE facts SET {changes} WHERE namespace = ? AND id = ?", (*columns.values(), self.name, fact.id)
        )
        self._label("DELETE FROM labels WHERE namespace = ? AND name = ? AND value = ? AND id = ?", fact)

    def _label(self, statement: str, fact: Fact) -> None:
        for name, value in fact.metadata.items():
            self.store.execute(statement, (self.name, name, canonical(value), fact.id))

    def _facts(self, condition: str, parameters: tuple[Any, ...] = ()) -> Iterator[Fact]:
        for row in self.store.execute(f"{_SELECT} {condition}", (self.name, *parameters)):
            fact = to_fact(self.name, dict(zip(COLUMNS, row, strict=True)))
            if fact is None:
                raise ValueError(damage(self.store.path, f"fact {row[0]} is not as it was written"))
            yield fact

    # ------------------------------------------------------------------ ids and keys

    def ids(self, condition: str = "", parameters: tuple[Any, ...] = ()) -> NDArray[np.int64]:
        """Ids of the present facts, ascending."""
        sql = f"SELECT id FROM facts WHERE namespace = ? AND departure IS NULL {condition} ORDER BY id"
        return np.fromiter((id for (id,) in self.store.execute(sql, (self.name, *parameters))), np.int64)

    def valid_ids(self, time: str, first: int = 0) -> NDArray[np.int64]:
        """Ids of the present facts that are used at `time`, from the id `first` on."""
        return self.ids(
            "AND id >= ? AND (valid_from IS NULL OR valid_from <= ?) AND (valid_until IS NULL OR valid_until > ?)",
            (first, time, time),
        )

    def begun_ids(self, since: str, time: str) -> NDArray[np.int64]:
        """Ids of the present facts that are used at `time`, and were not at `since`, before it."""
        return self.ids(
            "AND valid_from > ? AND valid_from <= ? AND (valid_until IS NULL OR valid_until > ?)", (since, time, time)
        )

    def ended_ids(self, since: str, time: str) -> NDArray[np.int64]:
        """Ids of the present facts that ceased to be used after `since`, up to `time`."""
        return self.ids("AND valid_until > ? AND valid_until <= ?", (since, time))

    def idle_ids(self, time: str) -> NDArray[np.int64]:
        """Ids of the present facts that are not used at `time`."""
        return np.union1d(self.ids("AND valid_from > ?", (time,)), self.ids("AND valid_until <= ?", (time,)))

    def next_validity_change(self, time: str) -> str | None:
        """When, after `time`, a present fact next begins or ceases to be used."""
        sql = "SELECT min({0}) FROM facts WHERE namespace = ? AND departure IS NULL AND {0} IS NOT NULL AND {0} > ?"
        found = [
            moment
            for name in ("valid_from", "valid_until")
            for (moment,) in self.store.execute(sql.format(name), (self.name, time))
        ]
        return min((moment for moment in found if moment is not None), default=None)

    def departed_ids(self, first: int) -> list[int]:
        """Ids of the facts that left, from the departure `first` on."""
        sql = "SELECT id FROM facts WHERE namespace = ? AND departure >= ?"
        return [id for (id,) in self.store.execute(sql, (self.name, first))]

    def departure(self, number: int) -> list[int | str] | None:
        """Id and time of the departure with this number; None if there was none."""
        sql = "SELECT id, ended_at FROM facts WHERE namespace = ? AND departure = ?"
        row = self.store.execute(sql, (self.name, number)).fetchone()
        return row and list(row)

    def labelled_ids(self, where: Mapping[str, Any]) -> NDArray[np.int64]:
        """Ids of the present facts whose metadata hold all of `where`, ascending."""
        found = self.ids() if not where else None
        for name, value in where.items():
            sql = "SELECT id FROM labels WHERE namespace = ? AND name = ? AND value = ? ORDER BY id"
            rows = self.store.execute(sql, (self.name, name, canonical(value)))
            ids = np.fromiter((id for (id,) in rows), np.int64)
            found = ids if found is None else np.intersect1d(found, ids, assume_unique=True)
        assert found is not None
        return found

    def key(self, id: int) -> NDArray[np.float32] | None:
        """The key `[dim]` of a fact, present or past; None for a past one whose key is not known.

        Raises:
            ValueError: If it is not as it was written.
        """
        sql = "SELECT key_sum, key FROM facts WHERE namespace = ? AND id = ?"
        written_sum, blob = self.store.execute(sql, (self.name, id)).fetchone() or (None, b"")
        if blob is None and written_sum is None:
            return None
        key = None
        if isinstance(blob, bytes) and len(blob) == 4 * (self.store.dim or 0):
            key = np.frombuffer(blob, "<f4").astype(np.float32, copy=False)
        if key is None or key_sum(key) != written_sum:
            raise ValueError(damage(self.store.path, f"the key of fact {id} is not as it was written"))
        return key

    def keys(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Keys `[len(ids), dim]` of present facts."""
        ids = list(ids)
        keys = np.empty((len(ids), self.store.dim or 0), np.float32)
        for row, id in enumerate(ids):
            keys[row] = self.key(int(id))
        return keys

    def replace_keys(self, ids: Sequence[int], keys: NDArray[np.float32]) -> None:
        """Gives present facts new keys, and drops those of past ones, which other weights made."""
        self.store.execute(
            "UPDATE facts SET key = NULL, key_sum = NULL WHERE namespace = ? AND departure IS NOT NULL", (self.name,)
        )
        for id, key in zip(ids, keys, strict=True):
            self.store.execute(
                "UPDATE facts SET key = ?, key_sum = ? WHERE namespace = ? AND id = ?",
                (key_bytes(key), key_sum(key), self.name, id),
            )
