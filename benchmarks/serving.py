"""What facts cost a server: the same load with facts, without, and as a bare loop of `generate`, in turns.

Each round asks the same prompts, half of which hit a fact, of: the server without facts (`recipe.off`), the server
with facts, the server without facts again, and a loop of the base's `generate` over batches as large as the number of
clients. Other work on the machine slows all sides; the two turns without facts, divided by one another, show what is
left of it. No query is remembered from before. Two more servers, such as vLLM's without and with facts, are asked the
same with `--bare-url` and `--facts-url`.

    python benchmarks/serving.py --rounds 5 --document docs/serving.md
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import torch
import typer
from openai import AsyncOpenAI
from report import publish, table, times

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import EditExample, load_examples
from recipe_hf.evaluation.inputs import machine

DATA = [Path("data/counterfact-edit.json")]
Option = typer.Option


@dataclass
class Turn:
    """What one side did with the prompts of a round."""

    seconds: float = 0.0
    tokens: int = 0
    fired: int = 0
    firsts: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


async def ask(url: str, prompts: Sequence[str], clients: int, options: dict[str, Any]) -> Turn:
    """The prompts, asked by so many clients, each its next one as soon as it has an answer."""
    turn, left = Turn(), iter(prompts)

    async def work(client: AsyncOpenAI, model: str) -> None:
        for prompt in left:
            started, first = time.perf_counter(), None
            asked = {"model": model, "prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
            async for chunk in await client.completions.create(**asked, **options):
                if chunk.choices and first is None:
                    first = time.perf_counter() - started
                    turn.fired += (getattr(chunk, "recipe", None) or {}).get("fired", False)
                if chunk.usage is not None:
                    turn.tokens += chunk.usage.completion_tokens
            turn.firsts.append(first or 0.0)

    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:
        (model, *_) = (await client.models.list()).data
        started = time.perf_counter()
        await asyncio.gather(*(work(client, model.id) for _ in range(clients)))
        turn.seconds = time.perf_counter() - started
    return turn


def loop(model: Any, prompts: Sequence[str], rows: int, max_tokens: int) -> Turn:
    """The base's own `generate` over batches of the prompts, with nothing around it."""
    turn, started, end = Turn(), time.perf_counter(), model.generation_config.eos_token_id
    for at in range(0, len(prompts), rows):
        texts = list(prompts[at : at + rows])
        batch = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        out = model.lm.generate(**batch, max_new_tokens=max_tokens, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        turn.tokens += int((((new == end).cumsum(1) - (new == end).int()) == 0).sum())
    turn.seconds = time.perf_counter() - started
    return turn


@contextmanager
def served(*arguments: object) -> Iterator[str]:
    """The URL of `recipe-hf serve` with these arguments."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from recipe_hf.cli import app; app()", "serve", *map(str, arguments)]
    process = subprocess.Popen([*command, "--port", str(port), "--log-level", "warning"], env=os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError("recipe-hf serve did not start.")
            try:
                httpx.get(f"{url}/ready").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def main(
    checkpoint: Annotated[Path, Option(help="RECIPE checkpoint.")] = Path("checkpoints/recipe-smollm2-135m"),
    base_model: Annotated[str, Option(help="Its base.")] = "models/smollm2-135m-instruct",
    data: Annotated[list[Path], Option(help="Facts with questions about other things.")] = DATA,
    facts: Annotated[int, Option(help="How many facts are held.")] = 1000,
    clients: Annotated[int, Option(help="How many ask at once.")] = 16,
    prompts: Annotated[int, Option(help="Prompts of a round.")] = 32,
    rounds: Annotated[int, Option(help="How often.")] = 5,
    max_tokens: Annotated[int, Option(help="Length of an answer.")] = 64,
    bare_url: Annotated[str | None, Option(help="A server of the bare base.")] = None,
    facts_url: Annotated[str | None, Option(help="The same with facts.")] = None,
    document: Annotated[Path | None, Option(help="Markdown file to put the table into.")] = None,
) -> None:
    """Times the sides in turns."""
    examples: list[EditExample] = list(chain.from_iterable(load_examples(path) for path in data))[:facts]
    hits = [example.prompt for example in examples]
    misses = [example.locality_prompt for example in examples]
    half = prompts // 2
    if min(len(hits), len(misses)) < half * rounds:
        raise ValueError(f"data must have {half * rounds} facts and as many other questions.")
    model = RecipeForCausalLM.from_pretrained(checkpoint, base_model=base_model)
    turns: dict[str, list[Turn]] = {}
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}
    off = options | {"extra_body": {"recipe": {"off": True}}}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "facts.db"
        with model.open_knowledge(path):
            model.add_knowledge([(example.prompt, example.answer) for example in examples])
        arguments = ("--base-model", base_model, "--knowledge", path, "--max-batch-size", clients)
        with served(checkpoint, *arguments) as url:
            sides: list[tuple[str, str, dict[str, Any]]] = [
                ("off", url, off), ("on", url, options), ("off again", url, off)
            ]  # fmt: skip
            for name, other in (("bare", bare_url), ("facts", facts_url), ("bare again", bare_url)):
                sides += [] if other is None else [(name, other, options)]
            for _, where, _ in sides:  # All sides warm up, and so read their weights from the disk.
                asyncio.run(ask(where, misses[-2:], 2, options | {"max_tokens": 2}))
            loop(model, misses[-2:], 2, 2)
            for number in range(rounds):
                of_round = slice(number * half, (number + 1) * half)
                texts = [text for pair in zip(hits[of_round], misses[of_round], strict=True) for text in pair]
                for name, where, how in sides:
                    turns.setdefault(name, []).append(asyncio.run(ask(where, texts, clients, how)))
                    typer.echo(f"{name}: {turns[name][-1]}", err=True)
                with torch.inference_mode():
                    turns.setdefault("loop", []).append(loop(model, texts, clients, max_tokens))
                typer.echo(f"loop: {turns['loop'][-1]}", err=True)
    where = machine(model.device)
    intro = (
        f"{clients} clients, {prompts} prompts a round, half of them of {len(examples):,} facts, {max_tokens} tokens "
        f"an answer, {rounds} rounds, {where}:"
    )
    publish("serving", f"{intro}\n\n{_table(turns)}", document)


def _table(turns: dict[str, list[Turn]]) -> str:
    rows = []
    for title, bare, with_facts in (("recipe-hf serve", "off", "on"), ("vLLM", "bare", "facts")):
        if with_facts not in turns:
            continue
        pairs = list(zip(turns[bare], turns[with_facts], turns[f"{bare} again"], strict=True))
        speeds = [2 * on.speed / (before.speed + after.speed) for before, on, after in pairs]
        same = [after.speed / before.speed for before, _, after in pairs]
        firsts = [_firsts([before, after]) for before, _, after in pairs]
        later = [
            1000 * (np.median(on.firsts) - np.median(bare)) for (_, on, _), bare in zip(pairs, firsts, strict=True)
        ]
        fired = sum(on.fired for _, on, _ in pairs) / sum(len(on.firsts) for _, on, _ in pairs)
        tails = [1000 * np.quantile(_firsts(side), 0.99) for side in ([on for _, on, _ in pairs], turns[bare])]
        rows += [
            (title, "tokens per second, with facts against without", times(speeds)),
            (title, "the same, without facts twice", times(same)),
            (title, "first token later with facts, at the median", f"{np.median(later):.0f} ms"),
            (title, "first token, p99 with facts and without", f"{tails[0]:.0f} and {tails[1]:.0f} ms"),
            (title, "prompts for which a fact was used", f"{fired:.0%}"),
        ]
    loops = [
        bare.speed / (0.5 * (before.speed + after.speed))
        for bare, before, after in zip(turns["loop"], turns["off"], turns["off again"], strict=True)
    ]
    rows.append(("recipe-hf serve", "time of the server, without facts, against a bare loop", times(loops)))
    return table(("server", "what", "measured"), rows, num_left=2)


def _firsts(turns: Sequence[Turn]) -> list[float]:
    return [first for turn in turns for first in turn.firsts]


if __name__ == "__main__":
    typer.run(main)
