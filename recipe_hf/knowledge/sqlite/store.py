"""The SQLite database that holds all facts, in memory or in a file: opening, transactions, errors.

A change is one transaction: it is on disk when it returns, or it did not happen. One process writes, any number read.
Nothing outside this package knows of SQLite.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import sync_directory, user_path
from ..rows import COLUMNS
from .opened_file import OpenedFile
from .write_ahead_log import PAGE_SIZE, has_lost_changes
from .writer_lock import WriterLock

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x52454350  # "RECP"

# The key comes last, so that reading the rest of a row leaves its pages alone.
FACT_COLUMNS = ("namespace", *COLUMNS, "key")
_SCHEMA = f"""
CREATE TABLE store (uuid TEXT NOT NULL, dim INTEGER);
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY, size INTEGER NOT NULL, next_id INTEGER NOT NULL, num_past INTEGER NOT NULL,
    encoder_fingerprint TEXT, rekeyed_at TEXT NOT NULL, changed_at TEXT NOT NULL
);
CREATE TABLE facts ({", ".join(FACT_COLUMNS)}, PRIMARY KEY (namespace, id));
CREATE INDEX facts_about ON facts (namespace, about, id);
CREATE INDEX facts_present ON facts (namespace, id, valid_from, valid_until) WHERE departure IS NULL;
CREATE UNIQUE INDEX facts_past ON facts (namespace, departure) WHERE departure IS NOT NULL;
CREATE INDEX facts_from ON facts (namespace, valid_from) WHERE departure IS NULL AND valid_from IS NOT NULL;
CREATE INDEX facts_until ON facts (namespace, valid_until) WHERE departure IS NULL AND valid_until IS NOT NULL;
CREATE TABLE labels (namespace, name, value, id, PRIMARY KEY (namespace, name, value, id)) WITHOUT ROWID;
"""


class SqliteStore:
    """A database of facts, and the lock that every use of it takes. Make one with `memory` or `open`.

    Attributes:
        path: The file; None in memory.
        read_only: Whether writing is left to another process.
        uuid: Names the store, as long as it exists.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path | None = None,
        writer_lock: WriterLock | None = None,
        unchanging: OpenedFile | None = None,
    ) -> None:
        self.path = path
        self.read_only = path is not None and writer_lock is None
        self._connection: sqlite3.Connection | None = connection
        self._writer_lock = writer_lock
        self._lock = threading.RLock()
        self._in_transaction = False  # Whether a `view` or a `change` has begun one, which it will end.
        self._pid = os.getpid()
        self._unchanging = unchanging  # The file, if SQLite was told that it never changes.
        self._written: list[OpenedFile] = []  # What SQLite goes on writing to even if it is deleted.
        self.uuid: str
        self._dim: int | None
        with self.view():
            ((self.uuid, self._dim),) = self.execute("SELECT uuid, dim FROM store")
        if path is not None and not self.read_only:
            self._written = [OpenedFile.at(file) for file in (path, _beside(path, "-wal")) if file.exists()]

    @classmethod
    def memory(cls, dim: int | None) -> SqliteStore:
        """An empty store in memory."""
        connection = _connect(":memory:")
        _create_tables(connection, dim)
        return cls(connection)

    @classmethod
    def open(cls, path: str | os.PathLike[str], dim: int | None, read_only: bool) -> SqliteStore:
        """Opens a store on disk, or makes one if there is none.

        Raises:
            BlockingIOError: If another process, or another store of this one, writes to it.
            FileNotFoundError: If there is none, and `read_only` is set.
            ValueError: If it is damaged, of a newer version, not a store at all, or of another width.
        """
        path = Path(os.path.realpath(user_path(path)))  # One lock for all names of a file.
        if path.is_dir():
            raise ValueError(f"path must be the file of a knowledge base, got the directory {path}.")
        if read_only and not path.exists():
            raise FileNotFoundError(f"path must be a file that exists, to open it with read_only=True, got {path}.")
        writer_lock = None
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer_lock = WriterLock(path)
        try:
            with _explained(path):
                if not path.exists():
                    _create_file(path, dim)
                connection, unchanging = _open_file(path, read_only)
                store = cls(connection, path, writer_lock, unchanging)
            if dim is not None and store.dim is None and not read_only:
                with store.change():
                    store.execute("UPDATE store SET dim = ?", (dim,))
            if dim is not None and store.dim not in (None, dim):
                store.close()
                raise ValueError(f"dim must be {store.dim}, the width of the keys in {path}, got {dim}.")
        except BaseException:
            if writer_lock is not None:
                writer_lock.release()
            raise
        return store

    @property
    def dim(self) -> int | None:
        """Width of the keys; None before there is one."""
        if self._dim is None:
            with self.view():
                dim: int | None = self.execute("SELECT dim FROM store").fetchone()[0]
                if self._in_transaction:
                    return dim
                self._dim = dim
        return self._dim

    def execute(self, sql: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Runs a statement, inside a `view` or a `change`."""
        assert self._connection is not None
        return self._connection.execute(sql, parameters)

    def namespaces(self) -> list[str]:
        """The names of all namespaces that hold or held facts."""
        return [name for (name,) in self.execute("SELECT name FROM namespaces WHERE next_id > 0 ORDER BY name")]

    @contextmanager
    def view(self) -> Iterator[None]:
        """Context in which everything read is as of one moment."""
        with self._lock, _explained(self.path):
            connection = self._usable()
            if self.read_only:
                yield from self._transaction(connection, "BEGIN", "ROLLBACK")
            else:
                yield

    @contextmanager
    def change(self) -> Iterator[None]:
        """Context whose changes are all on disk when it ends; if it raises, none is made.

        Raises:
            FileNotFoundError: If the file is no longer where it was opened.
            OSError: If the disk is full or fails.
            PermissionError: If the store was opened with `read_only`.
        """
        with self._lock, _explained(self.path):
            connection = self._usable()
            if self.read_only:
                raise PermissionError(f"{self.path} was opened to be read only, with read_only=True.")
            yield from self._transaction(connection, "BEGIN IMMEDIATE", "COMMIT")

    @property
    def missing_file(self) -> Path | None:
        """The file, or its log, if another one or none is now in its place."""
        return next((file.path for file in self._written if not file.is_in_place), None)

    def _transaction(self, connection: sqlite3.Connection, begin: str, end: str) -> Iterator[None]:
        """Yields once, within a transaction: that of the outer context, if there is one."""
        if self._in_transaction:
            yield
            return
        # Ctrl-C during a statement, the first and the last included, is raised after it.
        try:
            self._in_transaction = True
            connection.execute(begin)
            yield
            if (missing := self.missing_file) is not None:
                raise FileNotFoundError(
                    errno.ENOENT,
                    "The file was deleted or replaced while it was open, so nothing was changed; copy_to another file "
                    "keeps what it held",
                    str(missing),
                )
            connection.execute(end)
        finally:
            self._in_transaction = False
            _roll_back(connection)

    @property
    def is_open(self) -> bool:
        """Whether the store can still be used."""
        return self._connection is not None

    def close(self) -> None:
        """Closes the file, and lets another process write to it. May be called more than once."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None and self._pid == os.getpid():
                connection.close()
                if self._writer_lock is not None:
                    self._writer_lock.release()

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            self.close()

    def _usable(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError(f"{self.path or 'The knowledge base'} is closed: open it again to use it.")
        if self.path is not None and self._pid != os.getpid():
            raise RuntimeError(f"{self.path} was opened by process {self._pid}: open it again in this one.")
        if not self._in_transaction:
            _roll_back(self._connection)  # What an interrupted `view` or `change` could not.
            file = self._unchanging
            if file is not None and (file.is_changed or (_has_log(file.path) and file.is_in_place)):
                before = self._connection
                self._connection, self._unchanging = _open_file(file.path, read_only=True)
                before.close()
        return self._connection


def _connect(database: str, uri: bool = False) -> sqlite3.Connection:
    # Transactions are begun and ended by statements; the store's lock lets one thread in at a time.
    return sqlite3.connect(database, uri=uri, isolation_level=None, check_same_thread=False)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _create_tables(connection: sqlite3.Connection, dim: int | None) -> None:
    connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    connection.execute("INSERT INTO store VALUES (?, ?)", (uuid.uuid4().hex, dim))


def _create_file(path: Path, dim: int | None) -> None:
    """Makes an empty store in a temporary directory first, so that a file at `path` is never half a store."""
    if _beside(path, "-wal").exists():
        raise ValueError(f"{path} is missing beside {_beside(path, '-wal')}, which holds facts: put it back.")
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        new = Path(directory) / "new"
        connection = _connect(str(new))
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            _create_tables(connection, dim)
        finally:
            connection.close()
        os.replace(new, path)
    sync_directory(path.parent)


def _open_file(path: Path, read_only: bool) -> tuple[sqlite3.Connection, OpenedFile | None]:
    """Opens an existing store; also returns the file, if SQLite is told that it never changes."""
    # SQLite would delete the log of an empty file, and the part of a log that it cannot read.
    if path.stat().st_size == 0:
        raise sqlite3.DatabaseError("the file is empty, malformed")
    if has_lost_changes(_beside(path, "-wal")):
        raise sqlite3.DatabaseError("its log is malformed")
    unchanging = None
    if read_only and not os.access(path.parent, os.W_OK):
        # To read while another process writes, SQLite needs files that it cannot make here.
        if not _has_log(path):
            unchanging = OpenedFile.at(path)
        elif not _beside(path, "-shm").exists():
            raise OSError(
                errno.EROFS,
                f"Reading it takes a directory that can be written to, because changes are still in "
                f"{_beside(path, '-wal').name}: copy both files to one",
                str(path),
            )
    mode = "rw" if not read_only else "ro" if unchanging is None else "ro&immutable=1"
    connection = _connect(f"{path.as_uri()}?mode={mode}", uri=True)
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        if application != _APPLICATION_ID:
            raise ValueError(f"path must be the file of a knowledge base, got another SQLite database: {path}.")
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {version}, and this recipe-hf reads up to {SCHEMA_VERSION}: it was "
                f"written by a newer one, so upgrade recipe-hf."
            )
        if not read_only:
            # When a transaction ends, it is on disk, not only with the operating system.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = 1")
    except BaseException:
        connection.close()
        raise
    return connection, unchanging


def _has_log(path: Path) -> bool:
    try:
        return _beside(path, "-wal").stat().st_size > 0
    except FileNotFoundError:
        return False


@contextmanager
def _explained(path: Path | None) -> Iterator[None]:
    """Turns errors of SQLite into ones that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        reason = str(error)
        name = str(path or "The knowledge base")
        if any(word in reason for word in ("malformed", "not a database", "no such table", "decode", "constraint")):
            raise ValueError(damage(name, reason)) from error
        if "full" in reason:
            raise OSError(errno.ENOSPC, "The disk is full, and nothing was changed", name) from error
        if "locked" in reason:
            raise BlockingIOError(errno.EAGAIN, "The store is locked by another program", name) from error
        message = f"The store cannot be read or written, and nothing was changed ({reason})"
        raise OSError(errno.EIO, message, name) from error


def damage(path: object, reason: str) -> str:
    """The message for a damaged store."""
    return f"{path} is damaged ({reason}): `recipe-hf salvage {path} NEW` saves what can be read of it to a new file."


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
