"""Ways to search many real keys: recall@1 against exact search, time of a lookup, memory.

Each way names candidates; the float32 keys of these are compared, in memory. Make the keys first
(benchmarks/real_facts.py).

    python benchmarks/index_candidates.py --document docs/performance.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import torch
import typer
from million_facts import KINDS, USED, exact_best, intro, load, lookups, milliseconds, recall, recalls, timed
from numkong import cdist
from numpy.typing import NDArray
from real_facts import KEYS
from report import publish, table
from usearch.index import Index

from recipe_hf.knowledge.search.code_index import CodeIndex
from recipe_hf.knowledge.search.key_index import KeyIndex

WIDTH = 192  # Main directions that the keys are projected to, in a random rotation.


@dataclass
class Way:
    """A way to search.

    Attributes:
        size: Bytes a fact, float32 keys apart.
        seconds: What it took to make.
        candidates: Gives row numbers for a query `[1, dim]`.
    """

    name: str
    size: int
    seconds: float
    candidates: Callable[[NDArray[np.float32]], Any]


def ways(keys: NDArray[np.float32], projection: NDArray[np.float32]) -> Iterator[Way]:
    """All of them, each made when the one before has been measured."""
    rows, threads = np.arange(len(keys)), torch.get_num_threads()
    exact = KeyIndex(keys.shape[1])
    exact.add(rows, keys)
    yield Way("all float32 keys", 0, 0, lambda query: exact.search(query, 1, threads)[0])

    projected = keys @ projection
    num_lists = int(4 * len(keys) ** 0.5)
    metric, coarse = faiss.METRIC_INNER_PRODUCT, faiss.IndexFlatIP(WIDTH)
    lists = faiss.IndexIVFScalarQuantizer(coarse, WIDTH, num_lists, faiss.ScalarQuantizer.QT_8bit, metric)
    seconds = timed(lambda: (lists.train(projected[:50_000]), lists.add(projected)))[1]
    for share in (16, 4):
        lists.nprobe = num_lists // share
        name = f"faiss IVF, 1 in {share} of {num_lists:,} lists, 200 candidates"
        yield Way(name, WIDTH + 8, seconds, lambda query: lists.search(query @ projection, 200)[1])

    graph = Index(ndim=WIDTH, metric="ip", dtype="f16", connectivity=32, expansion_add=128)
    seconds = timed(lambda: graph.add(rows, projected, threads=threads))[1]
    for expansion in (64, 256, 1024):
        graph.expansion_search = expansion
        name = f"usearch HNSW, float16, expansion {expansion:,}"
        yield Way(
            name,
            2 * WIDTH + 4 * 64 + 8,
            seconds,
            lambda query, n=expansion: graph.search(query @ projection, n, threads=1).keys,
        )

    for num_bytes in (16, 24, 32):
        codes = faiss.IndexPQFastScan(WIDTH, 2 * num_bytes, 4, metric)
        seconds = timed(lambda codes=codes: (codes.train(projected[:50_000]), codes.add(projected)))[1]
        for n in (100, 2000):
            name = f"faiss 4-bit codes of {num_bytes} bytes, {n:,} candidates"
            yield Way(name, num_bytes, seconds, lambda query, codes=codes, n=n: codes.search(query @ projection, n)[1])

    both = CodeIndex(keys.shape[1], keys.__getitem__)
    seconds = timed(lambda: both.build(rows))[1]
    size = sum(len(bytes(content)) for _, content in both.files()) // len(keys) + 8
    yield Way(
        "codes, then 8-bit keys: as in the library", size, seconds, lambda query: both.search(query, 1, threads)[0]
    )


def main(
    num_facts: Annotated[int, typer.Option(help="As many as have keys, at most.")] = 100_000,
    data: Annotated[Path, typer.Option()] = Path("data"),
    keys_dir: Annotated[Path, typer.Option("--keys")] = KEYS,
    per_kind: Annotated[int, typer.Option(help="Queries of each kind.")] = 1000,
    document: Annotated[Path | None, typer.Option(help="Where the table goes, between its marks.")] = None,
) -> None:
    """Measures every way, prints the table, and writes it into the document."""
    _, stored, num_facts, questions = load(num_facts, data, keys_dir, per_kind)
    rows = np.arange(num_facts)
    keys, best = stored[rows], exact_best(stored, rows, questions.queries)
    sample = keys[np.random.default_rng(0).choice(num_facts, min(num_facts, 50_000), replace=False)]
    directions = np.linalg.eigh(sample.T @ sample)[1][:, : -WIDTH - 1 : -1]
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    projection = np.ascontiguousarray(directions @ rotation, np.float32)
    lines = []
    for way in ways(keys, projection):

        def look_up(query: NDArray[np.float32], way: Way = way) -> float:
            chosen = np.asarray(way.candidates(query)).ravel()
            products = cdist(query, keys[chosen[chosen >= 0].astype(np.int64)], "dot")
            return float(np.asarray(products).max(initial=-np.inf))

        found = lookups(look_up, questions.queries)
        values = recalls(recall(found["scores"], best, questions))
        lines.append([way.name, f"{way.size:,}", f"{way.seconds:.0f}", milliseconds(found), *values])
        print(*lines[-1], file=sys.stderr, flush=True)
    header = ["", "bytes a fact", "made in, s", "lookup, ms: median, p99", *KINDS, USED]
    publish("index candidates", f"{intro(num_facts, questions)}\n\n{table(header, lines)}", document)


if __name__ == "__main__":
    typer.run(main)
