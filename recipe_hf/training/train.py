"""Trains a RECIPE model: `accelerate launch training/train.py --config training/configs/….yaml`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from recipe_hf.errors import EXPECTED, existing_file, one_line
from recipe_hf.training.config import TrainingConfig
from recipe_hf.training.trainer import Trainer


def main(argv: Sequence[str] | None = None, program: str = "train.py") -> None:
    """Reads the arguments and trains.

    Args:
        argv: The arguments, by default those of the process.
        program: What the help calls the program.

    Raises:
        FileNotFoundError: If there is no configuration.
        ValueError, OSError, FloatingPointError: As [`TrainingConfig.from_yaml`] and [`Trainer`] do.
    """
    parser = argparse.ArgumentParser(prog=program, description="Train a RECIPE model.")
    parser.add_argument("--config", required=True, help="YAML file with the fields of TrainingConfig")
    parser.add_argument("--resume", action="store_true", help="go on from output_dir/checkpoint")
    parser.add_argument("--base-model", help="takes the place of base_model in the config")
    parser.add_argument("--encoder", help="takes the place of encoder")
    parser.add_argument("--train-file", help="takes the place of train_file")
    parser.add_argument("--output-dir", help="takes the place of output_dir")
    parser.add_argument("--seed", type=int, help="takes the place of seed")
    parser.add_argument(
        "--push-to-hub",
        "--push_to_hub",
        action="store_true",
        default=None,
        help="upload the best checkpoint and its card at the end",
    )
    parser.add_argument("--hub-model-id", "--hub_model_id", help="repository to upload to, as ORGANISATION/NAME")
    arguments = vars(parser.parse_args(argv))
    resume, config = arguments.pop("resume"), existing_file("--config", Path(arguments.pop("config")))
    best = Trainer(TrainingConfig.from_yaml(config, **arguments)).train(resume)
    print(f"The best checkpoint is in {best}.")


if __name__ == "__main__":
    try:
        main()
    except EXPECTED as error:
        if os.environ.get("RECIPE_HF_TRACEBACK"):
            raise
        sys.exit(f"train.py: {one_line(error)}")
