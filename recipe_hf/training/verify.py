"""Trains a verifier: `python -m recipe_hf.training.verify --config training/configs/verifier.yaml`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from recipe_hf.errors import EXPECTED, existing_file, one_line
from recipe_hf.training.verification.config import VerifierConfig
from recipe_hf.training.verification.trainer import VerifierTrainer


def main(argv: Sequence[str] | None = None, program: str = "verify.py") -> None:
    """Reads the arguments and trains.

    Args:
        argv: The arguments, by default those of the process.
        program: What the help calls the program.

    Raises:
        FileNotFoundError: If there is no configuration.
        ValueError, OSError, FloatingPointError: As [`VerifierConfig.from_yaml`] and [`VerifierTrainer`] do.
    """
    parser = argparse.ArgumentParser(prog=program, description="Train the verifier of a RECIPE checkpoint.")
    parser.add_argument("--config", required=True, help="YAML file with the fields of VerifierConfig")
    parser.add_argument("--resume", action="store_true", help="go on from output_dir/checkpoint")
    parser.add_argument("--checkpoint", help="takes the place of checkpoint in the config")
    parser.add_argument("--encoder", help="takes the place of encoder")
    parser.add_argument("--verifier", help="takes the place of verifier")
    parser.add_argument("--output-dir", help="takes the place of output_dir")
    arguments = vars(parser.parse_args(argv))
    resume, config = arguments.pop("resume"), existing_file("--config", Path(arguments.pop("config")))
    best = VerifierTrainer(VerifierConfig.from_yaml(config, **arguments)).train(resume)
    print(f"The checkpoint with its verifier is in {best}.")


if __name__ == "__main__":
    try:
        main()
    except EXPECTED as error:
        if os.environ.get("RECIPE_HF_TRACEBACK"):
            raise
        sys.exit(f"verify.py: {one_line(error)}")
