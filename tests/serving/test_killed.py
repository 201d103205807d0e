"""Servers that are killed while facts are changed and questions answered."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.forked_servers import ForkServer
from tests.running_server import free_port
from tests.tiny_recipe import PROMPTS, tiny_base, tiny_recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_base().save_pretrained(directory / "base")
    model = tiny_recipe()
    model.config.base_model_name_or_path = str(directory / "base")
    model.save_pretrained(directory / "recipe")
    return directory / "recipe"


class Load:
    """Changes facts and asks questions until the server is gone; what was acknowledged is remembered."""

    def __init__(self, url: str, seed: int) -> None:
        self.added: dict[int, str] = {}
        self.removed: set[int] = set()
        self.maybe_removed: set[int] = set()
        self.answers = 0
        self.unacknowledged: dict[str, Any] | None = None
        self.failures: list[Exception] = []
        self._url, self._seed = url, seed
        self._threads = [threading.Thread(target=self._run, args=[work]) for work in (self._change, self._ask)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.failures

    def until(self, changes: int, answers: int) -> None:
        """Waits for so many changes to be acknowledged, and questions answered."""
        end = time.monotonic() + 120
        while (len(self.added) + len(self.removed) < changes or self.answers < answers) and not self.failures:
            assert time.monotonic() < end
            time.sleep(0.001)

    def _run(self, work) -> None:
        try:
            with httpx.Client(base_url=self._url, timeout=30) as client:
                for step in range(10**6):
                    work(client, step)
        except httpx.TransportError:
            pass
        except (httpx.HTTPStatusError, ValueError) as error:
            self.failures.append(error)

    def _change(self, client: httpx.Client, step: int) -> None:
        rng = random.Random(f"{self._seed} {step}")
        mine = sorted(self.added.keys() - self.maybe_removed)
        if mine and rng.random() < 0.3:
            id = rng.choice(mine)
            self.maybe_removed.add(id)
            client.delete(f"/v1/knowledge/{id}").raise_for_status()
            self.removed.add(id)
        else:
            prompts = [f"Fact {self._seed}-{step}-{i} is" for i in range(rng.choice([1, 5]))]
            facts = [{"prompt": prompt, "answer": "so"} for prompt in prompts]
            self.unacknowledged = {
                "json": {"facts": facts, "on_conflict": "replace"},
                "headers": {"Idempotency-Key": f"{self._seed}-{step}"},
            }
            answer = client.post("/v1/knowledge", **self.unacknowledged).raise_for_status()
            self.unacknowledged = None
            self.added |= dict(zip(answer.json()["ids"], prompts, strict=True))

    def _ask(self, client: httpx.Client, step: int) -> None:
        body = {"prompt": PROMPTS[step % len(PROMPTS)], "max_tokens": 8}
        client.post("/v1/completions", json=body).raise_for_status()
        self.answers += 1


def facts_of(client: httpx.Client) -> dict[int, str]:
    facts, after = {}, None
    while True:
        page = client.get("/v1/knowledge", params={"limit": 1000} | ({"after": after} if after else {})).json()
        facts |= {fact["id"]: fact["prompt"] for fact in page["facts"]}
        after = page["next"]
        if after is None:
            assert len(facts) == page["total"]
            return facts


def until_ready(url: str) -> float:
    started = time.perf_counter()
    while time.perf_counter() - started < 240:
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return time.perf_counter() - started
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError("the server does not start")


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.endurance])])
def test_a_server_killed_under_load_loses_nothing_acknowledged(checkpoint, forks, tmp_path, kills):
    rng, expected, gone, maybe_gone = random.Random(kills), {}, set(), set()
    changes = answers = 0
    again = None
    for seed in range(kills + 1):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        pid = forks.start(
            "serve", checkpoint, "--knowledge", tmp_path / "facts.db", "--port", port, "--log-level", "error"
        )
        try:
            assert until_ready(url) < 60
            with httpx.Client(base_url=url, timeout=60) as client:
                if again is not None:  # Whether it was carried out or not, it is now, once.
                    client.post("/v1/knowledge", **again).raise_for_status()
                past = client.get("/v1/knowledge/history", params={"limit": 1000}).json()["facts"]
                assert {fact["reason"] for fact in past} <= {"removed"}
                present = facts_of(client)
            kept = {id: prompt for id, prompt in expected.items() if id not in maybe_gone}
            assert kept.items() <= present.items()
            assert not gone & present.keys()
            expected |= present
            load = Load(url, seed)
            load.until(changes=rng.randrange(10), answers=seed % 3)
            time.sleep(rng.uniform(0, 0.05))
        finally:
            os.kill(pid, signal.SIGKILL)
        load.join()
        expected |= load.added
        gone |= load.removed
        again = load.unacknowledged
        maybe_gone |= load.maybe_removed
        changes += len(load.added) + len(load.removed)
        answers += load.answers
    assert changes > kills and answers


def test_a_server_told_to_stop_ends_its_answers_and_keeps_the_facts(checkpoint, forks, tmp_path):
    port = free_port()
    url, path = f"http://127.0.0.1:{port}", tmp_path / "facts.db"
    pid = forks.start("serve", checkpoint, "--knowledge", path, "--port", port)
    until_ready(url)
    with httpx.Client(base_url=url, timeout=120) as client:
        client.post("/v1/knowledge", json={"facts": ["The CEO of Acme is Ann Lee."]}).raise_for_status()
        body = {"prompt": "a", "max_tokens": 300, "stream": True, "temperature": 0}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            said = [next(lines)]
            os.kill(pid, signal.SIGTERM)
            said += [line for line in lines if line]
        assert said[-1] == "data: [DONE]" and '"finish_reason":"length"' in said[-2]
    started = time.monotonic()
    while _is_there(pid):
        assert time.monotonic() - started < 60
        time.sleep(0.05)
    from recipe_hf.knowledge import KnowledgeBase

    with KnowledgeBase.open(path) as facts:
        assert [fact.statement for fact in facts] == ["The CEO of Acme is Ann Lee."]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
