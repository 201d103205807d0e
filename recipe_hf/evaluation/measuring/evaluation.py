"""A whole evaluation of RECIPE: every number of edits, seed and protocol, with probes and general prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..asking.trials import Probe, Trial
from ..inputs import describe_rows, model_settings, run_settings
from .metrics import EditingReport, report_from_dict, report_to_dict
from .plans import Cell, Plan, Result, run_plan

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


@dataclass(frozen=True)
class Evaluation(Plan):
    """What to measure of RECIPE, beside what is said of a [`Plan`].

    Args:
        as_statements: Whether facts are told as whole statements.
        probes: Makers of further questions, by name.
        general: Sets of prompts that no fact concerns, by name.
    """

    as_statements: bool = False
    probes: Mapping[str, Probe] = field(default_factory=dict)
    general: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def editor(self) -> str:
        """Its only editor."""
        return "recipe-statements" if self.as_statements else "recipe"

    @property
    def cells(self) -> list[Cell]:
        return [Cell(number, self.editor, seed) for number in self.num_edits for seed in self.seeds]

    def trial(self, num_edits: int, seed: int) -> Trial:
        return Trial.draw(
            self.examples,
            num_edits,
            seed,
            self.num_questions,
            every=True,
            probes=self.probes.values(),
            general=self.general,
            ends_with_removal=True,
        )

    def settings(self, model: RecipeForCausalLM) -> dict[str, Any]:
        return run_settings(
            "evaluate",
            dataset=self.dataset,
            facts=describe_rows(self.examples),
            num_edits=list(self.num_edits),
            seeds=list(self.seeds),
            protocols=list(self.protocols),
            num_questions=self.num_questions,
            as_statements=self.as_statements,
            probes=list(self.probes),
            general={name: describe_rows(texts) for name, texts in self.general.items()},
            **model_settings(model),
        )

    def to_record(self, settings: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
        return {
            "dataset": settings["dataset"],
            "base_model": settings["base_model"],
            "finished": len(results) == len(self.cells) * len(self.protocols),
            "settings": settings,
            "reports": [report_to_dict(result.report) for result in results],
        }

    def from_record(self, record: Mapping[str, Any]) -> list[Result]:
        reports = [report_from_dict(report) for report in record["reports"]]
        return [Result(Cell(report.num_edits, self.editor, report.seed), report) for report in reports]


def run_evaluation(
    model: RecipeForCausalLM,
    evaluation: Evaluation,
    output: Path | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> list[EditingReport]:
    """The reports of an evaluation, which is run, or gone on with, as [`run_plan`] says."""
    _, results = run_plan(evaluation, model, output, batch_size, progress)
    return [result.report for result in results]
