"""The number of continuous prompt tokens, swept: one short training each, and the same questions (paper, Figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets import EditExample
from ..evaluation.asking.protocols import find_protocol
from ..evaluation.asking.questions import KINDS
from ..evaluation.inputs import describe_rows, machine, run_settings, versions
from ..evaluation.measuring.editing import evaluate_editing
from ..evaluation.records import read_record, write_record
from ..evaluation.reporting.plots import check_matplotlib
from ..evaluation.reporting.tables import markdown_rows
from ..modeling.model import RecipeForCausalLM
from .config import TrainingConfig
from .saving import is_there
from .start import COMPUTING, load_data, load_start, training_inputs
from .trainer import Trainer

_COLUMNS = ["protocol", "prompt tokens", "facts", *KINDS, "right fact, edits", "training, minutes"]


def run_sweep(
    config: TrainingConfig,
    lengths: Sequence[int],
    dataset: str,
    examples: Sequence[EditExample],
    num_edits: int,
    num_questions: int | None = None,
    protocols: Sequence[str] = ("strict",),
    output: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains a checkpoint for each number of prompt tokens, all else equal, and evaluates its best one.

    Args:
        config: What each training run is told; its `output_dir` gets a directory for each. A run that was interrupted
            goes on from its last checkpoint.
        lengths: Numbers of prompt tokens.
        dataset: Name of the data to evaluate on, for a reader.
        examples: Facts to evaluate on.
        num_edits: How many of them to hold at once.
        num_questions: How many to ask about; all that are held by default.
        protocols: Names of protocols.
        output: JSON file, written after each number; what is in it is not run again, where all that it depends on is
            as it was.
        report: Told a line when a number is done.

    Returns:
        The record, which is what `output` holds: `columns` and `rows` of the table, and `results`.

    Raises:
        ValueError: If an argument is not as described, or `output` holds something else.
    """
    if not lengths or min(lengths) < 1 or len(set(lengths)) < len(lengths):
        raise ValueError(f"lengths must be different numbers of at least 1, got {list(lengths)}.")
    if not 1 <= num_edits <= len(examples):
        raise ValueError(f"num_edits must be between 1 and the {len(examples)} facts of {dataset}, got {num_edits}.")
    for name in protocols:
        find_protocol(name)
    training = training_inputs(config, load_data(config.data), load_start(config))
    del training["model"]["num_continuous_prompt_tokens"]
    settings = run_settings(
        "sweep",
        dataset=dataset,
        facts=describe_rows(examples),
        num_edits=num_edits,
        num_questions=num_questions,
        protocols=list(protocols),
        train_file=config.data.train_file,
        training=training,
        computing=config.model_dump(include=COMPUTING),
        machine=machine(),
        versions=versions("torch", "transformers"),
    )
    record = None if output is None else read_record(output, settings)
    results = [] if record is None else list(record["results"])
    done = {result["prompt_tokens"] for result in results}
    for length in lengths:
        if length in done:
            continue
        directory = Path(config.run.output_dir) / f"{length}-prompt-tokens"
        trainer = Trainer(
            config.changed({"model.num_continuous_prompt_tokens": length, "run.output_dir": str(directory)})
        )
        if output is not None and not output.exists():
            write_record(output, _record(settings, results))  # So that no other run goes on with this training.
        best = trainer.train(resume=is_there(directory / "checkpoint"))
        minutes = round(trainer.seconds / 60, 1)
        del trainer
        model = RecipeForCausalLM.from_pretrained(best, base_model=config.model.base_model)
        for name in protocols:
            metrics = evaluate_editing(model, examples, num_edits, 0, num_questions, protocol=name).metrics
            results.append({"protocol": name, "prompt_tokens": length, "minutes": minutes, "metrics": metrics})
            report(f"{length} prompt tokens, {name}: {_cells(results[-1], num_edits)[3:]}")
        if output is not None:
            write_record(output, _record(settings, results))
    return _record(settings, results)


def _record(settings: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    order = sorted(results, key=lambda r: (settings["protocols"].index(r["protocol"]), r["prompt_tokens"]))
    rows = [_cells(result, settings["num_edits"]) for result in order]
    return {"command": "sweep", "settings": dict(settings), "columns": _COLUMNS, "rows": rows, "results": order}


def _cells(result: Mapping[str, Any], num_edits: int) -> list[str]:
    """The row of a result in the table."""
    metrics = result["metrics"]
    shown = [f"{metrics[name]:.1f}" if name in metrics else "–" for name in (*KINDS, "reliability_right_fact")]
    return [result["protocol"], str(result["prompt_tokens"]), f"{num_edits:,}", *shown, str(result["minutes"])]


def sweep_page(record: Mapping[str, Any]) -> str:
    """A record as Markdown without headings, for a page of its own or a part of another."""
    settings = record["settings"]
    training, asked = settings["training"], settings["num_questions"]
    stages = ", ".join(f"{stage['name']} {stage['steps']}" for stage in training["stages"])
    return "\n\n".join(
        [
            f"{settings['dataset']}. A training run for each number of tokens on {settings['train_file']}, of these "
            f"steps: {stages}. All else is equal, seed {training['run']['seed']}. Facts are held at once; asked about "
            f"{f'at most {asked:,}' if asked else 'all'} of them. In percent.",
            markdown_rows([record["columns"], *record["rows"]], first="---"),
            "",
        ]
    )


def plot_sweep(path: str | Path, record: Mapping[str, Any]) -> None:
    """Draws accuracy against the number of prompt tokens, a panel for each protocol.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    protocols = record["settings"]["protocols"]
    figure = Figure(figsize=(5.5 * len(protocols), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, protocol in enumerate(protocols, start=1):
        axes = figure.add_subplot(1, len(protocols), number)
        results = [result for result in record["results"] if result["protocol"] == protocol]
        for kind, colour, marker in zip(KINDS, ("#0072b2", "#d55e00", "#009e73"), "osD", strict=True):
            points = [(r["prompt_tokens"], r["metrics"][kind]) for r in results if kind in r["metrics"]]
            if points:
                axes.plot(*zip(*points, strict=True), label=kind, color=colour, marker=marker)
        axes.set_title(f"Accuracy, {protocol}", fontsize=11)
        axes.set_xticks(sorted({result["prompt_tokens"] for result in results}))
        axes.set_xlabel("continuous prompt tokens")
        axes.set_ylabel("percent")
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(str(path), dpi=110)
