"""How a fact is stored: the columns of its row, the same for every engine, and checksums that reveal damage."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .facts import Fact, PastFact

CONTENT = ("id", "statement", "prompt", "answer", "metadata", "valid_from", "valid_until", "created_at")
#: How a fact left; `departure` numbers those that did, in order.
ENDING = ("ended_at", "reason", "replaced_by", "departure")
#: All of it but the key. The sums are CRC-32.
COLUMNS = (*CONTENT, "content_sum", "about", *ENDING, "ending_sum", "key_sum")


def to_row(
    namespace: str, fact: Fact, key: NDArray[np.float32] | None, departure: int | None = None
) -> dict[str, Any]:
    """The columns of a fact; a past one has a `departure`, its number in the order of leaving."""
    row: dict[str, Any] = {name: getattr(fact, name) for name in CONTENT}
    row["metadata"] = json.dumps(fact.metadata, ensure_ascii=False)
    row |= {"content_sum": checksum(namespace, *row.values()), "about": fact.subject[1]}
    if isinstance(fact, PastFact):
        row |= ending(fact.ended_at, fact.reason, fact.replaced_by, departure)
    else:
        row |= dict.fromkeys((*ENDING, "ending_sum"))
    return row | {"key_sum": None if key is None else key_sum(key)}


def ending(ended_at: str, reason: str, replaced_by: int | None, departure: int | None) -> dict[str, Any]:
    """The columns that are set when a fact leaves."""
    values = (ended_at, reason, replaced_by, departure)
    return dict(zip(ENDING, values, strict=True)) | {"ending_sum": checksum(*values)}


def to_fact(namespace: str, row: Mapping[str, Any]) -> Fact | None:
    """The fact, present or past, of a row's columns; None if the row is damaged."""
    content, end = [row[name] for name in CONTENT], [row[name] for name in ENDING]
    if row["content_sum"] != checksum(namespace, *content):
        return None
    if row["ending_sum"] != (None if row["departure"] is None else checksum(*end)):
        return None
    values = dict(zip(CONTENT, content, strict=True)) | {"metadata": json.loads(row["metadata"])}
    if row["departure"] is None:
        return Fact(**values)
    return PastFact(**values, **{name: row[name] for name in ENDING if name != "departure"})


def key_bytes(key: NDArray[np.float32]) -> bytes:
    """A key as it is stored."""
    return key.astype("<f4").tobytes()


def key_sum(key: NDArray[np.float32]) -> int:
    """The checksum of a key."""
    return zlib.crc32(key_bytes(key))


def checksum(*values: object) -> int:
    """CRC-32 of values of a row."""
    return zlib.crc32(json.dumps(values, default=repr).encode())
