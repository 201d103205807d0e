"""A large knowledge base on real keys: recall against exact search, time of a lookup, memory, opening, changes.

Prints the tables of docs/performance.md. Make the keys first (benchmarks/real_facts.py); with fewer of them than
--num-facts, it takes those there are.

    python benchmarks/million_facts.py --num-facts 1000000                # the knowledge base as it is
    python benchmarks/million_facts.py --num-facts 10000 --thresholds     # comparing all keys against codes, by size
    python benchmarks/million_facts.py --num-facts 100000 --candidates    # what else could be used
"""

from __future__ import annotations

import json
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

sys.path.insert(0, str(Path(__file__).parent))
from real_facts import KEYS, SHARD, RealFact, load_retriever, real_facts, shards

from recipe_hf.modeling.knowledge import KnowledgeBase
from recipe_hf.modeling.knowledge.code_index import CodeIndex
from recipe_hf.modeling.knowledge.key_index import KeyIndex

BATCH = 1000
CHURN = 0.1  # Share of the facts that are removed, and again that are replaced.
KINDS = ("prompts", "rephrasings", "unrelated")


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
    return by_kind | {"used": found[best > questions.thresholds].mean(), "all": found.mean()}


def recalls(values: dict[str, float]) -> str:
    return " | ".join(f"{values[kind]:.4f}" for kind in (*KINDS, "used"))


# ---------------------------------------------------------------------- the knowledge base


def in_batches(facts: Sequence[RealFact], keys: Keys, rows: NDArray[np.int64]) -> Iterator[tuple[list, torch.Tensor]]:
    for start in range(0, len(rows), BATCH):
        chosen = rows[start : start + BATCH]
        pairs = [(facts[row].prompt, facts[row].answer) for row in chosen]
        yield pairs, torch.from_numpy(keys[chosen])


def measure_knowledge_base(facts: Sequence[RealFact], keys: Keys, num_facts: int, questions: Questions) -> None:
    directory = Path(tempfile.mkdtemp(dir="runs"))
    try:
        _measure_knowledge_base(directory / "facts.db", facts, keys, num_facts, questions)
    finally:
        shutil.rmtree(directory)


def _measure_knowledge_base(
    path: Path, facts: Sequence[RealFact], keys: Keys, num_facts: int, questions: Questions
) -> None:
    # The last facts replace others later.
    num_new = int(num_facts * CHURN / (1 + CHURN))
    num_held = num_facts - num_new
    base = KnowledgeBase.open(path, keys.parts[0].shape[1])
    rows_of_ids = list(range(num_held))
    seconds = [
        timed(lambda pairs=pairs, batch=batch: base.add(pairs, batch))[1]
        for pairs, batch in in_batches(facts, keys, np.arange(num_held))
    ]
    print(f"| adding to an empty one, facts a second (batches of {BATCH:,}) | {num_held / sum(seconds):,.0f} |")
    _, building = timed(lambda: base.search(torch.from_numpy(questions.queries[:1])))
    print(f"| making the index of all of them, seconds | {building:.1f} |")
    _, closing = timed(base.close)
    print(f"| closing, seconds | {closing:.2f} |", flush=True)

    best = exact_best(keys, np.arange(num_held), questions.queries)
    np.savez(path.parent / "questions.npz", **vars(questions))
    command = [sys.executable, __file__, "--reopen", str(path)]
    reopened = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    print(f"| opening it and the first lookup, seconds | {reopened['open']:.2f} |")
    print(f"| memory of the process that opened it, KB a fact | {reopened['bytes'] / num_held / 1000:.2f} |")
    print(f"| on disk, facts and index, KB a fact | {_size(path.parent) / num_held / 1000:.2f} |")
    _print_lookups("lookup", reopened | {"scores": np.array(reopened["scores"], np.float32)}, best, questions)

    base = KnowledgeBase.open(path)
    base.search(torch.from_numpy(questions.queries[:1]))
    draw = np.random.default_rng(0)
    chosen = draw.permutation(num_held)[: 2 * num_new]
    replaced, removed = chosen[:num_new], chosen[num_new:]
    seconds = []
    for start in range(0, num_new, BATCH):
        new = np.arange(num_held + start, min(num_held + start + BATCH, num_facts))
        old = replaced[start : start + BATCH]
        pairs = [(facts[row].prompt, facts[other].answer) for row, other in zip(old, new, strict=True)]
        batch = torch.from_numpy(keys[new])
        rows_of_ids += new.tolist()
        seconds.append(timed(lambda pairs=pairs, batch=batch: _change(base, lambda: base.add(pairs, batch)))[1])
    print(
        f"| replacing {num_new:,} of them, facts a second, with a lookup after each batch |"
        f" {num_new / sum(seconds):,.0f} |"
    )
    seconds = [
        timed(lambda ids=ids: _change(base, lambda: base.remove(ids)))[1]
        for ids in (removed[start : start + BATCH].tolist() for start in range(0, num_new, BATCH))
    ]
    print(f"| removing {num_new:,}, facts a second, likewise | {num_new / sum(seconds):,.0f} |", flush=True)
    singles = []
    for row in range(200):
        pair, key = [(f"{facts[row].prompt} once more", "x")], torch.from_numpy(keys[np.array([row])])
        rows_of_ids.append(row)
        singles.append(timed(lambda pair=pair, key=key: _change(base, lambda: base.add(pair, key)))[1])
    print(f"| adding one fact and a lookup, milliseconds | {np.median(singles) * 1000:.1f} |")
    alive = np.setdiff1d(np.arange(len(rows_of_ids)), chosen)
    best = exact_best(keys, np.array(rows_of_ids)[alive], questions.queries)
    found = lookups(lambda query: base.lookup(torch.from_numpy(query)).scores.item(), questions.queries)
    _print_lookups("lookup after that", found, best, questions)
    base.close()


