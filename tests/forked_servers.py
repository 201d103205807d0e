"""`recipe-hf serve` started often: one process imports everything, and each server is a fork of it.

As a program, it reads the arguments of one command a line, and answers with the id of the process that runs it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from tests.command import environment


class ForkServer:
    """Starts `recipe-hf` in milliseconds, apart from what it then does."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment(OMP_NUM_THREADS="1", RECIPE_HF_RATE="1000000/second"), **pipes
        )

    def start(self, *arguments: object) -> int:
        """The id of a process that runs `recipe-hf` with these arguments."""
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> str:
        """Ends it, and gives back what the processes wrote on standard error."""
        return self._process.communicate()[1]


def _serve(lines: Sequence[str]) -> None:
    import recipe_hf.modeling.model
    import recipe_hf.serving.knowledge
    import recipe_hf.serving.running  # noqa: F401
    from recipe_hf.cli import app

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in lines:
        if pid := os.fork():
            print(pid, flush=True)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            app(json.loads(line))


if __name__ == "__main__":
    _serve(sys.stdin)
