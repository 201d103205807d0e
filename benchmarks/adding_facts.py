"""Facts added per second: this library against a plain loop, on the same model and facts.

The plain loop does what the authors' code does: it encodes one statement, makes its continuous prompt, and appends
both to all that are there with `torch.cat`. That copies everything for each fact, so the loop becomes slower as facts
come in, and the number already there is part of the figure. Both sides take turns, so that other work on the machine
slows both.

    python benchmarks/adding_facts.py --document docs/performance.md
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from report import Clock, publish, table, times, wall_clock

from recipe_hf import KnowledgeBase, RecipeForCausalLM
from recipe_hf.datasets import EditExample, load_examples
from recipe_hf.evaluation.inputs import machine
from recipe_hf.knowledge.facts import compose_statement

CHUNK = 10_000
Fact = tuple[str, str]


class PlainLoop:
    """Keys `[n, dim]` and prompts `[n, l, d_llm]` of all facts, to which each edit appends."""

    def __init__(self, model: Any, size: int) -> None:
        self.model = model
        config, device = model.config, model.device
        self.keys = torch.zeros(size, config.knowledge_dim, device=device)
        self.prompts = torch.zeros(size, config.num_continuous_prompt_tokens, config.hidden_size, device=device)

    @torch.no_grad()
    def add(self, facts: Sequence[Fact]) -> None:
        retriever, device = self.model.retriever, self.model.device
        for prompt, answer in facts:
            batch = retriever.tokenizer([compose_statement(prompt, answer)], return_tensors="pt").to(device)
            key = retriever.mlp_k(retriever.standardizer(retriever.features(**batch)))
            self.keys = torch.cat([self.keys, key])
            self.prompts = torch.cat([self.prompts, self.model.prompt_encoder(key)])


def adder(model: Any, path: Path | None, size: int) -> Callable[[Sequence[Fact]], Any]:
    """`add_knowledge` with `size` facts there already, in a file or in memory."""
    dim = model.config.knowledge_dim
    knowledge = KnowledgeBase(dim) if path is None else KnowledgeBase.open(path, dim)
    model.knowledge = knowledge
    model.add_knowledge(["The first fact says which weights made the keys."])
    generator = torch.Generator().manual_seed(0)
    for first in range(1, size, CHUNK):
        numbers = range(first, min(first + CHUNK, size))
        keys = torch.randn(len(numbers), dim, generator=generator)
        names = [f"Fact {number} is there already." for number in numbers]
        knowledge.add(names, keys, encoder_fingerprint=knowledge.encoder_fingerprint)

    def add(facts: Sequence[Fact]) -> None:
        model.knowledge = knowledge
        model.add_knowledge(facts)

    return add


def seconds_per_fact(add: Callable[[Sequence[Fact]], Any], facts: Sequence[Fact], one_by_one: bool, clock: Clock):
    start = clock()
    for group in [[fact] for fact in facts] if one_by_one else [facts]:
        add(group)
    return (clock() - start) / len(facts)


def new_facts(examples: Sequence[EditExample]) -> Iterator[Fact]:
    """Facts without end, none of which is there twice."""
    for turn in itertools.count():
        for example in examples:
            yield (f"{example.prompt}" if not turn else f"In story {turn}, {example.prompt}", example.answer)


def main(
    checkpoint: Annotated[Path, typer.Option()] = Path("checkpoints/recipe-smollm2-135m"),
    data: Annotated[Path, typer.Option()] = Path("data/counterfact-edit.json"),
    facts: Annotated[list[int] | None, typer.Option(help="How many are there already; may be repeated.")] = None,
    single: Annotated[int, typer.Option(help="How many facts are added one by one in each turn.")] = 16,
    batch: Annotated[int, typer.Option(help="How many facts are added at once.")] = 512,
    turns: Annotated[int, typer.Option(help="Turns of each side, after one that warms up.")] = 7,
    device: Annotated[str, typer.Option()] = "cpu",
    document: Annotated[Path | None, typer.Option(help="Where the table goes, between its marks.")] = None,
) -> None:
    """Times both sides, prints the table, and writes it into the document."""
    model: Any = RecipeForCausalLM.from_pretrained(checkpoint, base_model=False).to(device)
    source = new_facts(list({fact.prompt: fact for fact in load_examples(data)}.values()))
    clock, rows = wall_clock(device), []
    for size in facts or [1, 10_000, 100_000]:
        with tempfile.TemporaryDirectory() as directory:
            in_memory, on_disk = adder(model, None, size), adder(model, Path(directory) / "facts.db", size)
            sides = {
                "plain loop": (PlainLoop(model, size).add, single, True),
                "one at a time, in memory": (in_memory, single, True),
                "one at a time, on disk": (on_disk, single, True),
                f"{batch} at once, in memory": (in_memory, batch, False),
                f"{batch} at once, on disk": (on_disk, batch, False),
            }
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for turn in range(turns + 1):
                for name, (add, number, one_by_one) in sides.items():
                    taken = seconds_per_fact(add, list(itertools.islice(source, number)), one_by_one, clock)
                    if turn:
                        seconds[name].append(taken)
            plain = seconds["plain loop"]
            for name, taken in seconds.items():
                ratios = [theirs / ours for theirs, ours in zip(plain, taken, strict=True)]
                ratio = "" if taken is plain else times(ratios)
                rows.append([f"{size:,}", name, f"{1 / median(taken):,.0f}", ratio])
                print(*rows[-1], sep=" | ", flush=True)
            model.knowledge = KnowledgeBase(model.config.knowledge_dim)
    header = ["facts there already", "side", "facts added per second", "against the plain loop"]
    text = f"Medians of {turns} turns, on {machine()}:\n\n{table(header, rows, num_left=2)}"
    publish("adding facts", text, document)


if __name__ == "__main__":
    typer.run(main)