def _change(base: KnowledgeBase, change: Callable[[], Any]) -> None:
    change()
    base.search(torch.ones(1, base.dim or 0))


def _print_lookups(name: str, found: dict[str, Any], best: NDArray[np.float32], questions: Questions) -> None:
    values = recall(found["scores"], best, questions)
    print(f"| {name}, milliseconds: median, p99 | {found['median']:.2f}, {found['p99']:.2f} |")
    print(
        f"| recall@1: {', '.join(KINDS)}, all that use a fact | {recalls(values).replace(' | ', ', ')} |", flush=True
    )


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def reopen(path: Path) -> None:
    """What a new process sees."""
    queries = np.load(path.parent / "questions.npz")["queries"]
    small = KnowledgeBase(queries.shape[1], full_scan_threshold=1)  # What is loaded once is no fact's memory.
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


def measure_thresholds(keys: Keys, num_facts: int, questions: Questions) -> None:
    print(
        "| facts | all keys: median, p99, ms | codes: median, p99, ms | recall@1 of codes: " + " | ".join(KINDS),
        end="",
    )
    print(" | all that use a fact |\n" + "|---:" * 7 + "|")
    for size in (1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000):
        if size > num_facts:
            break
        rows = np.arange(size)
        exact, codes = KeyIndex(keys.parts[0].shape[1]), CodeIndex(keys.parts[0].shape[1], keys.__getitem__)
        exact.add(rows, keys[rows])
        codes.build(rows)
        best = exact_best(keys, rows, questions.queries)
        threads = torch.get_num_threads()
        some = lookups(lambda query: exact.search(query, 1, threads)[1].item(), questions.queries[::10])  # noqa: B023
        found = lookups(lambda query: codes.search(query, 1, threads)[1].item(), questions.queries)  # noqa: B023
        print(
            f"| {size:,} | {some['median']:.2f}, {some['p99']:.2f} | {found['median']:.2f}, {found['p99']:.2f} |"
            f" {recalls(recall(found['scores'], best, questions))} |",
            flush=True,
        )


