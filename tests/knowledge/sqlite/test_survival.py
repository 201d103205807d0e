"""What is left after the writer is killed, the disk fills up, or files are damaged."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import filelock  # noqa: F401  # Once here, rather than in every process that is killed.
import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.facts import PastFact

DIM = 256
_BEGUN = b"{}\n"


def key_of(statement: str) -> torch.Tensor:
    return torch.randn(DIM, generator=torch.Generator().manual_seed(sum(statement.encode())))


def add(base: KnowledgeBase, facts: list[tuple[str, str]]) -> list[int]:
    return base.add(facts, torch.stack([key_of(f"{prompt} {answer}") for prompt, answer in facts]))


def write_until_killed(path: Path, acknowledged: int, seed: int) -> None:
    """Adds, replaces and removes, and says what is done once it is: a line when it begins, and one for each change."""
    rng = random.Random(seed)
    with KnowledgeBase.open(path, DIM) as base:
        # So that some are killed while SQLite moves its log into the file, which it does after 1,000 pages otherwise.
        base._store.execute("PRAGMA wal_autocheckpoint = 20")
        os.write(acknowledged, _BEGUN)
        for step in range(10**9):
            if rng.random() < 0.2 and len(base):
                removed = [fact.id for fact in rng.sample(list(base), 1)]
                os.write(acknowledged, json.dumps({"begin": removed}).encode() + b"\n")
                base.remove(removed)
                line = {"removed": removed}
            else:
                facts = [
                    (f"prompt {rng.randrange(200)}", f"answer {seed}-{step}-{i}") for i in range(rng.choice([1, 7]))
                ]
                line = {"added": add(base, facts), "facts": facts}
            os.write(acknowledged, json.dumps(line).encode() + b"\n")
            if rng.random() < 0.05:
                base.search(torch.ones(1, DIM))
                base._index.save()


class Expected:
    """What must be true of the store, by what its writers acknowledged."""

    def __init__(self) -> None:
        self.facts: dict[int, tuple[str, str]] = {}
        self.removed: set[int] = set()
        self.maybe_removed: set[int] = set()

    def hear(self, line: dict) -> None:
        self.facts.update(zip(line.get("added", []), map(tuple, line.get("facts", [])), strict=True))
        self.removed.update(line.get("removed", []))
        self.maybe_removed.update(line.get("begin", []))

    def check(self, path: Path) -> None:
        with KnowledgeBase.open(path, DIM) as base:
            present, past = {fact.id: fact for fact in base}, {fact.id: fact for fact in base.history()}
            everything = present | past
            for id, (prompt, answer) in self.facts.items():
                assert (everything[id].prompt, everything[id].answer) == (prompt, answer)
            assert self.removed <= past.keys()
            assert {id for id, fact in past.items() if fact.reason == "removed"} <= self.maybe_removed
            # Nothing is there by half: ids without gaps, one fact to a prompt, whole keys and whole batches.
            assert sorted(everything) == list(range(len(everything)))
            assert len({fact.prompt for fact in present.values()}) == len(present)
            for fact in past.values():
                assert isinstance(fact, PastFact)
                assert fact.reason == "removed" or everything[fact.replaced_by].prompt == fact.prompt
            batches: dict[str, list[int]] = {}
            for fact in everything.values():
                run, step, position = fact.answer.removeprefix("answer ").split("-")
                batches.setdefault(f"{run}-{step}", []).append(int(position))
            assert {tuple(sorted(batch)) for batch in batches.values()} <= {(0,), tuple(range(7))}
            if present:
                newest = max(present)
                assert torch.equal(base.keys([newest])[0], key_of(present[newest].statement))
                found = base.lookup(torch.stack([key_of(present[newest].statement)]))
                assert found.facts[0][0].prompt is not None and found.ids[0, 0].item() in present
            self.facts = {id: (fact.prompt, fact.answer) for id, fact in everything.items()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("kills", [30, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.endurance])])
def test_a_writer_killed_at_any_moment_loses_nothing_acknowledged(tmp_path: Path, kills: int):
    rng, changes = random.Random(kills), 0
    for seed in range(kills):
        if seed % 30 == 0:
            expected, path = Expected(), tmp_path / f"facts-{seed}.db"
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                write_until_killed(path, writing, seed)
            finally:
                os._exit(1)
        os.close(writing)
        if rng.random() < 0.8:  # The others may be killed while they open it.
            assert os.read(reading, len(_BEGUN)) == _BEGUN
        time.sleep(rng.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        with os.fdopen(reading, "rb") as lines:
            heard = [json.loads(line) for line in lines.read().split(b"\n")[:-1]]
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        for line in heard:
            expected.hear(line)
        changes += sum(map(bool, heard))
        expected.check(path)
    assert changes > kills


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with KnowledgeBase.open(tmp_path / "facts.db", DIM) as base:
        add(base, [(f"prompt {i}", f"answer {i}") for i in range(50)])
        base.remove(range(5))
        base.search(torch.ones(1, DIM))
    return tmp_path / "facts.db"


def content(base: KnowledgeBase) -> tuple:
    ids = [fact.id for fact in base]
    return list(base), base.history(), base.keys(ids).tolist(), base.search(base.keys(ids), 2)[0].tolist()


def test_a_full_disk_changes_nothing(store: Path):
    with KnowledgeBase.open(store) as base:
        before = content(base)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        room = max(os.path.getsize(file) for file in store.parent.iterdir() if file.is_file()) + 100_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(OSError, match="nothing was changed.*facts.db"):
                add(base, [(f"prompt {i}", "new") for i in range(1000)])
            assert content(base) == before
            base.remove(10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert 10 not in base
        (id,) = add(base, [("prompt 11", "new")])
        after = content(base)
    with KnowledgeBase.open(store) as base:
        assert content(base) == after and base[id].answer == "new" and id == 50


def test_sqlite_saying_that_the_disk_is_full_is_a_clear_error(store: Path):
    with KnowledgeBase.open(store) as base:
        before = content(base)
        ((pages,),) = base._store.execute("PRAGMA page_count")
        base._store.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match="The disk is full, and nothing was changed.*facts.db"):
            add(base, [(f"prompt {i}", "new") for i in range(200)])
        assert content(base) == before


def index_file(store: Path) -> Path:
    (file,) = store.with_name("facts.db-index").glob("*/index.safetensors")
    return file


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "manifest", *range(8)])
def test_a_damaged_index_is_made_anew(store: Path, damage: object, caplog: pytest.LogCaptureFixture):
    with KnowledgeBase.open(store) as base:
        before = content(base)
    file = index_file(store)
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "manifest":
        file.with_name("manifest.json").write_text("{}")
    elif isinstance(damage, int):
        altered = bytearray(whole)
        altered[random.Random(damage).randrange(len(whole))] ^= 1 << damage
        file.write_bytes(altered)
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "short" else b"")
    with KnowledgeBase.open(store) as base:
        assert content(base) == before
    assert "The index is rebuilt" in caplog.text
    assert index_file(store).read_bytes() == whole
    caplog.clear()
    with KnowledgeBase.open(store) as base:
        assert content(base) == before
    assert not caplog.text
