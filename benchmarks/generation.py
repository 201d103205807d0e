"""What facts cost the generation of text: a model that holds them against its bare base, on the same prompts.

Each measurement is a triple: base, model, base again. The model's time is divided by the mean of the two base times
around it, so that other work on the machine slows both sides; the two base times, divided by one another, show what is
left of it. That is more than facts cost, so what they add is timed apart too: the text encoder's forward, what else
`generate` does before the base's own, the hook at each step, and how much longer the base reads. No query is
remembered from before.

    python benchmarks/generation.py --keys runs/keys --facts 10000 --facts 1000000 --document docs/performance.md
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from report import Clock, percent_more, publish, table, wall_clock
from torch import Tensor

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import EditExample, load_examples
from recipe_hf.evaluation.inputs import machine

CHUNK = 10_000
DATA = [Path("data/counterfact-edit.json"), Path("data/counterfact-train.json")]


class Stopwatch:
    """Seconds between starts and stops since the last `reset`, and those of the first time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reset()

    def reset(self) -> None:
        self.seconds = self.first = 0.0

    def start(self, *_: Any) -> None:
        self._started = self.clock()

    def stop(self, *_: Any) -> None:
        taken = self.clock() - self._started
        self.seconds += taken
        self.first = self.first or taken


class Watches:
    """Stopwatches of a model's encoder and verifier, and of the hook, forward and `generate` of its base."""

    def __init__(self, model: Any, clock: Clock) -> None:
        self.encoder, self.verifier, self.hook, self.base, self.generate = self.all = [
            Stopwatch(clock) for _ in range(5)
        ]
        if model.verifier is not None:
            model.verifier.encoder.register_forward_pre_hook(self.verifier.start)
            model.verifier.encoder.register_forward_hook(self.verifier.stop)
        model.retriever.encoder.register_forward_pre_hook(self.encoder.start)
        model.retriever.encoder.register_forward_hook(self.encoder.stop)
        # The library's hook is between these two.
        model.lm.register_forward_pre_hook(self.hook.start, prepend=True)
        model.lm.register_forward_pre_hook(self.hook.stop)
        model.lm.register_forward_pre_hook(self.base.start)
        model.lm.register_forward_hook(self.base.stop)
        generate = model.lm.generate

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.generate.start()
            output = generate(*args, **kwargs)
            self.generate.stop()
            return output

        model.lm.generate = timed

    def time(self, generate: Callable[[], Any]) -> Taken:
        """What one call of `generate`, of the model or its base, takes."""
        for watch in self.all:
            watch.reset()
        whole = Stopwatch(self.encoder.clock)
        whole.start()
        generate()
        whole.stop()
        before = whole.seconds - self.generate.seconds
        looking_up = before - self.encoder.seconds - self.verifier.seconds + self.hook.seconds
        return Taken(whole.seconds, self.encoder.seconds, self.verifier.seconds, looking_up, self.base.first)


@dataclass
class Taken:
    """Seconds of one `generate`: in all, within encoder and verifier, beside these and the base, for the prompt."""

    in_all: float
    encoder: float
    verifier: float
    looking_up: float
    reading: float


@dataclass
class Measured:
    """Triples of one setting, as ratios to the base."""

    base: list[float] = field(default_factory=list)
    encoder: list[float] = field(default_factory=list)
    verifier: list[float] = field(default_factory=list)
    looking_up: list[float] = field(default_factory=list)
    prefix: list[float] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)
    in_all: list[float] = field(default_factory=list)
    itself: list[float] = field(default_factory=list)

    def add(self, before: Taken, ours: Taken, after: Taken) -> None:
        base = (before.in_all + after.in_all) / 2
        longer = ours.reading - (before.reading + after.reading) / 2
        self.base.append(base)
        self.encoder.append(1 + ours.encoder / base)
        self.verifier.append(1 + ours.verifier / base)
        self.looking_up.append(1 + ours.looking_up / base)
        self.prefix.append(1 + longer / base)
        self.parts.append(1 + (ours.encoder + ours.verifier + ours.looking_up + longer) / base)
        self.in_all.append(ours.in_all / base)
        self.itself.append(after.in_all / before.in_all)

    def columns(self, verified: bool) -> list[str]:
        """How much more time each takes than the base."""
        ratios = [self.encoder, self.looking_up, self.prefix, self.parts, self.in_all, self.itself]
        if verified:
            ratios.insert(1, self.verifier)
        return [percent_more(values) for values in ratios]


def stored_keys(directory: Path) -> Iterator[Tensor]:
    """Keys `[n, dim]` in float32 of the `.npy` files of a directory, in chunks."""
    for path in sorted(directory.glob("*.npy")):
        shard = np.load(path, mmap_mode="r")
        for start in range(0, len(shard), CHUNK):
            yield torch.from_numpy(np.array(shard[start : start + CHUNK], np.float32))


