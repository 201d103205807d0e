"""The command `recipe-hf` as a process of its own, in this interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CODE = "from recipe_hf.cli import app; app(prog_name='recipe-hf')"


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that imports this checkout, asks nothing of the network and buffers its output."""
    fixed = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "PYTHONUNBUFFERED": ""}
    return os.environ | fixed | variables


def python(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter makes of `code`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    reading: Any = {"capture_output": True, "encoding": "utf-8", "errors": "backslashreplace"}
    return subprocess.run(command, env=environment(**variables), **reading)


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process that runs the command, with `options` of `Popen`, its standard error to be read."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    options = {"env": environment(), "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command, **options)


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the command prints, and its exit code."""
    return python(CODE, *arguments, **variables)
