"""Runs of training that are killed by SIGKILL, each in a process of its own; test_killed.py runs this as a script.

python killed.py PARTS DIRECTORY    trains from tests.tiny_training's parts, and says what came of each kill, as JSON
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from recipe_hf.training.config import TrainingConfig
from recipe_hf.training.start import load_start
from recipe_hf.training.trainer import Trainer
from recipe_hf.training.wordings import load_properties
from tests.tiny_training import STAGES, tiny_config


class Improving(Trainer):
    """A trainer to which every evaluation brings a new best checkpoint, so that one takes another's place."""

    def _evaluate(self) -> None:
        self.best_score = -math.inf
        super()._evaluate()


def in_process(config: TrainingConfig, directory: Path, resume: bool, kill_at: int | None = None) -> int | str:
    """Trains in a process that is killed right before a rename, counted from 0.

    The renames by which files of an unfinished `best.new` are made are not counted.

    Returns:
        The number of renames, -1 if it was killed, or what an error said.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        renames = 0

        def watch(event: str, arguments: Any) -> None:
            nonlocal renames
            source = Path(arguments[0]) if event == "os.rename" else Path()
            if source.is_relative_to(directory) and source.parent.name != "best.new":
                if renames == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                renames += 1

        sys.addaudithook(watch)
        try:
            Improving(config.changed({"run.output_dir": str(directory)})).train(resume)
            said = str(renames)
        except (OSError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return -1
    assert status == 0
    return int(said) if said.isdigit() else said


def main(parts: Path, directory: Path) -> None:
    """Kills a run at each of its renames, and the one that goes on where it renames too; then goes on to the end."""
    config = tiny_config(parts, directory, stages=STAGES[2:3], eval_steps=1)
    load_properties()  # Before the processes part: what is slow the first time.
    load_start(config)
    renames = in_process(config, directory / "whole", resume=False)
    assert isinstance(renames, int) and renames > 0
    found = {}
    for number in range(renames):
        run = directory / str(number)
        killed = in_process(config, run, resume=False, kill_at=number)
        left = sorted(path.name for path in run.iterdir() if path.is_dir())
        again = None if {"best", "checkpoint"} <= set(left) else in_process(config, run, resume=True, kill_at=0)
        found[number] = [killed, left, again, in_process(config, run, resume=True)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
