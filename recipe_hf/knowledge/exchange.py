"""Import and export of facts as JSON lines and Parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .facts import Fact, NewFact, parse_fact
from .files import user_path

_COLUMNS = ("id", "statement", "prompt", "answer", "metadata", "valid_from", "valid_until", "created_at")
_PAST_COLUMNS = ("ended_at", "reason", "replaced_by")
_FOR_INFORMATION = ("id", "created_at")


def write_facts(path: str | os.PathLike[str], facts: Sequence[Fact]) -> None:
    """Writes facts to a `.jsonl` or `.parquet` file, whole or not at all.

    Raises:
        ImportError: If it is a Parquet file, and pyarrow is not installed.
        ValueError: If it is a file of another kind.
    """
    path = user_path(path)
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise ValueError(f"path must end in .jsonl or .parquet, got {str(path)!r}.")
    new = path.with_name(path.name + ".new")
    if _is_parquet(path):
        _parquet().write_table(_table(facts), new)
    else:
        new.write_text("".join(json.dumps(fact.to_dict(), ensure_ascii=False) + "\n" for fact in facts), "utf-8")
    os.replace(new, path)


def read_facts(path: str | os.PathLike[str]) -> list[NewFact]:
    """Reads facts that `add_knowledge` takes from a `.parquet` file, or from JSON lines.

    Past facts, as `write_facts` writes them, are left out.

    A line of JSON is a statement, a pair `[prompt, answer]`, or an object with `prompt` and `answer`, or `statement`,
    and whatever else a fact may have. A table has the same as columns, with `metadata` as a struct or as JSON.

    Raises:
        ImportError: If it is a Parquet file, and pyarrow is not installed.
        OSError: If the file cannot be read.
        ValueError: If it is not as described; the message names the file, and the line or row.
    """
    return list(read_facts_by_place(path).values())


def read_facts_by_place(path: str | os.PathLike[str]) -> dict[str, NewFact]:
    """Like `read_facts`, by the place of each fact, for error messages: `facts.jsonl, line 3`."""
    path = user_path(path)
    if _is_parquet(path):
        return dict(_told(_rows_of_parquet(path).items()))
    try:
        with open(path, encoding="utf-8-sig") as file:
            return dict(read_lines(file, f"{path}, "))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file in UTF-8: {error}.") from error


def read_lines(lines: Iterable[str], name: str = "") -> Iterator[tuple[str, NewFact]]:
    """The facts of JSON lines, one after the other: what to call each, `line 3` after `name`, and the fact.

    Raises:
        ValueError: If a line is not as `read_facts` describes.
    """
    return _told(_rows_of_json(lines, name))


def _told(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, NewFact]]:
    return ((place, parse_fact(_as_told(row), place)) for place, row in rows if not _is_past(row))


def _is_past(row: object) -> bool:
    """Whether a row is that of a past fact, as `write_facts` writes it."""
    return (
        isinstance(row, dict)
        and row.get("reason") in ("removed", "replaced")
        and all(row.get(name) is not None for name in (*_FOR_INFORMATION, "ended_at"))
    )


def _as_told(row: object) -> object:
    """A row without what the knowledge base added to the fact, and without the empty columns of past facts."""
    if not isinstance(row, dict):
        return row
    return {
        name: value
        for name, value in row.items()
        if name not in _FOR_INFORMATION and (value is not None or name not in _PAST_COLUMNS)
    }


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _rows_of_json(lines: Iterable[str], name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{name}line {number}"
            yield place, _of_json(line, place)


def _of_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg}).") from error
    except (RecursionError, ValueError) as error:  # Nested too deep, or an integer of too many digits.
        raise ValueError(f"{place}: cannot be read as JSON ({error}).") from error


def _rows_of_parquet(path: Path) -> dict[str, Any]:
    parquet = _parquet()
    import pyarrow

    try:
        table = parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # It says what keeps the file from being read.
            raise
        raise ValueError(f"{path} is not a Parquet file of facts: {error}") from error
    rows = {f"{path}, row {number}": row for number, row in enumerate(table, start=1)}
    for place, row in rows.items():
        if isinstance(row.get("metadata"), str):
            row["metadata"] = _of_json(row["metadata"], f"{place}.metadata")
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
