"""Configurations of training: YAML files checked by pydantic, with errors of one line, whose fields can be set."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from yaml.composer import ComposerError

try:
    from pydantic import BaseModel, ConfigDict, ValidationError
except ImportError as error:
    raise ImportError("Training needs pydantic: install it with pip install 'recipe-hf[train]'.") from error


class YamlConfig(BaseModel):
    """Fields of a YAML file, or of a group in it. A dotted name tells a field: `run.seed`, `stages.0.steps`."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, str_min_length=1, str_strip_whitespace=True
    )

    @classmethod
    def from_yaml(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Self:
        """Reads a configuration.

        Args:
            path: The file.
            changes: Values, by dotted name, that take the place of the file's.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is not YAML, a name is unknown or missing, or a value is not allowed; the message names
                the file and the field.
        """
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} must be a mapping, got {values!r}.")
        try:
            return cls._build(values, changes or {})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """The same but for some fields, by dotted name.

        Raises:
            ValueError: As [`from_yaml`] does.
        """
        return self._build(self.model_dump(mode="json"), changes)

    @classmethod
    def _build(cls, values: dict[str, Any], changes: Mapping[str, Any]) -> Self:
        for name, value in changes.items():
            *way, last = name.split(".")
            place: Any = values
            try:
                for part in way:
                    place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
                place[int(last) if isinstance(place, list) else last] = value
            except (AttributeError, IndexError, TypeError, ValueError):
                raise ValueError(cls._unknown(name)) from None
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(cls._told(error, values)) from error

    @classmethod
    def _told(cls, error: ValidationError, values: dict[str, Any]) -> str:
        """The first error in a line; a name that is unknown comes before one that is therefore missing."""
        errors = [(_name(found, values), found["type"], found) for found in error.errors()]
        unknown = [name for name, kind, _ in errors if kind in ("extra_forbidden", "invalid_key")]
        if unknown:
            return cls._unknown(unknown[0])
        name, kind, first = errors[0]
        if kind == "missing":
            return f"missing fields {', '.join(name for name, kind, _ in errors if kind == 'missing')}."
        if kind == "value_error":
            return f"{name}.{first['ctx']['error']}".removeprefix(".")
        allowed = [re.sub(r"^\w+ should ", "", found["msg"]) for other, _, found in errors if other == name]
        return f"{name} must {' or '.join(allowed)}, got {first['input']!r}."

    @classmethod
    def _unknown(cls, name: str) -> str:
        """What is said of a name that no field has."""
        index = re.search(r"\.\d+", name)
        known = [found.replace(".N", index[0] if index else ".N") for found in field_names(cls)]
        if name in known:
            return f"{name} must be of a group, or of a member of a list, that the file has."
        homes = [found for found in known if found.rpartition(".")[2] == name.rpartition(".")[2]]
        if homes and "." not in name:
            return f"unknown field {name}: fields are grouped now, and this one is {homes[0]}."
        return (
            f"unknown field {name}; the nearest is {difflib.get_close_matches(name, homes or known, 1, cutoff=0)[0]}."
        )


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Checks what one field asks of another, in a validator of the model that has both.

    Raises:
        ValueError: If the condition does not hold; the message names the field, what is allowed and the value.
    """
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def field_names(kind: type[BaseModel]) -> Iterator[str]:
    """The dotted names of all fields, those of the members of a list as `stages.N.steps`."""
    for name, field in kind.model_fields.items():
        parts = [(field.annotation, name), *((part, f"{name}.N") for part in get_args(field.annotation))]
        groups = [(part, of) for part, of in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        yield from (f"{of}.{inner}" for group, of in groups for inner in field_names(group))
        if not groups:
            yield name


def _name(error: Mapping[str, Any], values: Any) -> str:
    """The dotted name of what an error is of; pydantic adds which alternative of a union it tried."""
    parts: list[str] = []
    for part in error["loc"]:
        is_item = isinstance(values, list) and isinstance(part, int)
        is_field = isinstance(values, dict) and (part in values or error["type"] == "missing")
        if not is_item and not is_field:
            break
        parts.append(str(part))
        values = values[part] if is_item else values.get(part)
    return ".".join(parts)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not YAML, or gives a key twice; the message names the file.
    """
    return parse_yaml(Path(path).read_bytes(), str(path))


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The same of a text; `where` is what errors call it."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid YAML: {error}.") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which the last would count otherwise, and takes 1e-5 for a number."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            if key.value in seen:
                raise ComposerError(None, None, f"key {key.value!r} must be given once, got it twice", key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
