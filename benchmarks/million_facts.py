"""A large knowledge base on real keys: recall against exact search, time of a lookup, memory, opening, changes.

Make the keys first (benchmarks/real_facts.py); with fewer of them than
--num-facts, it takes those there are.

    python benchmarks/million_facts.py --document docs/performance.md
    python benchmarks/million_facts.py --thresholds --num-facts 100000 --document docs/performance.md
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from numpy.typing import NDArray
from real_facts import KEYS, SHARD, RealFact, load_retriever, real_facts, shards
from report import publish, table

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.search.code_index import CodeIndex
from recipe_hf.knowledge.search.key_index import KeyIndex

BATCH = 1000
CHURN = 0.1  # Share of the facts that are removed, and again that are replaced.
LOAD = os.getloadavg()[0]
KINDS = ("prompts", "rephrasings", "unrelated")
USED = "any, if its fact is used"
RECALL = f"recall@1: {', '.join(KINDS)}; {USED}"


@dataclass
class Keys:
    """Keys on disk, read as they are needed."""

    parts: list[NDArray[np.float32]]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = np.asarray(rows, np.int64)
        keys = np.empty((len(rows), self.parts[0].shape[1]), np.float32)
        for part in np.unique(rows // SHARD):
            chosen = rows // SHARD == part
            keys[chosen] = self.parts[part][rows[chosen] % SHARD]
        return keys


@dataclass
class Questions:
    """Encoded queries of three kinds, and the scores above which a fact is used."""

    queries: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    kinds: NDArray[np.int64]


def ask(facts: Sequence[RealFact], num_facts: int, per_kind: int, directory: Path) -> Questions:
    """Prompts and rephrasings of facts held, and prompts that ask about something else."""
    path = directory / f"questions-{num_facts}-{per_kind}.npz"
    if not path.exists():
        draw = random.Random(0)
        held = facts[:num_facts]
        texts = [fact.prompt for fact in draw.sample(held, min(per_kind, len(held)))]
        kinds = [0] * len(texts)
        for kind, others in (
            (1, [fact.rephrasing for fact in held if fact.rephrasing]),
            (2, [fact.unrelated for fact in held if fact.unrelated]),
        ):
            texts += draw.sample(others, min(per_kind, len(others)))
            kinds += [kind] * min(per_kind, len(others))
        retriever = load_retriever()
        with torch.inference_mode():
            queries = retriever.encode_queries(texts)
            thresholds = queries @ retriever.encode_sentinel()
        np.savez(path, queries=queries.numpy(), thresholds=thresholds.numpy(), kinds=np.array(kinds))
    return Questions(**np.load(path))


def exact_best(keys: Keys, rows: NDArray[np.int64], queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest dot product of each query with the keys in `rows`."""
    best = np.full(len(queries), -np.inf, np.float32)
    for start in range(0, len(rows), SHARD):
        products = torch.from_numpy(queries) @ torch.from_numpy(keys[rows[start : start + SHARD]]).T
        best = np.maximum(best, products.amax(1).numpy())
    return best


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def lookups(look_up: Callable[[NDArray[np.float32]], float], queries: NDArray[np.float32]) -> dict[str, Any]:
    """Scores found one query at a time, and milliseconds that took."""
    for query in queries[:50]:
        look_up(query[None])
    scores, seconds = zip(*(timed(lambda query=query: look_up(query[None])) for query in queries), strict=True)
    median, late = np.percentile(np.array(seconds) * 1000, [50, 99])
    return {"scores": np.array(scores, np.float32), "median": median, "p99": late}


def recall(scores: NDArray[np.float32], best: NDArray[np.float32], questions: Questions) -> dict[str, float]:
    """Share of queries whose best fact is found: by kind, and of all for which a fact is used."""
    found = scores >= best - 1e-5 * np.abs(best)
    by_kind = {kind: found[questions.kinds == number].mean() for number, kind in enumerate(KINDS)}
    return by_kind | {USED: found[best > questions.thresholds].mean(), "all": found.mean()}


def recalls(values: dict[str, float]) -> list[str]:
    return [f"{values[kind]:.4f}" for kind in (*KINDS, USED)]


def milliseconds(found: dict[str, Any]) -> str:
    return f"{found['median']:.2f}, {found['p99']:.2f}"


# ---------------------------------------------------------------------- the knowledge base


