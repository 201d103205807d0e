"""JSON files of results that are made in parts, and go on only for the same run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ADVICE = "Choose another file, or delete this one."


def read_record(output: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file of this run holds; `None` if there is no file, but a directory that it can be written to.

    Args:
        output: The file.
        settings: What the results depend on, as [`~recipe_hf.evaluation.inputs.run_settings`] gives it.

    Raises:
        ValueError: If the file does not end in .json, cannot be written, is no such file, or holds another run.
    """
    if output.suffix != ".json":
        raise ValueError(f"output must end in .json, got {str(output)!r}.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output {output} cannot be written: {error.strerror}: {error.filename}.") from error
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(f"output {output} cannot be written: it must be a file in a writable directory.")
    if not output.exists():
        return None
    try:
        record = json.loads(output.read_text(encoding="utf-8"))
        held = dict(record["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"output {output} is there already and holds no evaluation to resume. {_ADVICE}") from error
    check_same(output, held, settings)
    return record


def check_same(output: Path, held: dict[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that what a file holds depends on the same as what is asked for.

    Args:
        output: The file.
        held: What the results in it depend on.
        now: What those asked for do.

    Raises:
        ValueError: If they do not; the message names the first difference.
    """
    found = difference(held, json.loads(json.dumps(now)))
    if found is not None:
        raise ValueError(f"output {output} holds another run: {found}. {_ADVICE}")


def difference(held: Any, now: Any, name: str = "") -> str | None:
    """The first difference between recorded values and those of now, in words; `None` if there is none.

    Args:
        held: Plain values, as JSON gives them back.
        now: Plain values, likewise.
        name: What they are called.

    >>> difference({"rates": {"encoder": 0.1}, "seed": 0}, {"rates": {"encoder": 0.2}, "seed": 0})
    'encoder of rates was 0.1, now 0.2'
    >>> difference([{"name": "joint", "steps": 4}], [{"name": "joint", "steps": 5}], "stages")
    "steps of 'joint' of stages was 4, now 5"
    >>> difference({}, {"seed": 0})
    'seed was not recorded, as by an older version of recipe-hf, now 0'
    """
    parts, parts_now = _parts(held), _parts(now)
    if parts is None or parts_now is None or (isinstance(held, list) and parts.keys() != parts_now.keys()):
        return None if held == now else f"{name} was {held!r}, now {now!r}"
    for key in dict.fromkeys([*parts_now, *parts]):
        place = f"{key} of {name}" if name else key
        if key not in parts:
            return f"{place} was not recorded, as by an older version of recipe-hf, now {parts_now[key]!r}"
        if key not in parts_now:
            return f"{place} was {parts[key]!r}, now nothing"
        found = difference(parts[key], parts_now[key], place)
        if found is not None:
            return found
    return None


def _parts(value: Any) -> dict[str, Any] | None:
    """Values by name, of a mapping or of a list of mappings that each have one."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        named = {repr(item["name"]): item for item in value}
        return named if len(named) == len(value) else None
    return None


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Writes the file anew, whole or not at all."""
    temporary = output.with_suffix(".json.new")
    temporary.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, output)
