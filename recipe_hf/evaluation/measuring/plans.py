"""Plans: every number of edits, editor, seed and protocol, run into one file and resumed where it was interrupted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tqdm.auto import tqdm

from ...datasets import EditExample
from ..asking.answers import Answers
from ..asking.protocols import find_protocol
from ..asking.questions import KINDS
from ..asking.trials import Trial
from ..editors import EDITORS, EditorOptions
from ..records import check_same, read_record, write_record
from .editing import run_trial
from .metrics import EditingReport
from .timing import Times, remembering

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: How many queries are remembered: what is asked again, with other facts held, need not be encoded again.
_REMEMBERED = 100_000


class Cell(NamedTuple):
    """A part of a plan, done as a whole: an editor, asked under all protocols with so many facts, drawn by a seed."""

    num_edits: int
    editor: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What came of a cell under a protocol.

    Args:
        cell: The cell.
        report: What was asked, and what happened.
        inputs: What it depends on that no other editor's results do.
        edit_ms: Milliseconds to take a fact in, on average.
        generation_ms: Milliseconds to look a prompt up and write on.
        settings: What the editor says of how it edited.
    """

    cell: Cell
    report: EditingReport
    inputs: Mapping[str, Any] = field(default_factory=dict)
    edit_ms: float = 0.0
    generation_ms: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan(ABC):
    """What to measure.

    Args:
        dataset: Name of the data, for a reader.
        examples: The facts to draw from.
        num_edits: Numbers of facts to hold at once; 1 means many separate edits. All facts by default.
        seeds: Seeds, each of which draws facts anew.
        protocols: Names of protocols.
        num_questions: How many facts to ask about; all that are held by default.
        options: What the editors are made with.

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
    options: EditorOptions = field(default_factory=EditorOptions)

    #: Whether to time edits and answers.
    is_timed: ClassVar[bool] = False

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
        self._check_named("num_edits", "seeds", "protocols")

    def _check_named(self, *names: str) -> None:
        for name in names:
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must name one or more, none of them twice, got {values}.")

    @property
    @abstractmethod
    def cells(self) -> list[Cell]:
        """Its parts, in the order they are done."""

    @property
    def left_out(self) -> list[str]:
        """What is not done, in words, a line each."""
        return []

    def trial(self, num_edits: int, seed: int) -> Trial:
        """The facts and questions of one number of edits and seed."""
        return Trial.draw(self.examples, num_edits, seed, self.num_questions)

    def tuning_rows(self, num_edits: int) -> tuple[list[EditExample], list[EditExample]]:
        """Rows to hold and rows to ask about when thresholds are chosen."""
        return [], []

    @abstractmethod
    def settings(self, model: RecipeForCausalLM) -> dict[str, Any]:
        """What all results depend on, as plain values: two runs with the same settings are the same run."""

    @abstractmethod
    def to_record(self, settings: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
        """Results as a file keeps them, with `settings`."""

    @abstractmethod
    def from_record(self, record: Mapping[str, Any]) -> list[Result]:
        """The results that [`to_record`] kept."""


def run_plan(
    plan: Plan,
    model: RecipeForCausalLM,
    output: Path | None = None,
    batch_size: int = 32,
    progress: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], list[Result]]:
    """Runs a plan, or the rest of one.

    Results are written to `output` after each cell. What the language model said meanwhile is in a journal beside it,
    which is deleted at the end. If the run is interrupted, the same call goes on from there, and gives what an
    unbroken run would have given.

    Args:
        plan: What to measure.
        model: The model. It is the same afterwards.
        output: JSON file; without it, nothing is written and nothing can be resumed.
        batch_size: Rows in one call of the language model.
        progress: Whether to show a progress bar with the time left.
        report: Told what is left out, and a line when each cell is done.

    Returns:
        The record, which is what `output` holds, and the results.

    Raises:
        ValueError: If `output` holds something else than this run.
        RuntimeError: If the model has no tokenizer.
    """
    settings = plan.settings(model) | {"batch_size": batch_size}
    inputs = {name: EDITORS[name].inputs(plan.options) for name in dict.fromkeys(cell.editor for cell in plan.cells)}
    record = None if output is None else read_record(output, settings)
    results = [] if record is None else _read(output, plan, record)
    if output is not None:
        held = {result.cell.editor: result.inputs for result in results if result.cell.editor in inputs}
        check_same(output, held, {name: inputs[name] for name in held})
    done = {result.cell for result in results}
    missing = [cell for cell in plan.cells if cell not in done]
    for line in plan.left_out:
        report(line)
    record = plan.to_record(settings, results)
    if not missing:
        return record, results
    journal = None
    if output is not None:
        journal = output.with_suffix(".partial.jsonl")
        if not output.exists():
            journal.unlink(missing_ok=True)  # It is of no run that is known.
            write_record(output, record)
    answers = Answers(batch_size, journal)
    trials = [plan.trial(cell.num_edits, cell.seed) for cell in missing]
    total = sum(len(t.questions_under(find_protocol(name))) for t in trials for name in plan.protocols)
    with tqdm(total=total, disable=not progress, unit="row", smoothing=0.05) as bar, remembering(model, _REMEMBERED):
        for number, (cell, trial) in enumerate(zip(missing, trials, strict=True), start=1 + len(done)):
            bar.set_description(f"{number}/{len(plan.cells)}: {trial.num_edits:,} facts, seed {trial.seed}")
            found = _measure(plan, model, cell, trial, answers, bar, inputs[cell.editor])
            results += found
            record = plan.to_record(settings, results)
            if output is not None:
                write_record(output, record)
            report(result_line(found))
    if journal is not None:
        journal.unlink(missing_ok=True)
    return record, results


def result_line(results: Sequence[Result]) -> str:
    """The results of a cell, under each protocol, in a line."""
    number, editor, seed = results[0].cell
    shown = []
    for report in (result.report for result in results):
        metrics = report.metrics
        kinds = ", ".join(f"{kind} {metrics[kind]:.1f}" for kind in KINDS if kind in metrics)
        shown.append(f"{report.protocol}: {kinds}")
    return f"{editor}, {number:,} facts, seed {seed}: {'; '.join(shown)}"


def _read(output: Path | None, plan: Plan, record: Mapping[str, Any]) -> list[Result]:
    try:
        return plan.from_record(record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"output {output} is damaged: choose another file, or delete this one.") from error


def _measure(
    plan: Plan,
    model: RecipeForCausalLM,
    cell: Cell,
    trial: Trial,
    answers: Answers,
    bar: tqdm,
    inputs: Mapping[str, Any],
) -> list[Result]:
    kind = EDITORS[cell.editor]
    editor = kind.make(model, plan.options)
    if kind.is_tuned:
        editor.tune(*plan.tuning_rows(trial.num_edits))
    times = Times() if plan.is_timed else None
    reports = run_trial(editor, trial, plan.protocols, answers, bar, times)
    took = {} if times is None else {"edit_ms": sum(times.edits) / len(trial.facts), "generation_ms": times.answer}
    return [Result(cell, report, inputs, settings=dict(editor.settings), **took) for report in reports]
