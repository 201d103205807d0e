"""Validation of arguments: ids, namespaces, metadata filters, texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from .facts import show


def check_namespace(namespace: object) -> None:
    """Raises a ValueError if `namespace` is not a string that can be written."""
    if not is_unicode(namespace):
        raise ValueError(f"namespace must be a string, got {namespace!r}.")


def check_positive(name: str, value: object) -> None:
    """Raises a ValueError if `value` is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def checked_where(where: object) -> dict[str, Any]:
    """A metadata filter as JSON reads it; raises a ValueError if it is not one."""
    try:
        if isinstance(where, Mapping) and all(isinstance(name, str) for name in where):
            text = json.dumps(dict(where), allow_nan=False, ensure_ascii=False)
            text.encode()
            copy: dict[str, Any] = json.loads(text)
            return copy
    except (TypeError, ValueError, RecursionError):
        pass
    raise ValueError(f"where must be a dict of names and JSON values, such as {{'source': 'x'}}, got {show(where)}.")


def as_id(id: Any) -> int | None:
    """`id` as a Python integer if it is an integer, also one of NumPy or torch; otherwise None."""
    if _is_array(id) and id.ndim == 0:
        id = id.item()
    return int(id) if isinstance(id, Integral) and not isinstance(id, bool) else None


def checked_ids(ids: Any, or_one: bool = False) -> list[Any]:
    """Ids of facts as a list; raises a ValueError if `ids` is not iterable, nor, with `or_one`, a single id.

    Items that are not integers are left as they are.
    """
    if or_one and as_id(ids) is not None:
        ids = [ids]
    if _is_array(ids) and ids.ndim > 0:
        ids = ids.tolist()
    no_ids = (str, bytes, bytearray, memoryview, Mapping)
    if isinstance(ids, no_ids) or not isinstance(ids, Iterable) or _is_array(ids):
        raise ValueError(f"ids must be the ids of facts, got {show(ids)}.")
    return [id if as_id(id) is None else as_id(id) for id in ids]


def _is_array(value: object) -> bool:
    """Whether it is a tensor or an array, of torch, NumPy or a library like them."""
    return all(hasattr(value, name) for name in ("ndim", "item", "tolist"))


def is_unicode(text: object) -> bool:
    """Whether `text` is a string that can be written."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
