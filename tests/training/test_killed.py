"""Wherever a run is killed, `--resume` goes on from a whole copy and ends as an unbroken run does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_training import write_parts

ROOT = Path(__file__).parent.parent.parent


def read_log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_at_every_rename(tmp_path: Path):
    parts, runs = write_parts(tmp_path / "parts"), tmp_path / "runs"
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(parts), str(runs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=600).stdout
    found = json.loads(said)
    whole = runs / "whole"
    sides = set()
    for number, (killed, left, again, at_last) in found.items():
        run = runs / number
        assert killed == -1
        sides.add(tuple(left))
        if {"checkpoint", "checkpoint.old"}.isdisjoint(left) and not (run / "checkpoint").exists():
            assert (
                again
                == at_last
                == f"FileNotFoundError: {run}/checkpoint does not exist, so there is nothing to resume."
            )
            continue
        assert again in (-1, None) and isinstance(at_last, int)
        assert sorted(path.name for path in run.iterdir()) == ["best", "checkpoint", "metrics.jsonl"]
        for file in ("checkpoint/model.safetensors", "checkpoint/optimizer.bin", "best/model.safetensors"):
            assert (run / file).read_bytes() == (whole / file).read_bytes(), (number, file)
        assert read_log(run) == read_log(whole)
    assert sides >= {  # Each of the moments was met.
        ("best.new",),
        ("best", "checkpoint.new"),
        ("best", "best.new", "checkpoint"),
        ("best.new", "best.old", "checkpoint"),
        ("best", "checkpoint", "checkpoint.new"),
        ("best", "checkpoint.new", "checkpoint.old"),
    }
