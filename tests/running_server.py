"""Servers over real sockets: uvicorn in a thread, with a tiny model or whatever a test gives."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from openai import OpenAI


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    app: FastAPI

    @property
    def model(self) -> Any:
        return self.app.state.model

    def http(self, **options: Any) -> httpx.Client:
        """A client of this server, to be closed."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def openai(self, **options: Any) -> OpenAI:
        """The real client of OpenAI's."""
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60} | options)


@contextmanager
def serving(app: FastAPI, **options: Any) -> Iterator[Running]:
    """Serves an application on a free port of loopback, for as long as the context lasts."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, **options)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        yield Running(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join(60)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def until_it_answers(url: str, process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Waits until a process serves `url`, and gives it back."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        try:
            httpx.get(f"{url}/health", timeout=1).raise_for_status()
            return url
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")
