"""General prompts, which no edited fact concerns: for how many of them a fact is used nevertheless."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_LETTERS = "ABCDEFGHIJ"


def _multiple_choice(row: Mapping[str, Any]) -> str:
    choices = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, row["choices"], strict=False)]
    return "\n".join([row["question"], *choices, "Answer:"])


#: For each layout, the fields of a row and the prompt made of them, as lm-eval words it.
LAYOUTS: Mapping[tuple[str, ...], Callable[[Mapping[str, Any]], str]] = {
    ("text",): lambda row: row["text"],
    ("prompt",): lambda row: row["prompt"],
    ("question", "choices"): _multiple_choice,
    ("goal", "sol1", "sol2"): lambda row: f"Question: {row['goal']}\nAnswer:",
    ("sentence1", "sentence2"): lambda row: (
        f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    ),
}


def load_prompts(path: str | Path) -> list[str]:
    """Reads prompts from JSON lines: texts, or rows of MMLU, PIQA or RTE, which lm-eval's prompts are made of.

    Args:
        path: A file, with a string or an object to a line. An object has a `text` or a `prompt`, or `question` and
            `choices` (MMLU), `goal`, `sol1` and `sol2` (PIQA), or `sentence1` and `sentence2` (RTE).

    Raises:
        OSError: If there is no such file.
        ValueError: If a line is none of these (it is named), or the file holds no prompt.
    """
    prompts = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            prompts.append(_prompt(f"{path}, line {number}", line))
    if not prompts:
        raise ValueError(f"{path} must hold a prompt to a line, got none.")
    return prompts


def _prompt(where: str, line: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}.") from error
    if isinstance(row, str):
        row = {"text": row}
    fields = row.keys() if isinstance(row, dict) else set()
    for needed, read in LAYOUTS.items():
        if fields >= set(needed):
            wrong = [n for n in needed if not isinstance(row[n], list if n == "choices" else str) or not row[n]]
            if wrong:
                raise ValueError(f"{where}: field {wrong[0]!r} must not be empty, got {row[wrong[0]]!r}.")
            return read(row)
    known = "; ".join(", ".join(needed) for needed in LAYOUTS)
    raise ValueError(f"{where} must be a string or an object with {known}; its fields are {', '.join(fields)}.")
