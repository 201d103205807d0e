"""Facts as files of other programs: JSON lines and Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..facts import Fact

_COLUMNS = ("id", "statement", "prompt", "answer", "metadata", "valid_from", "valid_until", "created_at")
_PAST_COLUMNS = ("ended_at", "reason", "replaced_by")
_GIVEN_BY_THE_BASE = ("id", "created_at", "ended_at", "replaced_by")


def write_facts(path: str | os.PathLike[str], facts: Sequence[Fact]) -> None:
    """Writes facts to a `.jsonl` or `.parquet` file, whole or not at all.

    Raises:
        ImportError: If it is a Parquet file, and pyarrow is not installed.
        ValueError: If it is a file of another kind.
    """
    path = Path(path)
    new = path.with_name(path.name + ".new")
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise ValueError(f"path must end in .jsonl or .parquet, got {str(path)!r}.")
    if _is_parquet(path):
        _parquet().write_table(_table(facts), new)
    else:
        new.write_text("".join(json.dumps(fact.to_dict(), ensure_ascii=False) + "\n" for fact in facts), "utf-8")
    os.replace(new, path)


def read_facts(path: str | os.PathLike[str]) -> list[Any]:
    """Reads facts that `add_knowledge` takes from a `.parquet` file, or from JSON lines. Past facts are left out.

    A line of JSON is a statement, a pair `[prompt, answer]`, or an object with `prompt` and `answer`, or `statement`,
    and what else a fact may have. A row of a table has the same as columns, `metadata` as a struct or as JSON.

    Raises:
        ImportError: If it is a Parquet file, and pyarrow is not installed.
        ValueError: If it is not as described.
    """
    path = Path(path)
    rows = _rows_of_parquet(path) if _is_parquet(path) else _rows_of_json(path)
    return [
        {name: value for name, value in row.items() if name not in (*_GIVEN_BY_THE_BASE, "reason")}
        if isinstance(row, dict)
        else row
        for row in rows
        if not (isinstance(row, dict) and row.get("reason"))
    ]


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _rows_of_json(path: Path) -> list[Any]:
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file in UTF-8: {error}.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}).") from error
    return rows


def _rows_of_parquet(path: Path) -> list[Any]:
    parquet = _parquet()
    import pyarrow

    try:
        rows = parquet.read_table(path).to_pylist()
        for row in rows:
            if isinstance(row.get("metadata"), str):
                row["metadata"] = json.loads(row["metadata"])
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path} is not a Parquet file of facts: {error}") from error
    return rows


def _table(facts: Sequence[Fact]) -> Any:
    import pyarrow

    numbers = ("id", "replaced_by")
    columns = (*_COLUMNS, *(_PAST_COLUMNS if any(hasattr(fact, "reason") for fact in facts) else ()))
    values = {name: [getattr(fact, name, None) for fact in facts] for name in columns}
    values["metadata"] = [json.dumps(metadata, ensure_ascii=False) for metadata in values["metadata"]]
    types = {name: pyarrow.int64() if name in numbers else pyarrow.string() for name in columns}
    return pyarrow.table({name: pyarrow.array(values[name], types[name]) for name in columns})


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'recipe-hf[parquet]'.") from error
    return pyarrow.parquet