def measure_knowledge_base(facts: Sequence[RealFact], keys: Keys, num_facts: int, questions: Questions) -> str:
    directory = Path(tempfile.mkdtemp(dir="runs"))
    try:
        return table(["", ""], list(_measured(directory / "facts.db", facts, keys, num_facts, questions)))
    finally:
        shutil.rmtree(directory)


def _measured(
    path: Path, facts: Sequence[RealFact], keys: Keys, num_facts: int, questions: Questions
) -> Iterator[tuple[str, str]]:
    """Lines of the table: what was measured, and what came out."""
    rows = np.arange(num_facts)
    exact = _exact_search(keys, rows, questions)
    base = KnowledgeBase.open(path, keys.parts[0].shape[1])
    seconds = sum(timed(lambda chosen=chosen: _add(base, facts, keys, chosen, chosen))[1] for chosen in _batches(rows))
    yield _said(f"adding them in batches of {BATCH:,}, facts a second", f"{num_facts / seconds:,.0f}")
    seconds = timed(lambda: base.search(torch.from_numpy(questions.queries[:1])))[1]
    yield _said("making and saving the index of all of them, seconds", f"{seconds:.1f}")
    yield _said("closing, seconds", f"{timed(base.close)[1]:.2f}")

    np.save(path.with_suffix(".npy"), questions.queries)
    command = [sys.executable, __file__, "--reopen", str(path)]
    reopened = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    yield _said("opening in a new process and the first lookup, seconds", f"{reopened['open']:.2f}")
    yield _said("memory of that process, KB a fact", f"{reopened['bytes'] / num_facts / 1000:.2f}")
    yield _said("on disk, facts and index, KB a fact", f"{size / num_facts / 1000:.2f}")
    yield _said("lookup, milliseconds: median, p99", milliseconds(reopened))
    yield _said("comparing all float32 keys instead", milliseconds(exact))
    best = exact_best(keys, rows, questions.queries)
    yield _said(RECALL, ", ".join(recalls(recall(np.array(reopened["scores"], np.float32), best, questions))))

    base = KnowledgeBase.open(path)
    base.search(torch.from_numpy(questions.queries[:1]))
    num_changed = int(num_facts * CHURN)
    removed, replaced = np.split(np.random.default_rng(0).permutation(num_facts)[: 2 * num_changed], 2)
    seconds = sum(
        timed(lambda chosen=chosen: _then_search(base, base.remove(chosen.tolist())))[1]
        for chosen in _batches(removed)
    )
    yield _said(
        f"removing {num_changed:,}, a lookup after each batch, facts a second", f"{num_changed / seconds:,.0f}"
    )
    # What replaces a fact says, and has the key of, what a removed one did.
    seconds = sum(
        timed(lambda old=old, new=new: _then_search(base, _add(base, facts, keys, old, new)))[1]
        for old, new in zip(_batches(replaced), _batches(removed), strict=True)
    )
    yield _said(f"replacing {num_changed:,} others likewise, facts a second", f"{num_changed / seconds:,.0f}")
    back = removed[:200]
    seconds = [
        timed(lambda row=row: _then_search(base, _add(base, facts, keys, row, row)))[1] for row in back[:, None]
    ]
    yield _said("adding a single fact and a lookup, milliseconds, median", f"{np.median(seconds) * 1000:.1f}")
    found = lookups(lambda query: base.lookup(torch.from_numpy(query)).scores.item(), questions.queries)
    yield _said("lookup after that, milliseconds: median, p99", milliseconds(found))
    best = exact_best(keys, np.setdiff1d(rows, replaced), questions.queries)  # And `removed`, by their new names.
    yield _said(RECALL, ", ".join(recalls(recall(found["scores"], best, questions))))
    base.close()


def _said(what: str, value: str) -> tuple[str, str]:
    print(f"{what}: {value}", file=sys.stderr, flush=True)
    return what, value


def _batches(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))


def _add(base: KnowledgeBase, facts: Sequence[RealFact], keys: Keys, prompts: Any, answers: Any) -> None:
    pairs = [(facts[row].prompt, facts[other].answer) for row, other in zip(prompts, answers, strict=True)]
    base.add(pairs, torch.from_numpy(keys[answers]))


def _then_search(base: KnowledgeBase, _: None) -> None:
    base.search(torch.ones(1, base.dim or 0))


