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
        settings: What the results depend on, as plain values.

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
    for name, value in json.loads(json.dumps(settings)).items():
        if held.get(name) != value:
            raise ValueError(
                f"output {output} holds another run: {name} was {held.get(name)!r}, now {value!r}. {_ADVICE}"
            )
    return record


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Writes the file anew, whole or not at all."""
    temporary = output.with_suffix(".json.new")
    temporary.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, output)
