"""Who may write to a store: one process, known by name to the others."""

from __future__ import annotations

import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: SQLite's own locks still keep changes apart.
    fcntl = None  # type: ignore[assignment]


class WriterLock:
    """Held by the one process that writes to the store at `path`; it ends with the process, however that ends.

    Raises:
        BlockingIOError: If another holds it.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path.with_name(path.name + "-writer"), "a+", encoding="utf-8")  # noqa: SIM115
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            writer = self._file.read().strip() or "another process"
            self._file.close()
            raise BlockingIOError(
                error.errno, f"It is being written by {writer}: open it with read_only=True, or later", str(path)
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Lets another process write."""
        if fcntl is not None and not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