def _exact_search(keys: Keys, rows: NDArray[np.int64], questions: Questions) -> dict[str, Any]:
    exact = KeyIndex(keys.parts[0].shape[1])
    exact.add(rows, keys[rows])
    return lookups(lambda query: exact.search(query, 1, torch.get_num_threads())[1].item(), questions.queries[:100])


def reopen(path: Path) -> None:
    """What a new process sees."""
    queries = np.load(path.with_suffix(".npy"))
    small = KnowledgeBase(queries.shape[1], full_scan_threshold=1)  # Libraries that are loaded once are no fact's.
    small.add(["x", "y"], torch.from_numpy(queries[:2]))
    small.search(torch.from_numpy(queries[:1]))
    process = psutil.Process()
    before = process.memory_info().rss
    base, opening = timed(lambda: KnowledgeBase.open(path))
    _, first = timed(lambda: base.search(torch.from_numpy(queries[:1])))
    found = lookups(lambda query: base.lookup(torch.from_numpy(query)).scores.item(), queries)
    used = process.memory_info().rss - before
    print(json.dumps({"open": opening + first, "bytes": used} | found | {"scores": found["scores"].tolist()}))


# ---------------------------------------------------------------------- by size, and other ways


def measure_thresholds(keys: Keys, num_facts: int, questions: Questions) -> str:
    lines, threads = [], torch.get_num_threads()
    for size in (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000):
        if size > num_facts:
            break
        rows = np.arange(size)
        codes = CodeIndex(keys.parts[0].shape[1], keys.__getitem__)
        codes.build(rows)
        exact = _exact_search(keys, rows, questions)
        found = lookups(lambda query, codes=codes: codes.search(query, 1, threads)[1].item(), questions.queries)
        found_best = recall(found["scores"], exact_best(keys, rows, questions.queries), questions)
        lines.append([f"{size:,}", milliseconds(exact), milliseconds(found), *recalls(found_best)])
        print(*lines[-1], file=sys.stderr, flush=True)
    return table(["facts", "all keys, ms: median, p99", "codes, ms", *KINDS, USED], lines, num_left=0)


def main(
    num_facts: Annotated[int, typer.Option(help="As many as have keys, at most.")] = 1_000_000,
    data: Annotated[Path, typer.Option()] = Path("data"),
    keys_dir: Annotated[Path, typer.Option("--keys")] = KEYS,
    per_kind: Annotated[int, typer.Option(help="Queries of each kind.")] = 2000,
    thresholds: Annotated[bool, typer.Option("--thresholds", help="Compare exact search and codes by size.")] = False,
    document: Annotated[Path | None, typer.Option(help="Where the table goes, between its marks.")] = None,
    path: Annotated[Path | None, typer.Option("--reopen", hidden=True)] = None,
) -> None:
    """Measures a knowledge base of many facts, prints the table, and writes it into the document."""
    if path is not None:
        reopen(path)
        return
    facts, keys, num_facts, questions = load(num_facts, data, keys_dir, per_kind)
    if thresholds:
        publish("thresholds", measure_thresholds(keys, num_facts, questions), document)
    else:
        text = measure_knowledge_base(facts, keys, num_facts, questions)
        publish("a million facts", f"{intro(num_facts, questions)}\n\n{text}", document)


def load(num_facts: int, data: Path, keys_dir: Path, per_kind: int) -> tuple[list[RealFact], Keys, int, Questions]:
    """Facts, their keys, how many of `num_facts` have one, and questions about these."""
    keys = Keys([np.load(shard, mmap_mode="r") for shard in shards(keys_dir)[: -(-num_facts // SHARD)]])
    num_facts = min(num_facts, sum(map(len, keys.parts)))
    facts = real_facts(data, num_facts)
    return facts, keys, num_facts, ask(facts, num_facts, per_kind, keys_dir)


def intro(num_facts: int, questions: Questions) -> str:
    numbers = np.bincount(questions.kinds, minlength=len(KINDS))
    asked = ", ".join(f"{number:,} {kind}" for number, kind in zip(numbers, KINDS, strict=True))
    return (
        f"{num_facts:,} facts; {asked}; {torch.get_num_threads()} threads, one query at a time. Load of the machine "
        f"when the run began: {LOAD:.1f} on {os.cpu_count()} cores (0 is a quiet one)."
    )


if __name__ == "__main__":
    typer.run(main)
