"""Many threads at one knowledge base, and what many additions cost."""

from __future__ import annotations

import threading
import time

import torch

from recipe_hf.knowledge import KnowledgeBase
from tests.engines import random_keys

DIM = 8


def test_threads_search_while_another_adds_and_removes():
    dim = 32
    anchors = torch.eye(dim)[:8] * 100
    base = KnowledgeBase(dim)
    anchor_ids = base.add([f"anchor {i}" for i in range(8)], anchors)
    done = threading.Event()
    failures: list[object] = []
    searches = [0] * 4

    def search(thread: int) -> None:
        while not done.is_set():
            try:
                hits = base.lookup(anchors, k=3)
                assert hits.ids[:, 0].tolist() == anchor_ids
                assert torch.equal(hits.keys[:, 0], anchors)
                for ids, facts in zip(hits.ids.tolist(), hits.facts, strict=True):
                    assert [fact.id for fact in facts if fact] == [i for i in ids if i >= 0]
                assert len({fact.id for fact in base}) >= 8
                searches[thread] += 1
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=search, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for i in range(150):
        ids = base.add([f"fact {i} {j}" for j in range(10)], random_keys(10, seed=i, dim=dim))
        base.remove(ids[::2])
    while min(searches) == 0 and not failures:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(base) == 8 + 150 * 5


def test_threads_that_add_at_once_lose_nothing():
    base = KnowledgeBase(DIM)
    ids: list[list[int]] = [[] for _ in range(4)]

    def add(thread: int) -> None:
        for i in range(100):
            ids[thread] += base.add([(f"{thread} {i}", "x"), ("shared", f"{thread} {i}")], random_keys(2, seed=i))

    threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = sorted(sum(ids, []))
    assert taken == list(range(800))
    assert len(base) == 401 and len(base.history("shared")) == 399
    assert sorted([fact.id for fact in base] + [past.id for past in base.history()]) == taken


def test_ten_thousand_facts_one_by_one_cost_little_more_than_at_once():
    keys = random_keys(10_000, dim=256)
    facts = [(f"prompt {i}", f"answer {i}") for i in range(10_000)]
    start = time.process_time()
    together = KnowledgeBase(256)
    together.add(facts, keys)
    at_once = time.process_time() - start
    start = time.process_time()
    apart = KnowledgeBase(256)
    for i, fact in enumerate(facts):
        apart.add([fact], keys[i : i + 1])
    one_by_one = time.process_time() - start
    assert torch.equal(together.keys(range(10_000)), apart.keys(range(10_000)))
    assert at_once < 2 and one_by_one < 6, (at_once, one_by_one)
