"""A whole evaluation: every number of edits, seed and protocol, in one file, resumed where it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..datasets import EditExample
from .answers import Answers
from .editing import EditingReport, Probe, Trial, run_trial
from .general import GeneralPrompts
from .held import remembering
from .inputs import describe_rows, model_settings, run_settings
from .protocols import find_protocol
from .records import read_record, write_record
from .report import report_from_dict, report_to_dict

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

#: How many queries are remembered: what is asked again, with other facts held, need not be encoded again.
_REMEMBERED = 100_000


@dataclass(frozen=True)
class Evaluation:
    """What to measure.

    Args:
        dataset: Name of the data, for a reader.
        examples: The facts.
        num_edits: Numbers of facts to hold at once; 1 means many separate edits. All facts by default.
        seeds: Seeds, each of which draws facts anew.
        protocols: Names of protocols.
        num_questions: How many facts to ask about; all that are held by default.
        as_statements: Whether facts are told as whole statements.
        probes: Makers of further questions, by name.
        general: Sets of prompts that no fact concerns, by name.

    Raises:
        ValueError: If a protocol is unknown, a number of edits is not between 1 and the number of facts, something
            is named twice, or a list is empty.
    """

    dataset: str
    examples: Sequence[EditExample]
    num_edits: Sequence[int] = ()
    seeds: Sequence[int] = (0,)
    protocols: Sequence[str] = ("strict",)
    num_questions: int | None = None
    as_statements: bool = False
    probes: Mapping[str, Probe] = field(default_factory=dict)
    general: Mapping[str, GeneralPrompts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.num_edits:
            object.__setattr__(self, "num_edits", [len(self.examples)])
        wrong = [number for number in self.num_edits if not 1 <= number <= len(self.examples)]
        if wrong:
            raise ValueError(
                f"num_edits must be between 1 and the {len(self.examples)} facts of {self.dataset}, got {wrong}."
            )
        if self.num_questions is not None and self.num_questions < 1:
            raise ValueError(f"num_questions must be at least 1, got {self.num_questions}.")
        for name in self.protocols:
            find_protocol(name)
        for name in ("num_edits", "seeds", "protocols"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name one or more, none of them twice, got {values}.")

    def trial(self, num_edits: int, seed: int) -> Trial:
        """The facts and questions of one number of edits and seed."""
        return Trial.draw(
            self.examples,
            num_edits,
            seed,
            self.num_questions,
            every=True,
            probes=self.probes.values(),
            as_statements=self.as_statements,
            general=self.general,
            ends_with_removal=True,
        )

    def settings(self, model: RecipeForCausalLM) -> dict[str, Any]:
        """What the results depend on, as plain values: two runs with the same settings are the same run."""
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
            general={name: describe_rows(prompts.texts) for name, prompts in self.general.items()},
            **model_settings(model),
        )


def run_evaluation(
    model: RecipeForCausalLM,
    evaluation: Evaluation,
    output: Path | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> list[EditingReport]:
    """Runs an evaluation, or the rest of one.

    Results are written to `output` after each number of edits and seed, under all protocols. What the model said
    meanwhile is in a journal beside it, which is deleted at the end. If the run is interrupted, the same call goes on
    from there, and gives what an unbroken run would have given.

    Args:
        model: The model. Its knowledge is the same afterwards.
        evaluation: What to measure.
        output: JSON file; without it, nothing is written and nothing can be resumed.
        batch_size: Rows in one call of the base.
        progress: Whether to show a progress bar with the time left.

    Raises:
        ValueError: If `output` holds something else than this run.
        RuntimeError: If the model has no tokenizer.
    """
    settings = evaluation.settings(model) | {"batch_size": batch_size}
    done = [] if output is None else _finished(output, settings)
    cells = [(number, seed) for number in evaluation.num_edits for seed in evaluation.seeds]
    missing = [cell for cell in cells if cell not in {(r.num_edits, r.seed) for r in done}]
    if not missing:
        return done
    journal = None
    if output is not None:
        journal = output.with_suffix(".partial.jsonl")
        if not output.exists():
            journal.unlink(missing_ok=True)  # It is of no run that is known.
            _write(output, settings, done)
    answers = Answers(model, batch_size, journal)
    trials = [evaluation.trial(number, seed) for number, seed in missing]
    total = sum(len(t.questions_under(find_protocol(name))) for t in trials for name in evaluation.protocols)
    bar = tqdm(total=total, disable=not progress, unit="row", smoothing=0.05)
    with bar, remembering(model, _REMEMBERED):
        for number, trial in enumerate(trials, start=1 + len(cells) - len(missing)):
            bar.set_description(f"{number}/{len(cells)}: {trial.num_edits:,} facts, seed {trial.seed}")
            done += run_trial(model, trial, evaluation.protocols, answers, bar)
            if output is not None:
                _write(output, settings, done)
    if journal is not None:
        journal.unlink(missing_ok=True)
    return done


def _finished(output: Path, settings: dict[str, Any]) -> list[EditingReport]:
    """The reports in an output file of the same run; none if there is no file."""
    record = read_record(output, settings)
    if record is None:
        return []
    try:
        return [report_from_dict(report) for report in record["reports"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"output {output} is damaged: choose another file, or delete this one.") from error


def _write(output: Path, settings: dict[str, Any], reports: Sequence[EditingReport]) -> None:
    """Writes the file anew, whole or not at all."""
    cells = len(settings["num_edits"]) * len(settings["seeds"]) * len(settings["protocols"])
    record = {
        "dataset": settings["dataset"],
        "base_model": settings["base_model"],
        "finished": len(reports) == cells,
        "settings": settings,
        "reports": [report_to_dict(report) for report in reports],
    }
    write_record(output, record)
