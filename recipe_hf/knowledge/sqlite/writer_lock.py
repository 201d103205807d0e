"""The lock on a store's file: one process at a time may write to it, and the others are told which.

The operating system holds the lock, so it ends with the process, however that ends.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from pathlib import Path

_open_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """Held by the process that writes to the store at `path`, until it calls `release`, or ends.

    Raises:
        BlockingIOError: If another one holds it; the message says which.
        OSError: If the file system cannot lock files.
    """

    def __init__(self, path: Path) -> None:
        from filelock import lock_descriptor  # Whoever only reads need not wait for its import.

        self._file = open(path.with_name(path.name + "-writer"), "a+b", buffering=0)  # noqa: SIM115
        _open_locks.add(self)
        try:
            is_locked = lock_descriptor(self._file.fileno(), blocking=False)
            if not is_locked:
                # Windows lets nobody else read the first byte, which the lock is on.
                self._file.seek(1)
                writer = self._file.read().decode().strip() or "another process"
                raise BlockingIOError(
                    errno.EAGAIN, f"It is being written by {writer}: open it with read_only=True, or later", str(path)
                )
            self._file.truncate(0)
            self._file.write(f"\nprocess {os.getpid()} on {socket.gethostname()}\n".encode())
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Lets another process write."""
        if not self._file.closed:
            from filelock import unlock_descriptor

            unlock_descriptor(self._file.fileno())
        self._file.close()


def _close_in_child() -> None:
    # A lock lasts as long as any process has its file open.
    for lock in _open_locks:
        lock._file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
