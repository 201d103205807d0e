"""What minutes of training give a base: prompts for a trained retriever, or everything at once as the authors train.

Both sides train on the same base, encoder and facts, one after the other, each in a process of its own that is stopped
after `--minutes`, evaluations among them. The authors' side is their loss, loop and settings (one joint stage, 8 facts
a step, Adam at 1e-5, no schedule) from fresh heads. Held-out facts are asked about as training goes, with 1,000 facts
held. What the best step scored within each of `--after` minutes is printed, and both curves are drawn.

    python benchmarks/adapting.py models/smollm2-135m-instruct --retriever checkpoints/recipe-smollm2-135m \
        --encoder models/minilm --plot docs/images/adapting.png
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

import recipe_hf.training
from recipe_hf.evaluation.reporting.plots import check_matplotlib
from recipe_hf.training.adapting import adaptation
from recipe_hf.training.config import TrainingConfig

try:
    from benchmarks.report import table
except ImportError:
    from report import table  # type: ignore[no-redef]

KINDS = ("reliability", "generality")
#: 500 held-out facts, 100 of them asked about, with 500 of those trained on.
EVALUATION = {"num_eval_examples": 500, "num_eval_questions": 100, "num_eval_training_facts": 500}
#: The paper's own training.
PAPER = Path(recipe_hf.training.__file__).parent / "configs" / "paper.yaml"

Point = tuple[float, dict[str, float]]


def authors(base_model: str, encoder: str, ours: TrainingConfig, output_dir: Path) -> TrainingConfig:
    """The authors' training on what ours trains on, as fast as this library can compute it."""
    changes = {
        "model.base_model": base_model,
        "model.encoder": encoder,
        "model.base_dtype": ours.model.base_dtype,
        "data.train_file": ours.data.train_file,
        "objective.length_buckets": ours.objective.length_buckets,
        "objective.pack_rows": None,
        "run.output_dir": str(output_dir),
        "run.mixed_precision": ours.run.mixed_precision,
        "run.eval_steps": 250,
    }
    return TrainingConfig.from_yaml(PAPER, changes | {f"data.{name}": value for name, value in EVALUATION.items()})


def curve(config: TrainingConfig, minutes: float, directory: Path) -> list[Point]:
    """Minutes and held-out scores of a run that is stopped after `minutes`."""
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-m", "recipe_hf.training.train", "--config", str(path)]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, timeout=60 * minutes, check=True)
    log = (Path(config.run.output_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    return [
        (line["seconds"] / 60, {kind: line[f"eval_{kind}"] for kind in KINDS})
        for line in lines
        if "eval_reliability" in line
    ]


def best_after(points: list[Point], minutes: float) -> dict[str, float]:
    """The scores of the best evaluation within the first `minutes`."""
    scores = [score for at, score in points if at <= minutes]
    return max(scores, key=lambda score: sum(score.values()), default=dict.fromkeys(KINDS, 0.0))


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Both curves: prompts as full lines, rephrasings as broken ones."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    for colour, (name, points) in zip(("#0072b2", "#d55e00"), curves.items(), strict=True):
        for kind, style, what in zip(KINDS, ("-", "--"), ("prompts", "rephrasings"), strict=True):
            times, scores = [at for at, _ in points], [score[kind] for _, score in points]
            axes.plot(times, scores, style, color=colour, marker=".", label=f"{name}, {what}")
    axes.set(xlabel="minutes of training", ylabel="answer tokens right (%)", ylim=(0, 100), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main(
    base_model: Annotated[str, typer.Argument(help="Hub id, directory or GGUF file of the base.")],
    retriever: Annotated[str, typer.Option(help="Checkpoint with the trained retriever.")],
    encoder: Annotated[str, typer.Option(help="What the authors' side starts from.")] = (
        "sentence-transformers/all-MiniLM-L6-v2"
    ),
    train_file: Annotated[str, typer.Option(help="Facts to train on.")] = "data/counterfact-train.json",
    minutes: Annotated[float, typer.Option(help="Of training, for each side.")] = 40.0,
    after: Annotated[list[float], typer.Option(help="Minutes to report; may be given again.")] = [10.0, 20.0, 40.0],  # noqa: B006
    plot: Annotated[Path | None, typer.Option(help="PNG to draw.")] = None,
) -> None:
    """Prints a table of the scores after some minutes."""
    curves: dict[str, list[Point]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        changes = {f"data.{name}": value for name, value in EVALUATION.items()}
        options = {"model.retriever": retriever, "data.train_file": train_file, **changes}
        ours = adaptation(base_model, directory / "ours", options)
        curves["recipe-hf adapt"] = curve(ours, minutes, directory)
        joint = authors(base_model, encoder, ours, directory / "authors")
        curves["everything at once, as the authors"] = curve(joint, minutes, directory)
    rows = []
    for name, points in curves.items():
        scores = [best_after(points, limit) for limit in after]
        rows.append([name, *(" / ".join(f"{score[kind]:.1f}" for kind in KINDS) for score in scores)])
    print(table(["prompts / rephrasings, % of answer tokens", *(f"{limit:g} min" for limit in after)], rows))
    if plot is not None:
        draw(curves, plot)


if __name__ == "__main__":
    typer.run(main)
