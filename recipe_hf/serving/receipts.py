"""Idempotency keys: what was answered to a request, so that the same one, sent again, is not carried out again."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from .problems import Problem, busy

_KEPT = 7 * 24 * 3600  # Seconds.
_SCHEMA = """CREATE TABLE IF NOT EXISTS receipts (
    who TEXT, key TEXT, request TEXT, at REAL, namespace TEXT, id INTEGER, created_at TEXT, answer TEXT,
    PRIMARY KEY (who, key)
) WITHOUT ROWID"""


@dataclass(frozen=True)
class Receipt:
    """What was answered, and the last fact that came with it, by which it is known whether it came to be.

    Attributes:
        answer: The answer, as JSON.
        namespace: Whose facts were changed.
        id: The fact's id; None if none came.
        created_at: When it came.
    """

    answer: dict[str, Any]
    namespace: str
    id: int | None = None
    created_at: str | None = None


class Receipts:
    """Receipts in a file, of a week. One is on disk before the change that it is of: see [`Claim`].

    Args:
        path: The file; without one, they last as long as the process.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is not None:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_SCHEMA)
        self._lock = threading.Lock()
        self._claimed: set[tuple[str, str]] = set()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def claim(
        self, who: str, key: str | None, request: bytes, was_made: Callable[[Receipt], bool]
    ) -> Iterator[Claim | None]:
        """Context of carrying a request out; None if there is no key.

        Args:
            who: Who asks; keys of others are not seen.
            key: The idempotency key.
            request: What is asked, all of it.
            was_made: Tells whether the change of a receipt came to be.

        Raises:
            Problem: If the same key came with another request before, or is being used at this moment.
        """
        if key is None:
            yield None
            return
        digest = hashlib.sha256(request).hexdigest()
        with self._lock:
            if (who, key) in self._claimed:
                raise busy("The request with this Idempotency-Key is being carried out.", HTTPStatus.CONFLICT)
            self._claimed.add((who, key))
        try:
            earlier = self._find(who, key, digest, was_made)
            yield Claim(self, who, key, digest, earlier)
        finally:
            with self._lock:
                self._claimed.discard((who, key))

    def _find(self, who: str, key: str, digest: str, was_made: Callable[[Receipt], bool]) -> Receipt | None:
        with self._lock:
            found = self._connection.execute(
                "SELECT request, answer, namespace, id, created_at FROM receipts WHERE who = ? AND key = ?", (who, key)
            ).fetchone()
        if found is None or not was_made(receipt := Receipt(json.loads(found[1]), *found[2:])):
            return None
        if found[0] != digest:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"Idempotency-Key must be a new one for another request, got {key!r}.",
            )
        return receipt

    def _write(self, *values: Any) -> None:
        with self._lock:
            self._connection.execute("DELETE FROM receipts WHERE at < ?", (time.time() - _KEPT,))
            self._connection.execute("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


@dataclass(frozen=True)
class Claim:
    """The right to carry a request out.

    A change writes its receipt last of all, before it is made. Whether it was made then, also where the process ended
    in between, its facts tell.

    Attributes:
        earlier: What was answered to the same request before.
    """

    _receipts: Receipts
    _who: str
    _key: str
    _request: str
    earlier: Receipt | None

    def write(self, receipt: Receipt) -> None:
        """Writes what is about to be answered."""
        answer = json.dumps(receipt.answer, ensure_ascii=False)
        made = (receipt.namespace, receipt.id, receipt.created_at, answer)
        self._receipts._write(self._who, self._key, self._request, time.time(), *made)
