"""Checked YAML: the fields of a dataclass, each of them once and of the type that is annotated."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.composer import ComposerError

T = TypeVar("T")

_WORDS = {
    str: "a non-empty text",
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    NoneType: "null",
}


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not YAML, or gives a key twice; the message names the file.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}.") from error


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which the last would count otherwise."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise ComposerError(None, None, f"key {key.value!r} must be given once, got it twice", key.start_mark)
            seen.add(key.value)
        return node


def build(kind: type[T], values: Any, where: str) -> T:
    """Makes a dataclass of a mapping.

    Args:
        kind: The dataclass.
        values: Its fields.
        where: What errors call the mapping.

    Raises:
        ValueError: If it is no mapping, or a key is unknown or missing; and as `kind` does.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a mapping, got {values!r}.")
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        raise ValueError(f"{where}: unknown keys {', '.join(map(str, unknown))}; allowed are {', '.join(fields)}.")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: missing keys {', '.join(missing)}.")
    return kind(**values)


def check_types(config: Any, of: str = "") -> None:
    """Checks each field of a dataclass against its annotation. Numbers must be finite, and texts not blank.

    Args:
        config: The dataclass.
        of: What errors add to the name of a field, such as ` of stage 'joint'`.

    Raises:
        ValueError: If a field has another type.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, kind):
            raise ValueError(f"{name}{of} must be {_describe(kind)}{_hint(value, kind)}, got {value!r}.")


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Checks a field.

    Raises:
        ValueError: If the condition does not hold; the message names the field, what is allowed and the value.
    """
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def require_integer(name: str, value: int, at_least: int) -> None:
    """The same of an integer's range."""
    require(value >= at_least, name, value, f"an integer of at least {at_least}")


def require_number(name: str, value: float, at_least: float = 0, at_most: float = math.inf) -> None:
    """The same of a number's range."""
    allowed = f"a number of at least {at_least}" if at_most == math.inf else f"between {at_least} and {at_most}"
    require(at_least <= value <= at_most, name, value, allowed)


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (list, tuple):
        return isinstance(value, origin) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        return all(_fits(name, arguments[0]) and _fits(item, arguments[1]) for name, item in pairs)
    if kind is str:
        return isinstance(value, str) and bool(value.strip())
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    return kind is Any or isinstance(value, kind)


def _describe(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is dict:
        return f"a mapping, each value {_describe(arguments[1])}"
    if origin in (list, tuple):
        return f"a {origin.__name__}" + ("" if arguments[0] is Any else f" of {arguments[0].__name__}")
    return _WORDS.get(kind, str(kind))


def _hint(value: Any, kind: Any) -> str:
    """Where YAML takes a text for a number or the other way round."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(value, str) and float in kinds:
        return " (YAML takes 1e-5 for a text: write 1.0e-5)"
    takes_text = str in kinds or any(get_origin(part) is Literal for part in kinds)
    if takes_text and isinstance(value, (bool, int, float)):
        return " (in quotes, where YAML takes a text for something else)"
    return ""
