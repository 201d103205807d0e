"""The audit: a line of JSON for each change of a fact, on disk before the change is."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..knowledge import timestamps
from ..knowledge.facts import Fact
from ..knowledge.files import sync_directory, user_path
from .access import Principal

Action = Literal["add", "replace", "remove", "restore"]


@dataclass(frozen=True)
class Change:
    """What becomes of one fact.

    Attributes:
        action: What was done.
        before: The fact that leaves, if any does.
        after: The fact that comes, if any does.
    """

    action: Action
    before: Fact | None
    after: Fact | None

    def to_dict(self) -> dict[str, Any]:
        """The change as a JSON object."""
        fact = self.after or self.before
        return {
            "action": self.action,
            "id": None if fact is None else fact.id,
            "before": self.before and self.before.to_dict(),
            "after": self.after and self.after.to_dict(),
        }


class Audit:
    """Lines at the end of a file. It may be moved away at any time; it is made where it is missing.

    A line is on disk before the change that it tells of, so that there is no change without its line. If the change
    fails after that, another line says that it was undone; only if the machine stops between the two, a line may stand
    alone.

    Args:
        path: The file; without one, nothing is written.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else user_path(path)
        self._lock = threading.Lock()

    @contextmanager
    def record(self, who: Principal, namespace: str) -> Iterator[Recording]:
        """Context of one change, around the transaction; a failure in it is written down, if lines were."""
        recording = Recording(self, {"key": who.name, "role": who.role}, namespace, uuid.uuid4().hex)
        try:
            yield recording
        except BaseException:
            if recording.is_written:
                recording.write_end("undone")
            raise

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes rows, all or none of them.

        Raises:
            OSError: If they cannot be written.
        """
        if self.path is None:
            return
        with self._lock:
            is_new = not self.path.exists()
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            start = os.fstat(descriptor).st_size
            try:
                with open(descriptor, "ab", closefd=False) as file:
                    for row in rows:
                        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, start)
                raise
            finally:
                os.close(descriptor)
            if is_new:
                sync_directory(Path(self.path.parent))


class Recording:
    """What one change writes to the audit."""

    def __init__(self, audit: Audit, who: dict[str, Any], namespace: str, change: str) -> None:
        self._audit = audit
        self._fixed = {"who": who, "namespace": namespace, "change": change}
        self.is_written = False

    def write(self, changes: Iterable[Change]) -> None:
        """Writes a line for each fact."""
        at = timestamps.now()
        self._audit.write({"at": at, **self._fixed, **change.to_dict()} for change in changes)
        self.is_written = True

    def write_end(self, action: str) -> None:
        """Writes how the whole change ended."""
        self._audit.write([{"at": timestamps.now(), **self._fixed, "action": action}])
