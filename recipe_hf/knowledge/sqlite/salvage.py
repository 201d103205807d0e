"""Recovery of the facts that can still be read from a damaged store: `recipe-hf salvage`.

SQLite gives up on a file whose pages are missing or do not fit together. Here every page is searched by itself for
rows of facts (file format: https://www.sqlite.org/fileformat2.html), whose checksums tell which are intact.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..contents import Contents
from ..facts import Fact, PastFact
from ..files import user_path
from ..rows import to_fact
from .space import SqliteSpace
from .store import FACT_COLUMNS, SqliteStore
from .write_ahead_log import PAGE_SIZE, put_into, read_frames
from .writer_lock import WriterLock

_LEAF = 0x0D  # A page of table rows.
_SIZE_OF_TYPE = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)


@dataclass(frozen=True)
class Salvage:
    """What was recovered from a damaged store.

    Attributes:
        facts: How many present facts.
        past: How many past facts.
        lost: How many more facts, present or past, the store says it held; None if it cannot say.
        keys_lost: How many present facts lost their keys; the keys of all must be recomputed then.
    """

    facts: int
    past: int
    lost: int | None
    keys_lost: int


def salvage(damaged: str | os.PathLike[str], new: str | os.PathLike[str]) -> Salvage:
    """Copies every fact that can be read from a damaged store to a new one. The damaged one stays as it is.

    Args:
        damaged: File of the store. Its write-ahead log beside it is read too.
        new: The file to make.

    Raises:
        BlockingIOError: If a process is writing to it.
        FileNotFoundError: If there is no such store.
        ValueError: If `new` is there already.
    """
    damaged, new = Path(os.path.realpath(user_path(damaged))), user_path(new)
    if not damaged.is_file():
        raise FileNotFoundError(f"DAMAGED must be the file of a knowledge base, got {str(damaged)!r}.")
    if new.exists():
        raise ValueError(f"NEW must be a file that is not there yet, got {str(new)!r}.")
    with tempfile.TemporaryDirectory(dir=new.absolute().parent) as directory:
        copy = Path(directory) / "copy"
        # Where nobody can make the lock file, nobody is writing.
        writer_lock = WriterLock(damaged) if os.access(damaged.parent, os.W_OK) else None
        try:
            shutil.copyfile(damaged, copy)
            if (log := damaged.with_name(damaged.name + "-wal")).is_file():
                shutil.copyfile(log, copy.with_name("copy-wal"))
        finally:
            if writer_lock is not None:
                writer_lock.release()
        frames = read_frames(copy.with_name("copy-wal"))
        _replay_log(copy)
        file = copy.read_bytes()
        together = put_into(file, frames)
        copy.write_bytes(together)
        states = _states(copy)
        rows = _newest_rows(_current_key_sums(copy), file, together)
        log_is_whole = all(frame.is_whole for frame in frames)
        dim = max((len(row["key"]) // 4 for row in rows.values() if row["key"] is not None), default=None)
        whole = Path(directory) / "whole"
        store = SqliteStore.open(whole, dim, read_only=False)
        with store.change():
            counts = [
                _fill(
                    SqliteSpace(store, name),
                    [row for (space, _), row in rows.items() if space == name],
                    states.get(name),
                    log_is_whole,
                )
                for name in sorted({space for space, _ in rows} | states.keys())
            ]
        store.close()
        os.replace(whole, new)
    says = states and states.keys() >= {space for space, _ in rows} and log_is_whole
    lost = sum(count[2] for count in counts) if says else None
    return Salvage(
        sum(count[0] for count in counts), sum(count[1] for count in counts), lost, sum(c[3] for c in counts)
    )


def _replay_log(copy: Path) -> None:
    """Moves the write-ahead log into the file, as far as SQLite can."""
    with open(copy, "r+b") as file:
        # SQLite does not read a file that is shorter than its header says: fill it up with zeros.
        header = file.read(32)
        pages = int.from_bytes(header[28:32], "big")
        if header[:15] == b"SQLite format 3" and pages * PAGE_SIZE > os.path.getsize(copy) and pages < 2**28:
            file.truncate(pages * PAGE_SIZE)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection, suppress(sqlite3.Error):
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _states(copy: Path) -> dict[str, tuple[Any, ...]]:
    """Next id, fingerprint and time of rekeying of each namespace, if they can be read."""
    with closing(sqlite3.connect(copy)) as connection:
        try:
            sql = (
                "SELECT name, next_id, encoder_fingerprint, rekeyed_at FROM namespaces "
                "WHERE typeof(next_id) = 'integer' AND typeof(rekeyed_at) = 'text'"
            )
            return {name: tuple(rest) for name, *rest in connection.execute(sql)}
        except sqlite3.Error:
            return {}


def _current_key_sums(copy: Path) -> dict[tuple[Any, ...], Any]:
    """The checksum of each fact's key by namespace and id, as far as SQLite can read the facts."""
    sums: dict[tuple[Any, ...], Any] = {}
    with closing(sqlite3.connect(copy)) as connection, suppress(sqlite3.Error):
        for *place, key_sum in connection.execute("SELECT namespace, id, key_sum FROM facts"):
            sums[tuple(place)] = key_sum
    return sums


