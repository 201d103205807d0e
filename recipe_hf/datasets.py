"""Knowledge editing data sets, as lists of [`EditExample`]."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EditExample:
    """One fact to edit in, with a question that it must reach and one that it must leave alone.

    Args:
        prompt: Text that the answer continues.
        answer: What the edited model must answer, without leading space.
        subject: What the fact is about.
        rephrase_prompt: Another way to ask for the same fact (generality).
        locality_prompt: An unrelated question, whose answer must not change (locality).
        locality_answer: The unedited answer to it.
    """

    prompt: str
    answer: str
    subject: str
    rephrase_prompt: str
    locality_prompt: str
    locality_answer: str


_COUNTERFACT_FIELDS = {
    "prompt": "prompt",
    "answer": "target_new",
    "subject": "subject",
    "rephrase_prompt": "rephrase_prompt",
    "locality_prompt": "locality_prompt",
    "locality_answer": "locality_ground_truth",
}


def load_counterfact(path: str | Path) -> list[EditExample]:
    """Loads CounterFact in the layout of EasyEdit and of the RECIPE authors: a JSON list of flat rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a list, or a row lacks a field; the message names row and field.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a non-empty JSON list of rows, got {type(rows).__name__}.")
    return [_example(path, number, row) for number, row in enumerate(rows)]


def _example(path: str | Path, number: int, row: Any) -> EditExample:
    values = {}
    for name, field in _COUNTERFACT_FIELDS.items():
        value = row.get(field) if isinstance(row, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{path}, row {number}: field {field!r} must be a non-empty string, got {value!r}.")
        values[name] = value.strip()
    return EditExample(**values)
