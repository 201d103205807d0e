"""Reads SQLite's write-ahead log, to notice and recover changes that SQLite would drop from a damaged one.

SQLite reads a log up to its first broken frame, because a crash leaves one at the end, and drops the rest. If the disk
damaged the log, that includes changes that were acknowledged. File format:
https://www.sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE_SIZE = 4096
_HEADER, _FRAME_HEADER = 32, 24
_BIG_ENDIAN = 0x377F0683


@dataclass(frozen=True)
class Frame:
    """A page as a transaction wrote it.

    Attributes:
        page: Its number, from 1.
        commits: Whether it is the last one of its transaction.
        is_whole: Whether its checksum is right.
        content: `PAGE_SIZE` bytes.
    """

    page: int
    commits: bool
    is_whole: bool
    content: bytes


def read_frames(log: Path) -> list[Frame]:
    """The frames of a log, whole or broken, without those at its end that are left over from an earlier log."""
    try:
        data = log.read_bytes()
    except FileNotFoundError:  # A writer deletes it when it closes.
        data = b""
    size = _FRAME_HEADER + PAGE_SIZE
    count = (len(data) - _HEADER) // size
    if count < 1:
        return []
    header = np.frombuffer(data[:_HEADER], ">u4")
    rows = np.frombuffer(data, np.uint8, count * size, _HEADER).reshape(count, size)
    numbers = np.ascontiguousarray(rows[:, :_FRAME_HEADER]).view(">u4")  # page, pages in all, salt, salt, sum, sum
    order = ">u4" if header[0] == _BIG_ENDIAN else "<u4"
    header_is_whole = (_sums(np.frombuffer(data[:24], order)[None], np.zeros((1, 2), np.uint32)) == header[6:]).all()
    salt = header[4:6] if header_is_whole else numbers[0, 2:4]
    words = np.ascontiguousarray(np.delete(rows, np.s_[8:_FRAME_HEADER], axis=1)).view(order)
    before = np.vstack([header[6:], numbers[:-1, 4:]])  # Each sum continues the one before.
    is_whole = (_sums(words, before) == numbers[:, 4:]).all(1)
    is_whole[0] &= header_is_whole
    own = (numbers[:, 2:4] == salt).all(1)
    return [
        Frame(
            int(numbers[i, 0]),
            bool(own[i] and numbers[i, 1]),
            bool(own[i] and is_whole[i]),
            rows[i, _FRAME_HEADER:].tobytes(),
        )
        for i in range(np.flatnonzero(own).max(initial=-1) + 1)
    ]


def _sums(words: NDArray[Any], before: NDArray[Any]) -> NDArray[np.uint32]:
    """The two checksums of each row of words `[n, even]`, which continue those `before`, `[n, 2]`."""
    first, second = before.astype(np.uint32).T.copy()
    for even, odd in words.astype(np.uint32).T.reshape(-1, 2, len(words)):
        first += even + second
        second += odd + first
    return np.stack([first, second], axis=1)


def has_lost_changes(log: Path) -> bool:
    """Whether acknowledged changes lie behind a broken frame.

    A crash during a change breaks at most the end of that one, since each is on disk before the next begins. While
    another process writes, a frame may be read half-written: it differs when read again.
    """
    broken = _broken_amid_changes(read_frames(log))
    return broken is not None and broken == _broken_amid_changes(read_frames(log))


def _broken_amid_changes(frames: list[Frame]) -> tuple[int, Frame] | None:
    broken = next((i for i, frame in enumerate(frames) if not frame.is_whole), len(frames))
    return (broken, frames[broken]) if sum(frame.commits for frame in frames[broken:]) > 1 else None


def put_into(file: bytes, frames: list[Frame]) -> bytes:
    """A database file with the whole frames of a log applied, up to the last change that ended."""
    last = max((i for i, frame in enumerate(frames) if frame.commits), default=-1)
    pages = bytearray(file)
    for frame in frames[: last + 1]:
        if frame.is_whole:
            start = (frame.page - 1) * PAGE_SIZE
            pages.extend(bytes(max(0, start - len(pages))))
            pages[start : start + PAGE_SIZE] = frame.content
    return bytes(pages)
