"""The index as a cache: it follows the store, and is trusted only where it is the store's own."""

from __future__ import annotations

import shutil
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.search import live_index
from tests.engines import random_keys

DIM = 8


def assert_finds_what_is_there(base: KnowledgeBase) -> None:
    ids = [fact.id for fact in base]
    queries = random_keys(10, seed=99)
    products = queries @ base.keys(ids).T
    assert base.search(queries, 3)[0].tolist() == torch.tensor(ids)[products.topk(3).indices].tolist()


@pytest.fixture(autouse=True, params=["keys", "codes"])
def searched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether all keys or all codes are searched."""
    if request.param == "codes":
        for function in (KnowledgeBase.open.__func__, KnowledgeBase.__init__):
            monkeypatch.setitem(function.__kwdefaults__, "full_scan_threshold", 1)
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with KnowledgeBase.open(tmp_path / "facts.db", DIM) as base:
        base.add([f"Fact {i}." for i in range(20)], random_keys(20))
        assert_finds_what_is_there(base)
    return tmp_path / "facts.db"


def directory(path: Path) -> Path:
    return path.with_name("facts.db-index")


def test_an_old_index_is_caught_up(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, searched: str):
    if searched == "codes":
        pytest.skip("the keys of what codes find are read from the store: see test_code_index.py")
    shutil.copytree(directory(path), tmp_path / "old")
    with KnowledgeBase.open(path) as base:
        base.add([f"Fact {i}." for i in range(10, 30)], random_keys(20, seed=1))
        base.remove([0, 5])
    shutil.rmtree(directory(path))
    shutil.move(tmp_path / "old", directory(path))
    store = sqlite3.connect(path)
    (key,) = store.execute("SELECT key FROM facts WHERE id = 7").fetchone()
    store.execute("UPDATE facts SET key = x'00' WHERE id = 7")
    store.commit()
    with KnowledgeBase.open(path) as base:
        base.search(random_keys(1))
        with pytest.raises(ValueError, match="the key of fact 7"):
            base.keys([7])
        store.execute("UPDATE facts SET key = ? WHERE id = 7", (key,))
        store.commit()
        assert_finds_what_is_there(base)
    store.close()
    assert not caplog.text


def test_an_index_of_keys_made_anew_since_is_not_used(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shutil.copytree(directory(path), tmp_path / "old")
    with KnowledgeBase.open(path) as base:
        base.replace_keys(random_keys(20, seed=3), "new weights")
        assert_finds_what_is_there(base)
    shutil.rmtree(directory(path))
    shutil.move(tmp_path / "old", directory(path))
    with KnowledgeBase.open(path) as base:
        assert_finds_what_is_there(base)
    assert "The index is rebuilt: it is of another store, or of other keys" in caplog.text


def test_an_index_of_a_store_that_was_put_back_is_not_used(path: Path, tmp_path: Path, caplog):
    shutil.copy(path, tmp_path / "backup")
    with KnowledgeBase.open(path) as base:
        base.add(["One."], random_keys(1, seed=4))
        assert_finds_what_is_there(base)
    shutil.copy(tmp_path / "backup", path)
    with KnowledgeBase.open(path) as base:
        assert base.add(["Another."], random_keys(1, seed=5)) == [20]
        assert_finds_what_is_there(base)
    assert "it is of another store, or of other keys" in caplog.text
    shutil.copy(tmp_path / "backup", path)
    with KnowledgeBase.open(path) as base:
        assert_finds_what_is_there(base)


def test_a_reader_uses_the_index_and_leaves_it(path: Path):
    before = {file: file.stat().st_mtime_ns for file in directory(path).rglob("*")}
    with KnowledgeBase.open(path) as base, KnowledgeBase.open(path, read_only=True) as reader:
        base.remove(3)
        assert_finds_what_is_there(reader)
        reader.close()
        assert before == {file: file.stat().st_mtime_ns for file in directory(path).rglob("*")}


def test_an_index_that_cannot_be_written_costs_nothing_else(path: Path, caplog: pytest.LogCaptureFixture):
    shutil.rmtree(directory(path))
    directory(path).write_text("in the way")
    with KnowledgeBase.open(path) as base:
        base.add(["More."], random_keys(1, seed=6))
        assert_finds_what_is_there(base)
    assert "The index was not saved, and will be rebuilt" in caplog.text
    with KnowledgeBase.open(path) as base:
        assert len(base) == 21


@pytest.mark.parametrize("where", ["memory", "file"])
def test_facts_are_found_within_their_time_only(where: str, tmp_path: Path):
    base = KnowledgeBase(DIM) if where == "memory" else KnowledgeBase.open(tmp_path / "facts.db", DIM)
    start = datetime.now(UTC)
    soon, past, far = start + timedelta(seconds=1.5), start - timedelta(days=1), start + timedelta(days=1)
    keys = torch.eye(DIM)[:6] + 0.1
    base.add(
        [
            {"statement": "always"},
            {"statement": "until soon", "valid_until": soon},
            {"statement": "from soon", "valid_from": soon.isoformat()},
            {"statement": "long ago", "valid_from": "2020-01-01", "valid_until": past},
            {"statement": "one day", "valid_from": far},
            {"statement": "around now", "valid_from": past, "valid_until": far},
        ],
        keys,
    )

    def found() -> set[str]:
        return {fact.statement for fact in base.lookup(torch.ones(1, DIM), 6).facts[0] if fact}

    early = found()
    assert datetime.now(UTC) < soon, "too slow for the test"
    assert early == {"always", "until soon", "around now"}
    assert len(base) == 6 and [fact.id for fact in base] == [0, 1, 2, 3, 4, 5]
    base.remove(0)
    time.sleep(max(0, (soon - datetime.now(UTC)).total_seconds()))
    assert found() == {"from soon", "around now"}
    assert base.lookup(keys[2:3]).facts[0][0].statement == "from soon"
    assert torch.equal(base.lookup(keys[2:3]).keys[0], keys[2:3])
    if where == "file":
        base.close()
        base = KnowledgeBase.open(tmp_path / "facts.db")
        assert found() == {"from soon", "around now"}
        base.close()


def test_a_fact_is_valid_from_its_first_moment_and_no_longer_at_its_last(path: Path, monkeypatch: pytest.MonkeyPatch):
    with KnowledgeBase.open(path) as base:
        base.add([{"statement": "x", "valid_from": "2100-01-01", "valid_until": "2100-01-02"}], random_keys(1) * 100)
        for moment, is_valid in (
            ("2099-12-31T23:59:59.999999", False),
            ("2100-01-01T00:00:00.000000", True),
            ("2100-01-01T23:59:59.999999", True),
            ("2100-01-02T00:00:00.000000", False),
            ("2100-01-01T12:00:00.000000", True),  # The clock is put back.
            ("2099-12-31T12:00:00.000000", False),
            ("2100-01-01T12:00:00.000000", True),
        ):
            monkeypatch.setattr(live_index.timestamps, "now", lambda moment=moment: f"{moment}+00:00")
            assert (base.search(random_keys(1))[0].item() == 20) is is_valid