def measure_candidates(keys: Keys, num_facts: int, questions: Questions) -> None:
    """Each way names candidates, whose float32 keys are compared."""
    import faiss
    from usearch.index import Index

    rows = np.arange(num_facts)
    whole = keys[rows]
    queries = questions.queries
    best = exact_best(keys, rows, queries)
    sample = whole[np.random.default_rng(0).choice(num_facts, min(num_facts, 50_000), replace=False)]
    directions = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((256, 256)))[0]
    narrow = np.ascontiguousarray(directions[:, :256] @ rotation, np.float32)
    print("| | candidates | making it, s | bytes a fact | median, ms | p99, ms | " + " | ".join(KINDS), end="")
    print(" | all that use a fact |\n|---|" + "---:|" * 9)

    def report(name: str, n: int, seconds: float, size: float, candidates: Callable[[Any], Any]) -> None:
        def look_up(query: NDArray[np.float32]) -> float:
            chosen = np.asarray(candidates(query)).ravel()
            return float((whole[chosen[chosen >= 0].astype(np.int64)] @ query[0]).max(initial=-np.inf))

        found = lookups(look_up, queries)
        print(
            f"| {name} | {n:,} | {seconds:.0f} | {size:,.0f} | {found['median']:.2f} | {found['p99']:.2f} |"
            f" {recalls(recall(found['scores'], best, questions))} |",
            flush=True,
        )

    exact = KeyIndex(whole.shape[1])
    exact.add(rows, whole)
    threads = torch.get_num_threads()
    report("all float32 keys", 1, 0, 4 * whole.shape[1], lambda query: exact.search(query, 1, threads)[0])

    projected = whole @ narrow
    coarse = faiss.IndexFlatIP(256)
    lists = max(16, int(4 * num_facts**0.5))
    ivf = faiss.IndexIVFScalarQuantizer(coarse, 256, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    _, seconds = timed(lambda: (ivf.train(projected[:100_000]), ivf.add(projected)))
    for share in (16, 4):
        ivf.nprobe = lists // share
        name = f"faiss IVF, {lists} lists, 1 in {share} searched, 256 directions in 8 bits"
        report(name, 200, seconds, 256 + 8, lambda query: ivf.search(query @ narrow, 200)[1])

    for dtype, bytes_each in (("f16", 512), ("i8", 256)):
        graph = Index(
            ndim=256, metric="ip" if dtype == "f16" else "cos", dtype=dtype, connectivity=32, expansion_add=128
        )
        _, seconds = timed(lambda: graph.add(rows, projected, threads=threads))  # noqa: B023
        for expansion in (64, 256, 1024):
            graph.expansion_search = expansion
            name = f"usearch HNSW, 256 directions in {dtype}, expansion {expansion}"
            report(
                name,
                expansion,
                seconds,
                bytes_each + 4 * 64 + 8,
                lambda query, graph=graph, expansion=expansion: (
                    graph.search(query @ narrow, expansion, threads=1).keys
                ),
            )

    for subquantizers in (32, 64):
        index = faiss.IndexPQFastScan(256, subquantizers, 4, faiss.METRIC_INNER_PRODUCT)
        _, seconds = timed(lambda: (index.train(sample @ narrow), index.add(projected)))  # noqa: B023
        for n in (100, 1000, 2000):
            report(
                f"faiss 4-bit codes, {subquantizers // 2} bytes",
                n,
                seconds,
                subquantizers // 2,
                lambda query, index=index, n=n: index.search(query @ narrow, n)[1],
            )
    codes = CodeIndex(whole.shape[1], keys.__getitem__)
    _, seconds = timed(lambda: codes.build(rows))
    report(
        "this library: 32-byte codes, 8-bit keys, float32 keys",
        1,
        seconds,
        32 + whole.shape[1] + 20,
        lambda query: codes.search(query, 1, threads)[0],
    )


def main(
    num_facts: Annotated[int, typer.Option()] = 1_000_000,
    data: Annotated[Path, typer.Option()] = Path("data"),
    keys_dir: Annotated[Path, typer.Option("--keys")] = KEYS,
    per_kind: Annotated[int, typer.Option(help="Queries of each kind.")] = 2000,
    thresholds: Annotated[bool, typer.Option("--thresholds")] = False,
    candidates: Annotated[bool, typer.Option("--candidates")] = False,
    path: Annotated[Path | None, typer.Option("--reopen", hidden=True)] = None,
) -> None:
    """Measures a knowledge base of many facts."""
    if path is not None:
        reopen(path)
        return
    keys = Keys([np.load(shard, mmap_mode="r") for shard in shards(keys_dir)[: -(-num_facts // SHARD)]])
    num_facts = min(num_facts, sum(map(len, keys.parts)))
    facts = real_facts(data, num_facts)
    questions = ask(facts, num_facts, per_kind, keys_dir)
    print(f"{num_facts:,} facts, {len(questions.queries):,} queries, {torch.get_num_threads()} threads\n")
    if thresholds:
        measure_thresholds(keys, num_facts, questions)
    elif candidates:
        measure_candidates(keys, num_facts, questions)
    else:
        print("| | |\n|---|---:|")
        measure_knowledge_base(facts, keys, num_facts, questions)


if __name__ == "__main__":
    typer.run(main)
