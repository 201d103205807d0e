"""Evaluations over several numbers of edits and seeds: a table to read, a JSON to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..modeling.model import RecipeForCausalLM
from .editing import EditingReport

#: Columns of the table: metric and heading.
COLUMNS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality": "locality",
    "portability": "portability",
    "reliability_right_fact": "right fact, edits",
    "generality_right_fact": "right fact, rephrasings",
    "locality_fired": "fired, unrelated",
}


def summarize(reports: Sequence[EditingReport]) -> dict[int, dict[str, str]]:
    """For each number of edits, the mean of each metric asked for in percent, and over several seeds its deviation."""
    by_number: dict[int, list[dict[str, float]]] = {}
    for report in sorted(reports, key=lambda report: report.num_edits):
        by_number.setdefault(report.num_edits, []).append(report.metrics)
    asked = set.intersection(*(set(metrics) for rows in by_number.values() for metrics in rows))
    return {
        num_edits: {h: _mean_and_deviation([m[name] for m in rows]) for name, h in COLUMNS.items() if name in asked}
        for num_edits, rows in by_number.items()
    }


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def markdown_table(table: dict[int, dict[str, str]]) -> str:
    """The table of [`summarize`] in Markdown."""
    headings = ["facts", *next(iter(table.values()))]
    rows = [[f"{num_edits:,}", *cells.values()] for num_edits, cells in table.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, ["---:"] * len(headings), *rows])


def write_json(path: str | Path, model: RecipeForCausalLM, dataset: str, reports: Sequence[EditingReport]) -> None:
    """Writes every outcome of every report, with what was evaluated."""
    record: dict[str, Any] = {
        "protocol": "strict",
        "dataset": dataset,
        "base_model": model.config.base_model_name_or_path,
        "reports": [
            {
                "num_edits": report.num_edits,
                "seed": report.seed,
                "metrics": report.metrics,
                "outcomes": [outcome.to_dict() for outcome in report.outcomes],
            }
            for report in reports
        ],
    }
    Path(path).write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
