"""Eight threads at one knowledge base, against a plain model of what must be true."""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe_hf.knowledge import KnowledgeBase, timestamps
from tests.engines import open_base, qdrant

THREADS, PROMPTS = 8, 6
KEYS = torch.eye(PROMPTS) * 9

prompts = st.integers(0, PROMPTS - 1)
adds = st.tuples(st.just("add"), st.lists(prompts, min_size=1, max_size=3))
keeps = st.tuples(st.just("keep"), st.lists(prompts, min_size=1, max_size=3))
removals = st.tuples(st.just("remove"), st.integers(0, 40))
restorations = st.tuples(st.just("restore"), st.integers(0, 40))
questions = st.tuples(st.just("ask"), prompts)
operations = st.one_of(adds, adds, keeps, removals, restorations, questions, questions)
programs = st.lists(st.lists(operations, min_size=2, max_size=10), min_size=THREADS, max_size=THREADS)


@dataclass
class Heard:
    """What one thread was told."""

    added: dict[int, tuple[str, str]] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    restored: dict[int, int] = field(default_factory=dict)
    answers: list[tuple[str, str, int, int | None]] = field(default_factory=list)


def run(base: KnowledgeBase, program: list, thread: int, heard: Heard) -> None:
    for step, (action, argument) in enumerate(program):
        if action in ("add", "keep"):
            facts = [(f"prompt {p}", f"answer {thread}-{step}-{i}") for i, p in enumerate(argument)]
            ids = base.add(facts, KEYS[argument], "replace" if action == "add" else "keep")
            if action == "add":
                heard.added.update(zip(ids, facts, strict=True))
        elif action == "ask":
            start = timestamps.now()
            (fact,) = base.lookup(KEYS[argument : argument + 1]).facts[0]
            mine = fact is not None and fact.prompt == f"prompt {argument}"
            heard.answers.append((start, timestamps.now(), argument, fact.id if mine else None))
        else:
            try:
                if action == "remove":
                    base.remove(argument)
                    heard.removed.append(argument)
                else:
                    heard.restored[base.restore(argument)] = argument
            except KeyError:
                pass


def check(base: KnowledgeBase, heard: list[Heard]) -> None:
    present, past = {fact.id: fact for fact in base}, {fact.id: fact for fact in base.history()}
    everything = present | past
    # Every fact is there once, as it was told, and nothing else is.
    assert not present.keys() & past.keys() and sorted(everything) == list(range(len(everything)))
    for each in heard:
        for id, fact in each.added.items():
            assert (everything[id].prompt, everything[id].answer) == fact
        for id, origin in each.restored.items():
            assert everything[id].statement == everything[origin].statement
    # A removal succeeds for one thread alone.
    removed = sorted(id for each in heard for id in each.removed)
    assert removed == sorted(id for id, fact in past.items() if fact.reason == "removed")
    # About each prompt there is one fact after the other.
    chains = defaultdict(list)
    for id in sorted(everything):
        chains[everything[id].prompt].append(everything[id])
    for chain in chains.values():
        for fact, following in zip(chain, [*chain[1:], None], strict=True):
            if fact.id in present:
                assert following is None
            else:
                assert following is None or fact.ended_at <= following.created_at
                assert fact.reason == "removed" or fact.replaced_by == following.id
    # Whoever asked was told the fact that was there at some moment between question and answer.
    for start, end, prompt, id in [answer for each in heard for answer in each.answers]:
        chain = chains[f"prompt {prompt}"]
        possible = {f.id for f in chain if f.created_at <= end and getattr(f, "ended_at", end) >= start}
        throughout = {f.id for f in chain if f.created_at < start and (f.id in present or f.ended_at > end)}
        assert id in possible if id is not None else not throughout, (start, end, prompt, id, chain)


def run_all(base: KnowledgeBase, programs: list) -> list[Heard]:
    """Runs each program in a thread, and checks what came of it."""
    heard = [Heard() for _ in programs]
    failures: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        try:
            barrier.wait()
            run(base, programs[thread], thread, heard[thread])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    check(base, heard)
    return heard


@pytest.mark.parametrize("engine", ["memory", "file", "codes"])
@settings(max_examples=25, deadline=None)
@given(programs=programs)
def test_eight_threads_see_one_order_of_events(engine: str, programs: list):
    with tempfile.TemporaryDirectory() as directory:
        base = open_base(engine, Path(directory), PROMPTS)
        heard = run_all(base, programs)
        base.close()
        if engine == "file":
            with open_base(engine, Path(directory)) as base:
                check(base, heard)


@settings(max_examples=5, deadline=None)
@given(programs=programs)
def test_eight_threads_see_one_order_of_events_in_qdrant(programs: list):
    run_all(qdrant(dim=PROMPTS), programs)
