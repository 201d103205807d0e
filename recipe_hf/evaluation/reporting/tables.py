"""Reports of trials as Markdown tables, and as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..asking.protocols import PROTOCOLS
from ..measuring.metrics import EditingReport
from ..measuring.statistics import mean_and_interval

#: Columns of the table: metric and heading.
COLUMNS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality": "locality",
    "portability": "portability",
    "portability_base": "portability, base",
    "reliability_right_fact": "right fact, edits",
    "generality_right_fact": "right fact, rephrasings",
    "locality_fired": "fired, unrelated",
    "locality_fired_on_subject": "fired, of a subject named",
}
_MEASURES = {
    "_given_right_fact": "accuracy where the right fact was used",
    "_right_fact": "right fact used",
    "_nearest": "right key nearest (recall@1)",
    "_fired_on_subject": "a fact about a subject that is named was used",
    "_fired_own": "the fact it was made from was used",
    "_fired": "a fact was used",
}
_NAMES = {
    "retention_first": "reliability of the tenth added first",
    "retention_last": "reliability of the tenth added last",
    "calibration_error": "expected calibration error",
    "equal_after_removal": "prompts answered as by the base once all facts are removed",
}
_OF_ALL_KINDS = ("retention", "calibration", "equal", "general_")  # They come last.


def summarize(reports: Sequence[EditingReport]) -> dict[int, dict[str, str]]:
    """For each number of edits, the mean of each metric asked for in percent, over several seeds with its interval.

    A metric that not all seeds have is "–".
    """
    by_number = _by_number(reports)
    whole = {number: set.intersection(*map(set, rows)) for number, rows in by_number.items()}
    shown = {name: heading for name, heading in COLUMNS.items() if any(name in names for names in whole.values())}
    return {
        number: {
            heading: mean_and_interval([m[name] for m in rows]) if name in whole[number] else "–"
            for name, heading in shown.items()
        }
        for number, rows in by_number.items()
    }


def _by_number(reports: Sequence[EditingReport]) -> dict[int, list[dict[str, float]]]:
    by_number: dict[int, list[dict[str, float]]] = {}
    for report in sorted(reports, key=lambda report: report.num_edits):
        by_number.setdefault(report.num_edits, []).append(report.metrics)
    return by_number


def markdown_table(table: Mapping[int, Mapping[str, str]]) -> str:
    """The table of [`summarize`] in Markdown."""
    headings = ["facts", *next(iter(table.values()))]
    return markdown_rows([headings, *([f"{num_edits:,}", *cells.values()] for num_edits, cells in table.items())])


def markdown_rows(rows: Sequence[Sequence[str]], first: str = "---:") -> str:
    """Rows of cells as a Markdown table; the first row holds the headings. `first` aligns the first column."""
    rule = [first, *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def details_table(reports: Sequence[EditingReport]) -> str:
    """Every metric that is not in the table of [`summarize`], in Markdown: a metric to a row, in percent."""
    values: dict[int, dict[str, list[float]]] = {}
    for number, rows in _by_number(reports).items():
        names = dict.fromkeys(name for metrics in rows for name in metrics)
        values[number] = {name: [metrics[name] for metrics in rows if name in metrics] for name in names}
    return markdown_rows(details_rows(values, mean_and_interval), first="---")


def details_rows(by_number: Mapping[Any, Mapping[str, Any]], show: Callable[[Any], str]) -> list[list[str]]:
    """Every metric that is not in the table of [`summarize`], a metric to a row, after the headings.

    Args:
        by_number: For each number of facts, the metrics by name.
        show: Makes a cell of one.
    """
    names = dict.fromkeys(name for metrics in by_number.values() for name in metrics)
    headings = ["", *(f"{int(number):,} fact{'s' if int(number) > 1 else ''}" for number in by_number)]
    rows = [
        [_describe(name), *(show(metrics[name]) if name in metrics else "–" for metrics in by_number.values())]
        for name in sorted(names, key=lambda name: name.startswith(_OF_ALL_KINDS))
        if name not in COLUMNS
    ]
    return [headings, *rows]


def _describe(metric: str) -> str:
    name, _, detail = metric.partition("/")
    if name == "general_fired":
        return f"general prompts, {detail}: a fact was used"
    for suffix, words in _MEASURES.items():
        if name.endswith(suffix):
            return f"{name.removesuffix(suffix).replace('_', ' ')}: {words}"
    return _NAMES.get(name, name.replace("_", " ")) + (f", {detail.replace('_', ' ').lower()}" if detail else "")


def markdown_report(settings: Mapping[str, Any], reports: Sequence[EditingReport]) -> str:
    """All reports of a run as a Markdown page."""
    seeds = settings["seeds"]
    asked = settings["num_questions"]
    lines = [
        f"# {settings['dataset']}",
        f"Trained weights {settings['weights']}, base model {settings['base_model']} in {settings['dtype']}. "
        f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; in percent"
        + (", mean ± half the 95% confidence interval over seeds (Student's t)." if len(seeds) > 1 else "."),
        "With 1 fact, each is the only one held, and the figures are the averages of many such edits. "
        + (f"Asked about at most {asked:,} of the facts held." if asked else "Asked about all facts held.")
        + (" Facts were told as whole statements." if settings["as_statements"] else ""),
    ]
    for name in dict.fromkeys(report.protocol for report in reports):
        chosen = [report for report in reports if report.protocol == name]
        text = PROTOCOLS[name].description
        lines += [f"## Protocol `{name}`", text[0].upper() + text[1:]]
        lines += [markdown_table(summarize(chosen)), details_table(chosen)]
    return "\n\n".join(lines) + "\n"