def hold(
    model: Any, asked: Sequence[EditExample], others: Sequence[EditExample], size: int, keys: Path | None, path: Path
) -> None:
    """Makes the model hold `size` facts in the file `path`: those asked about, then others.

    Keys of the others are read from `keys`, or made of their statements.
    """
    model.open_knowledge(path)
    if len(model.knowledge) == size:
        return
    model.knowledge.clear()
    model.add_knowledge([(fact.prompt, fact.answer) for fact in asked[:size]])
    first = len(model.knowledge)
    if keys is None:
        told = [(fact.prompt, fact.answer) for fact in others[: size - first]]
        if told:
            model.add_knowledge(told)
    else:
        for chunk in stored_keys(keys):
            chunk = chunk[: size - first]
            names = [f"Fact {first + row} is one that nobody asks for." for row in range(len(chunk))]
            if names:
                model.knowledge.add(names, chunk, encoder_fingerprint=model.knowledge.encoder_fingerprint)
            first += len(chunk)
    if len(model.knowledge) != size:
        raise typer.BadParameter(f"--facts {size} is more than there are: {len(model.knowledge)} (see --keys).")


def prompts_by_outcome(model: Any, asked: Sequence[EditExample]) -> dict[str, list[str]]:
    """Prompts that get the fact they ask for, and prompts that get none."""
    prompts, unrelated = [fact.prompt for fact in asked], [text for fact in asked for text, _ in fact.unrelated]
    hits, misses = model.retrieve(prompts), model.retrieve(unrelated)
    found = {
        "hits": [p for p, hit in zip(prompts, hits, strict=True) if hit.fired and hit.statement.startswith(p)],
        "misses": [text for text, hit in zip(unrelated, misses, strict=True) if not hit.fired],
    }
    return {name: list(dict.fromkeys(texts)) for name, texts in found.items()}


def measure(
    model: Any, prompts: Sequence[str], batch_size: int, new_tokens: int, triples: int, watches: Watches
) -> Measured:
    """Times the model and its base, in triples, on batches of prompts."""
    needed = batch_size * (triples + 1)
    if len(prompts) < needed:
        raise typer.BadParameter(f"--triples {triples} needs {needed} prompts, got {len(prompts)} (see --asked).")
    measured = Measured()
    settings = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False}
    for number in range(triples + 1):
        texts = list(prompts[number * batch_size : (number + 1) * batch_size])
        batch = model.tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
        triple = [watches.time(partial(side.generate, **batch, **settings)) for side in (model.lm, model, model.lm)]
        if number:  # The first one warms up.
            measured.add(*triple)
    return measured


def main(
    facts: Annotated[list[int], typer.Option(help="How many facts are held, one option for each number.")],
    checkpoint: Annotated[Path, typer.Option()] = Path("checkpoints/recipe-smollm2-135m"),
    base_model: Annotated[str, typer.Option()] = "models/smollm2-135m-instruct",
    data: Annotated[list[Path] | None, typer.Option(help="Data sets of facts; the first are asked about.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Directory of .npy files with keys of the others.")] = None,
    store: Annotated[Path | None, typer.Option(help="Directory that keeps the knowledge bases.")] = None,
    batch_size: Annotated[list[int], typer.Option(help="Prompts at once; may be repeated.")] = [1, 8],  # noqa: B006
    new_tokens: Annotated[int, typer.Option()] = 32,
    verified: Annotated[
        int | None, typer.Option(help="How many facts the verifier reads, if not as the checkpoint says.")
    ] = None,
    triples: Annotated[int, typer.Option(help="Measurements of each setting.")] = 30,
    asked: Annotated[int, typer.Option(help="How many of the facts may be asked about.")] = 500,
    cpu_time: Annotated[bool, typer.Option(help="Count processor time, for a machine that does other work.")] = False,
    device: Annotated[str, typer.Option()] = "cpu",
    document: Annotated[Path | None, typer.Option(help="Where the table goes, between its marks.")] = None,
) -> None:
    """Times both sides, prints the table, and writes it into the document."""
    loading: dict[str, Any] = {"base_model": base_model, "dtype": torch.float32}
    if verified is not None:
        loading["num_verified_facts"] = verified
    model: Any = RecipeForCausalLM.from_pretrained(checkpoint, **loading).to(device)
    model.query_cache_size = 0
    clock = time.process_time if cpu_time else wall_clock(device)
    watches = Watches(model, clock)
    examples = list({fact.prompt: fact for path in data or DATA for fact in load_examples(path)}.values())
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for size in facts:
            hold(model, examples[:asked], examples[asked:], size, keys, (store or Path(temporary)) / f"{size}.db")
            for kind, prompts in prompts_by_outcome(model, examples[:asked]).items():
                for rows_at_once in batch_size:
                    found = measure(model, prompts, rows_at_once, new_tokens, triples, watches)
                    rows.append(
                        [
                            f"{size:,}",
                            kind,
                            rows_at_once,
                            f"{median(found.base):.2f} s",
                            *found.columns(model.verifier is not None),
                        ]
                    )
                    print(*rows[-1], sep=" | ", flush=True)
            model.knowledge.close()
    header = [
        "facts",
        "prompts",
        "batch",
        "base",
        "encoder",
        *(["verifier"] if model.verifier is not None else []),
        "looking up",
        "reading the prefix",
        "these together",
        "in all",
        "base itself",
    ]
    how = f"{new_tokens} new tokens, greedy{', processor time' if cpu_time else ''}"
    intro = f"{how}; medians of {triples} triples and their 95% confidence intervals, on {machine()}:"
    publish("generation", f"{intro}\n\n{table(header, rows, num_left=2)}", document)


if __name__ == "__main__":
    typer.run(main)
