"""Editors compared: the same facts and questions for each, in one file, to which more may be added later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from ...datasets import EditExample
from ..asking.questions import KINDS
from ..editors import EDITORS
from ..inputs import describe_rows, machine, model_settings, run_settings
from .metrics import EditingReport
from .outcomes import Outcome
from .plans import Cell, Plan, Result, run_plan
from .statistics import mean_and_interval
from .timing import TIMED_TOKENS

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: What is averaged over seeds: its name in a result, and the heading of its column.
COLUMNS = {
    "reliability": "reliability",
    "generality": "generality",
    "locality": "locality",
    "right_fact_edits": "right fact, edits",
    "right_fact_rephrasings": "right fact, rephrasings",
    "fired_unrelated": "fired, unrelated",
    "tokens_added": "tokens added",
    "edit_ms": "edit, ms a fact",
    "generation_ms": f"{TIMED_TOKENS} tokens, ms",
}
_HEADINGS = ["protocol", "facts", "editor", *COLUMNS.values()]


def comparison_record(settings: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results one by one, and as a table: `columns`, its headings, and `rows`, its cells as they are shown.

    The order of the rows does not depend on that of the results.
    """
    names = [name for name in EDITORS if any(r["editor"] == name for r in results)]
    rows = []
    for protocol in settings["protocols"]:
        for facts in sorted({r["facts"] for r in results}):
            for name in names:
                cell = [r for r in results if (r["protocol"], r["facts"], r["editor"]) == (protocol, facts, name)]
                if cell:
                    rows.append([protocol, f"{facts:,}", name, *(_mean(cell, column) for column in COLUMNS)])
    return {
        "command": settings["command"],
        "settings": dict(settings),
        "editors": {name: EDITORS[name].description for name in names},
        "columns": _HEADINGS,
        "rows": rows,
        "results": list(results),
    }


def _mean(results: Sequence[Mapping[str, Any]], column: str) -> str:
    values = [result[column] for result in results if column in result]
    return mean_and_interval(values) if values else "–"


# Of these figures, what a report calls them.
_METRICS = {
    **{kind: kind for kind in KINDS},
    "right_fact_edits": "reliability_right_fact",
    "right_fact_rephrasings": "generality_right_fact",
    "fired_unrelated": "locality_fired",
}


def _to_dict(result: Result) -> dict[str, Any]:
    report, metrics = result.report, result.report.metrics
    edited = [o.tokens_added or 0 for o in report.outcomes if o.kind == "reliability"]
    return {
        "facts": result.cell.num_edits,
        "editor": result.cell.editor,
        "seed": result.cell.seed,
        "inputs": dict(result.inputs),
        "protocol": report.protocol,
        **{name: metrics[metric] for name, metric in _METRICS.items() if metric in metrics},
        "tokens_added": mean(edited),
        "edit_ms": round(result.edit_ms, 1),
        "generation_ms": round(result.generation_ms),
        "settings": dict(result.settings),
        "outcomes": [asdict(outcome) for outcome in report.outcomes],
    }


def _from_dict(values: Mapping[str, Any]) -> Result:
    outcomes = [Outcome(**outcome) for outcome in values["outcomes"]]
    return Result(
        Cell(values["facts"], values["editor"], values["seed"]),
        EditingReport(values["facts"], values["seed"], outcomes, values["protocol"]),
        **{name: values[name] for name in ("inputs", "edit_ms", "generation_ms", "settings")},
    )


@dataclass(frozen=True)
class Comparison(Plan):
    """What to compare, beside what is said of a [`Plan`].

    Args:
        editors: Names of editors, among `EDITORS`.
        max_trained_edits: Editors that train take part where there are at most so many facts.
        validation: Rows that are no facts to edit in, for thresholds. The last `num_validation` are asked about, among
            as many as there are facts to edit in, but at least themselves.
        num_validation: How many of them are asked about.
        command: The command of `recipe-hf` whose run it is.

    Raises:
        ValueError: If a value is not as described.
    """

    editors: Sequence[str] = ()
    max_trained_edits: int = 100
    validation: Sequence[EditExample] = ()
    num_validation: int = 500
    command: str = "compare"

    is_timed = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_named("editors")
        for name in self.editors:
            if name not in EDITORS:
                raise ValueError(f"editors must be among {', '.join(EDITORS)}, got {name!r}.")
        if not self.cells:
            raise ValueError(
                f"editors that train take part with at most max_trained_edits={self.max_trained_edits} facts, and "
                f"{', '.join(self.editors)} do, so that none is left for num_edits {list(self.num_edits)}."
            )
        if self.num_validation < 1:
            raise ValueError(f"num_validation must be at least 1, got {self.num_validation}.")
        tuned = [name for name in self.editors if EDITORS[name].is_tuned]
        if tuned and not self.validation:
            raise ValueError(f"validation rows are needed for {', '.join(tuned)}, got none.")

    @property
    def cells(self) -> list[Cell]:
        return [
            Cell(number, name, seed)
            for number in self.num_edits
            for name in self.editors
            if self.takes_part(name, number)
            for seed in self.seeds
        ]

    def takes_part(self, editor: str, num_edits: int) -> bool:
        """Whether an editor is asked with so many facts: one that trains is not where they are too many."""
        return num_edits <= self.max_trained_edits or not EDITORS[editor].trains

    @property
    def left_out(self) -> list[str]:
        names = {number: [n for n in self.editors if not self.takes_part(n, number)] for number in self.num_edits}
        return [
            f"{', '.join(left_out)}: not with {number:,} facts (max_trained_edits)"
            for number, left_out in names.items()
            if left_out
        ]

    def tuning_rows(self, num_edits: int) -> tuple[list[EditExample], list[EditExample]]:
        """Rows to hold and rows to ask about when thresholds are chosen; of rows with one prompt, the last counts."""
        rows = list({example.prompt: example for example in self.validation}.values())
        return rows[-max(num_edits, self.num_validation) :], rows[-self.num_validation :]

    def settings(self, model: RecipeForCausalLM) -> dict[str, Any]:
        return run_settings(
            self.command,
            dataset=self.dataset,
            facts=describe_rows(self.examples),
            validation=describe_rows(self.validation),
            num_validation=self.num_validation,
            protocols=list(self.protocols),
            num_questions=self.num_questions,
            options=asdict(self.options),
            machine=machine(),
            **model_settings(model),
        )

    def to_record(self, settings: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
        return comparison_record(settings, [_to_dict(result) for result in results])

    def from_record(self, record: Mapping[str, Any]) -> list[Result]:
        return [_from_dict(result) for result in record["results"]]


def run_comparison(
    model: RecipeForCausalLM,
    comparison: Comparison,
    output: Path | None = None,
    batch_size: int = 32,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The record of a comparison, which is run, or gone on with, as [`run_plan`] says.

    More editors, numbers of edits or seeds may be asked for later: only what is missing is run. `report` is told a
    line when each editor is done.

    Returns:
        What `output` holds: `columns` and `rows` of the table, and `results`, one for each editor, number of facts,
        seed and protocol, with the outcome of every question.
    """
    return run_plan(comparison, model, output, batch_size, report=report)[0]
