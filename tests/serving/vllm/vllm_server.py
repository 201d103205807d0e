"""vLLM's server in a process of its own, with the plugin. On CPUs it takes a minute to start, and more under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.real_models import SMOLLM2

ROOT = Path(__file__).parents[3]
CHECKPOINT = ROOT / "checkpoints" / "recipe-smollm2-135m"
#: What clients call the model.
NAME = "smollm2"
_PATIENCE = int(os.environ.get("RECIPE_TEST_VLLM_PATIENCE", 1800))


@contextmanager
def vllm_server(log: Path, *options: str, **environment: str) -> Iterator[str]:
    """The URL of a server that runs as long as the context lasts. What it prints goes to the file `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(SMOLLM2)]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager", *options]
    defaults = {
        "VLLM_PLUGINS": "recipe",
        "RECIPE_HF_CHECKPOINT": str(CHECKPOINT),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",  # What it compiles on CPUs takes longer than all tests.
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=os.environ | defaults | environment, cwd=log.parent, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(server, url, log)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(120)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"vLLM did not start: {log.read_text(errors='replace')[-4000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise TimeoutError(f"vLLM did not start in {_PATIENCE} s: {log.read_text(errors='replace')[-4000:]}")
