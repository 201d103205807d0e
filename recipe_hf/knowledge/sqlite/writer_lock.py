"""Who may write to a store: one process, known by name to the others."""

from __future__ import annotations

import os
import socket
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: SQLite's own locks still keep changes apart.
    fcntl = None  # type: ignore[assignment]

_open_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """Held by the one process that writes to the store at `path`; it ends with the process, however that ends.

    Raises:
        BlockingIOError: If another holds it.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path.with_name(path.name + "-writer"), "a+b", buffering=0)  # noqa: SIM115
        _open_locks.add(self)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            writer = self._file.read().decode().strip() or "another process"
            self._file.close()
            raise BlockingIOError(
                error.errno, f"It is being written by {writer}: open it with read_only=True, or later", str(path)
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Lets another process write."""
        if fcntl is not None and not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def _close_in_child() -> None:
    # The lock would last as long as any process that has the file open.
    for lock in _open_locks:
        lock._file.close()


if fcntl is not None:
    os.register_at_fork(after_in_child=_close_in_child)