def _newest_rows(current: dict[tuple[Any, ...], Any], *files: bytes) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of facts that are intact in any of the files, by namespace and id. Later files are newer."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for values in chain.from_iterable(map(_records, dict.fromkeys(files))):
        row = dict(zip(FACT_COLUMNS, values, strict=True))
        row["fact"] = to_fact(row["namespace"], row)
        if row["fact"] is None:
            continue
        if row["key"] is not None and (not isinstance(row["key"], bytes) or zlib.crc32(row["key"]) != row["key_sum"]):
            row["key"] = None
        place = row["namespace"], row["fact"].id
        # An unused page may hold a row as it was before the fact left, or got another key.
        row["is_current"] = place in current and current[place] == row["key_sum"]
        row["rank"] = row["departure"] is not None, row["is_current"], row["key"] is not None
        if place not in rows or row["rank"] >= rows[place]["rank"]:
            rows[place] = row
    return rows


def _records(file: bytes) -> Iterator[list[Any]]:
    """All rows with as many columns as facts have."""
    for start in range(0, len(file), PAGE_SIZE):
        page = file[start : start + PAGE_SIZE]
        header = 100 if start == 0 else 0
        if len(page) <= header + 8 or page[header] != _LEAF:
            continue
        for cell in range(int.from_bytes(page[header + 3 : header + 5], "big")):
            pointer = page[header + 8 + 2 * cell : header + 10 + 2 * cell]
            try:
                payload = _payload(file, page, int.from_bytes(pointer, "big"))
                values = _values(payload)
            except (IndexError, ValueError):
                continue
            if len(values) == len(FACT_COLUMNS):
                yield values


def _payload(file: bytes, page: bytes, at: int) -> bytes:
    """A row's bytes, gathered from its page and its overflow pages. Missing ones read as zeros."""
    size, at = _varint(page, at)
    _, at = _varint(page, at)
    most = PAGE_SIZE - 35
    if size <= most:
        return page[at : at + size]
    least = (PAGE_SIZE - 12) * 32 // 255 - 23
    here = least + (size - least) % (PAGE_SIZE - 4)
    here = here if here <= most else least
    payload, following = page[at : at + here], int.from_bytes(page[at + here : at + here + 4], "big")
    while len(payload) < size:
        more = file[(following - 1) * PAGE_SIZE : following * PAGE_SIZE] if following else b""
        if len(more) < PAGE_SIZE:
            return payload.ljust(size, b"\0")
        payload, following = payload + more[4 : 4 + size - len(payload)], int.from_bytes(more[:4], "big")
    return payload


def _values(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    types = []
    while at < end:
        kind, at = _varint(payload, at)
        types.append(kind)
    values: list[Any] = []
    for kind in types:
        size = (kind - 12) // 2 if kind >= 12 else _SIZE_OF_TYPE[kind]
        raw, at = payload[at : at + size], at + size
        if kind >= 12:
            values.append(raw if kind % 2 == 0 else raw.decode())
        else:
            values.append(None if kind == 0 else kind - 8 if kind >= 8 else int.from_bytes(raw, "big", signed=True))
    return values


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for byte in range(8):
        value = value << 7 | data[at + byte] & 0x7F
        if data[at + byte] < 0x80:
            return value, at + byte + 1
    return value << 8 | data[at + 8], at + 9


def _fill(
    space: SqliteSpace, rows: list[dict[str, Any]], state: tuple[Any, ...] | None, log_is_whole: bool
) -> tuple[int, int, int, int]:
    """Fills a namespace; returns the numbers of present, past and lost facts, and of present ones without keys."""
    left = sorted((row for row in rows if row["departure"] is not None), key=lambda row: row["departure"])
    past: list[PastFact] = [row["fact"] for row in left]
    present: list[dict[str, Any]] = []
    by_subject: dict[tuple[str, str], list[Fact]] = {}
    for row in sorted((row for row in rows if row["departure"] is None), key=lambda row: -row["id"]):
        fact, later = row["fact"], by_subject.setdefault(row["fact"].subject, [])
        # If the page that says that a fact was replaced is lost, the fact that replaced it tells.
        replacement = next((other for other in later if fact.conflicts_with(other)), None)
        if replacement is None:
            present.append(row)
            later.append(fact)
        else:
            ending: dict[str, Any] = {
                "ended_at": replacement.created_at,
                "reason": "replaced",
                "replaced_by": replacement.id,
            }
            past.append(PastFact(**vars(fact), **ending))
    present.reverse()
    dim = space.store.dim
    keys_lost = sum(row["key"] is None for row in present)
    keys = [np.frombuffer(row["key"] or bytes(4 * (dim or 0)), "<f4") for row in present]
    next_id, fingerprint, rekeyed_at = state or (0, None, "")
    next_id = max([next_id, *(row["id"] + 1 for row in rows)])
    # The row of a fact older than the last rekeying may hold a key older than it, too.
    old = {row["id"] for row in rows if not row["is_current"] and row["created_at"] < rekeyed_at}
    keys_are_known = log_is_whole and not keys_lost and old.isdisjoint(row["id"] for row in present)
    contents = Contents(
        dim,
        next_id,
        # The model recomputes keys whose fingerprint is not known.
        fingerprint if keys_are_known else None,
        [row["fact"] for row in present],
        np.stack(keys) if keys else np.empty((0, dim or 0), np.float32),
        past,
        {
            row["id"]: np.frombuffer(row["key"], "<f4")
            for row in left
            if row["key"] is not None and row["id"] not in old
        },
    )
    contents.fill(space)
    return len(present), len(past), next_id - len(rows), keys_lost
