"""Memory per fact: a knowledge base that was searched, against keeping keys and continuous prompts as the authors do.

Every way runs in a process of its own. What counts is the memory that the process has for itself (`RssAnon`); pages of
files that the system may drop at any time are named apart.

    python benchmarks/memory.py --facts 100000 --document docs/performance.md
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from report import publish, table

from recipe_hf import KnowledgeBase, RecipeConfig

CHUNK = 10_000
IN_MEMORY, ON_DISK, PROMPTS, ALL_PROMPTS = "in memory", "on disk", "prompts", "prompts, of answers too"


def resident(name: str) -> int:
    """Bytes of this process that Linux counts as `RssAnon` or `RssFile`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def facts_with_keys(size: int, dim: int):
    """Statements and keys, a chunk at a time."""
    generator = torch.Generator().manual_seed(0)
    for first in range(0, size, CHUNK):
        numbers = range(first, min(first + CHUNK, size))
        statements = [f"The locker of employee {number} has the number {number + 7}." for number in numbers]
        yield statements, torch.randn(len(numbers), dim, generator=generator)


def knowledge_base(config: RecipeConfig, size: int, path: Path | None) -> KnowledgeBase:
    dim = config.knowledge_dim
    knowledge = KnowledgeBase(dim) if path is None else KnowledgeBase.open(path, dim)
    for statements, keys in facts_with_keys(size, dim):
        knowledge.add(statements, keys)
    knowledge.search(torch.ones(1, dim))
    return knowledge


def tensors(config: RecipeConfig, size: int, prompt_tokens: int) -> Any:
    keys = torch.empty(size, config.knowledge_dim)
    prompts = torch.empty(size, prompt_tokens, config.hidden_size)
    statements = []
    for number, (texts, chunk) in enumerate(facts_with_keys(size, config.knowledge_dim)):
        keys[number * CHUNK : (number + 1) * CHUNK] = chunk
        statements += texts
    return keys, prompts.fill_(1.0), statements


def measure(kind: str, config: RecipeConfig, size: int, path: Path) -> tuple[float, float, float]:
    """Bytes per fact: of the process's own, of files in memory, on disk."""
    makers: dict[str, Callable[[], Any]] = {
        IN_MEMORY: lambda: knowledge_base(config, size, None),
        ON_DISK: lambda: knowledge_base(config, size, path),
        PROMPTS: lambda: tensors(config, size, config.num_continuous_prompt_tokens),
        ALL_PROMPTS: lambda: tensors(
            config, size, config.num_continuous_prompt_tokens + config.num_answer_prompt_tokens
        ),
    }
    knowledge_base(config, 100, None)  # What is loaded at the first use is not a fact's.
    before = resident("RssAnon"), resident("RssFile")
    kept = makers[kind]()
    after = resident("RssAnon"), resident("RssFile")
    if isinstance(kept, KnowledgeBase):
        kept.close()
    on_disk = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    return (after[0] - before[0]) / size, (after[1] - before[1]) / size, on_disk / size


def main(
    facts: Annotated[int, typer.Option(help="How many facts are held.")] = 100_000,
    checkpoint: Annotated[Path, typer.Option()] = Path("checkpoints/recipe-smollm2-135m"),
    document: Annotated[Path | None, typer.Option(help="Where the table goes, between its marks.")] = None,
    kind: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures every way, prints the table, and writes it into the document."""
    config = RecipeConfig.from_pretrained(checkpoint)
    if kind is not None:
        with tempfile.TemporaryDirectory() as directory:
            print(*measure(kind, config, facts, Path(directory) / "facts.db"))
        return
    found = {}
    for name in (IN_MEMORY, ON_DISK, PROMPTS, ALL_PROMPTS):
        command = [sys.executable, __file__, "--facts", str(facts), "--checkpoint", str(checkpoint), "--kind", name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[name] = [float(value) for value in output.split()]
    names = {
        IN_MEMORY: "`KnowledgeBase(dim)`, searched",
        ON_DISK: "`KnowledgeBase.open(path)`, searched",
        PROMPTS: f"keys and prompts of {config.num_continuous_prompt_tokens} tokens, as in the paper",
        ALL_PROMPTS: f"keys and prompts with the {config.num_answer_prompt_tokens} tokens of answers",
    }
    rows = [
        [names[name], *(f"{value / 1000:.2f} KB" for value in values), f"{values[0] / found[PROMPTS][0]:.2f}"]
        for name, values in found.items()
    ]
    header = ["way", "memory", "pages of files", "disk", "memory against the paper's"]
    text = (
        f"Per fact, of {facts:,} facts with keys of {config.knowledge_dim} numbers and prompt tokens of "
        f"{config.hidden_size}:\n\n{table(header, rows)}"
    )
    publish("memory", text, document)


if __name__ == "__main__":
    typer.run(main)
