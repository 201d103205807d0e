"""Trains a verifier: `python -m recipe_hf.training.verify --config training/configs/verifier.yaml`."""

from __future__ import annotations

from typing import Annotated

from recipe_hf.training.arguments import Assignments, ConfigFile, Resume, option_for, program, read_config, run_script
from recipe_hf.training.verification.config import VerifierConfig
from recipe_hf.training.verification.trainer import VerifierTrainer

app = program("verify.py")


@app.command()
def train_verifier(
    config: ConfigFile,
    resume: Resume = False,
    checkpoint: Annotated[str | None, option_for("checkpoint")] = None,
    encoder: Annotated[str | None, option_for("encoder")] = None,
    verifier: Annotated[str | None, option_for("verifier")] = None,
    output_dir: Annotated[str | None, option_for("output_dir")] = None,
    assignments: Assignments = [],  # noqa: B006
) -> None:
    """Train the verifier of a RECIPE checkpoint."""
    options = {"checkpoint": checkpoint, "encoder": encoder, "verifier": verifier, "output_dir": output_dir}
    best = VerifierTrainer(read_config(VerifierConfig, config, options, assignments)).train(resume)
    print(f"The checkpoint with its verifier is in {best}.")


if __name__ == "__main__":
    run_script(app)
