"""Trains a RECIPE model: `accelerate launch training/train.py --config training/configs/….yaml`."""

from __future__ import annotations

from typing import Annotated

from recipe_hf.training.arguments import Assignments, ConfigFile, Resume, option_for, program, read_config, run_script
from recipe_hf.training.config import TrainingConfig
from recipe_hf.training.trainer import Trainer

app = program("train.py")


@app.command()
def train(
    config: ConfigFile,
    resume: Resume = False,
    base_model: Annotated[str | None, option_for("model.base_model")] = None,
    encoder: Annotated[str | None, option_for("model.encoder")] = None,
    train_file: Annotated[str | None, option_for("data.train_file")] = None,
    output_dir: Annotated[str | None, option_for("run.output_dir")] = None,
    seed: Annotated[int | None, option_for("run.seed")] = None,
    push_to_hub: Annotated[bool, option_for("run.push_to_hub", "--push-to-hub", "--push_to_hub")] = False,
    hub_model_id: Annotated[str | None, option_for("run.hub_model_id", "--hub-model-id", "--hub_model_id")] = None,
    assignments: Assignments = [],  # noqa: B006
) -> None:
    """Train a RECIPE model."""
    options = {
        "model.base_model": base_model,
        "model.encoder": encoder,
        "data.train_file": train_file,
        "run.output_dir": output_dir,
        "run.seed": seed,
        "run.push_to_hub": push_to_hub or None,
        "run.hub_model_id": hub_model_id,
    }
    best = Trainer(read_config(TrainingConfig, config, options, assignments)).train(resume)
    print(f"The best checkpoint is in {best}.")


if __name__ == "__main__":
    run_script(app)
