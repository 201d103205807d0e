"""What is kept of evaluations: means and intervals for tables, and examples of what went wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from ..measuring.metrics import EditingReport, report_from_dict
from ..measuring.outcomes import Outcome
from ..measuring.statistics import half_interval
from .tables import COLUMNS

#: Kinds of failure: what they are, and the outcomes that are of this kind.
FAILURES: Mapping[str, tuple[str, Callable[[Outcome], bool]]] = {
    "missed": (
        "The gate stayed shut: the fact asked for was not used",
        lambda o: o.concerns and o.retrieved_id is None,
    ),
    "wrong fact": (
        "Another fact was used than the one asked for",
        lambda o: o.concerns and o.retrieved_id is not None and not o.is_right_fact,
    ),
    "false fire": (
        "A fact was used for a question that the data call unrelated",
        lambda o: not o.concerns and o.retrieved_id is not None,
    ),
    "wrong answer": (
        "The right fact was used, and the base said something else",
        lambda o: o.concerns and bool(o.is_right_fact) and o.accuracy < 1,
    ),
}


def summarize_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation, and the mean of each metric over seeds with half its 95% interval.

    Args:
        record: What [`run_evaluation`][recipe_hf.evaluation.measuring.evaluation.run_evaluation] wrote.

    Returns:
        Settings; in `protocols`, by protocol and number of edits, `[mean, half interval]` for each metric, in percent;
        the interval is `None` for a single seed; and in `asked` likewise, how many questions of each kind there were
        with each seed.

    Raises:
        ValueError: If the evaluation is not finished.
    """
    if not record["finished"]:
        raise ValueError(f"The evaluation of {record['dataset']} is not finished: run the same command again.")
    protocols: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    asked: dict[str, dict[str, dict[str, int]]] = {}
    for protocol in record["settings"]["protocols"]:
        for number in sorted(record["settings"]["num_edits"]):
            reports = _reports(record, protocol, number)
            rows = [report.metrics for report in reports]
            asked.setdefault(protocol, {})[str(number)] = dict(Counter(o.kind for o in reports[0].outcomes))
            names = [name for name in rows[0] if all(name in row for row in rows)]
            protocols.setdefault(protocol, {})[str(number)] = {
                name: _mean_and_interval([row[name] for row in rows]) for name in names
            }
    kept = ("dataset", "seeds", "num_questions", "as_statements", "base_model", "weights", "dtype")
    return {name: record["settings"][name] for name in kept} | {"asked": asked, "protocols": protocols}


def _reports(record: Mapping[str, Any], protocol: str, num_edits: int) -> list[EditingReport]:
    return [
        report_from_dict(report)
        for report in record["reports"]
        if (report["protocol"], report["num_edits"]) == (protocol, num_edits)
    ]


def _mean_and_interval(values: Sequence[float]) -> list[float | None]:
    return [round(mean(values), 3), round(half_interval(values), 3) if len(values) > 1 else None]


def figure(metric: Sequence[float | None]) -> str:
    """A mean with its interval, as tables show it.

    >>> figure([50.0, None]), figure([51.04, 2.5])
    ('50.0', '51.0 ± 2.5')
    """
    value, interval = metric
    return f"{value:.1f}" + (f" ± {interval:.1f}" if interval is not None else "")


def summary_rows(
    summary: Mapping[str, Any], protocol: str, columns: Mapping[str, str] = COLUMNS, numbers: Sequence[int] = ()
) -> dict[int, dict[str, str]]:
    """For each number of edits, the figures of a summary under their headings; metrics that none has are left out.

    Args:
        summary: What [`summarize_record`] gives.
        protocol: Name of the protocol.
        columns: Headings by metric.
        numbers: Numbers of edits; all by default.
    """
    rows = {int(number): metrics for number, metrics in summary["protocols"][protocol].items()}
    chosen = [number for number in rows if not numbers or number in numbers]
    shown = {name: heading for name, heading in columns.items() if any(name in rows[number] for number in chosen)}
    return {
        number: {h: figure(rows[number][name]) if name in rows[number] else "–" for name, h in shown.items()}
        for number in chosen
    }


def failures(
    record: Mapping[str, Any], num_edits: int, protocol: str, statements: Sequence[str], count: int = 4, seed: int = 0
) -> dict[str, Any]:
    """How often each kind of failure happens, and examples drawn by chance.

    Args:
        record: What [`run_evaluation`][recipe_hf.evaluation.measuring.evaluation.run_evaluation] wrote.
        num_edits: Facts held.
        protocol: Name of the protocol.
        statements: The facts of the first seed, by id.
        count: Examples of each kind.
        seed: Seed of the draw.

    Returns:
        For each of [`FAILURES`], its share in percent of the questions that it can happen to, over all seeds, and
        `examples` from the first seed.
    """
    reports = _reports(record, protocol, num_edits)
    outcomes = [outcome for report in reports for outcome in report.outcomes]
    found: dict[str, Any] = {}
    for name, (description, is_such) in FAILURES.items():
        asked = [o for o in outcomes if o.concerns != (name == "false fire")]
        such = [o for o in reports[0].outcomes if is_such(o)]
        drawn = random.Random(seed).sample(such, min(count, len(such)))
        found[name] = {
            "description": description,
            "share": round(100 * mean(map(is_such, asked)), 2) if asked else None,
            "examples": [
                {
                    "kind": o.detail or o.kind,
                    "query": o.query,
                    "fact": None if o.nearest_id is None else statements[o.nearest_id],
                    "said": o.output,
                    "expected": o.expected,
                    "score": round(o.score or 0.0, 2),
                    "threshold": round(o.threshold or 0.0, 2),
                }
                for o in drawn
            ],
        }
    return found
