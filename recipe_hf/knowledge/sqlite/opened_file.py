"""Notices when a file that is open is replaced, deleted or changed by others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OpenedFile:
    """The file that `path` led to at one moment. Make one with `at`."""

    path: Path
    state: os.stat_result

    @classmethod
    def at(cls, path: Path) -> OpenedFile:
        """The file that `path` leads to now."""
        return cls(path, path.stat())

    @property
    def is_in_place(self) -> bool:
        """Whether `path` still leads to it, rather than to another file or to none."""
        return self._now() is not None

    @property
    def is_changed(self) -> bool:
        """Whether it was written to since, as far as size and time tell. Another file in its place does not count."""
        now = self._now() or self.state
        return (now.st_mtime_ns, now.st_size) != (self.state.st_mtime_ns, self.state.st_size)

    def _now(self) -> os.stat_result | None:
        try:
            now = self.path.stat()
        except OSError:
            return None
        return now if os.path.samestat(now, self.state) else None
