"""Search by codes: right after any adds and removals, and taken up, kept and put right by itself."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.search import code_index, code_rows, live_index
from recipe_hf.knowledge.search.code_index import CodeIndex
from recipe_hf.knowledge.search.key_index import KeyIndex

faiss = pytest.importorskip("faiss", reason="faiss is not installed: pip install 'recipe-hf[scale]'")

DIM, THRESHOLD = 32, 100


def random_keys(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def open_base(path: Path, **kwargs) -> KnowledgeBase:
    return KnowledgeBase.open(path / "facts.db", DIM, full_scan_threshold=THRESHOLD, **kwargs)


def codes_of(base: KnowledgeBase) -> bool:
    return isinstance(base._index._index, CodeIndex)


def assert_finds_what_is_there(base: KnowledgeBase, seed: int = 99, **kwargs) -> None:
    """Of queries near keys, as those that a fact should answer are."""
    ids = [fact.id for fact in base if fact.has(kwargs.get("where", {}))]
    keys = base.keys(ids)
    queries = keys[:: max(1, len(ids) // 20)] + random_keys(len(keys[:: max(1, len(ids) // 20)]), seed) / 3
    want = torch.tensor(ids)[(queries @ keys.T).topk(2).indices]
    found, scores = base.search(queries, 2, **kwargs)
    assert found[:, 0].tolist() == want[:, 0].tolist()
    torch.testing.assert_close(
        scores, (base.keys(found.flatten().tolist()).view(*found.shape, DIM) @ queries[..., None])[..., 0]
    )


@pytest.fixture(autouse=True)
def short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_rows, "_BY_SHORT_CODES", 60)


@pytest.mark.parametrize("dim", [3, 8, 30, 300])
def test_all_is_found_through_adds_and_removals(dim: int):
    rng, keys = np.random.default_rng(0), {}
    index = CodeIndex(dim, lambda ids: np.array([keys[i] for i in ids.tolist()], np.float32).reshape(-1, dim))
    next_id = 0
    for step in range(15):
        new = np.arange(next_id, next_id + int(rng.integers(1, 80)))
        next_id += len(new)
        keys |= {int(id): rng.standard_normal(dim).astype(np.float32) for id in new}
        index.build(new) if not step else index.add(new)
        gone = rng.choice(list(keys), len(keys) // 5, replace=False)
        index.remove(gone)
        for id in gone.tolist():
            del keys[id]
        assert index.ids.tolist() == list(keys) and len(index) == len(keys)
        assert index.holding(np.array([*list(keys)[:3], *gone[:3], 10**6])).tolist() == list(keys)[:3]
        exact = KeyIndex(dim)
        exact.add(list(keys), np.stack(list(keys.values())))
        queries = rng.standard_normal((5, dim)).astype(np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(code_rows, "_BY_SHORT_CODES", 1000)
            for among in (None, np.array(list(keys)[::3])):
                found, want = index.search(queries, 3, 2, among), exact.search(queries, 3, 1, among)
                assert found[0].tolist() == want[0].tolist()
                np.testing.assert_allclose(found[1], want[1], rtol=1e-5)
                assert np.array_equal(found[2], want[2])
    assert_codes_are_those_of_keys(index, np.array([keys.get(id, [0] * dim) for id in range(next_id)], np.float32))


def assert_codes_are_those_of_keys(index: CodeIndex, keys: np.ndarray) -> None:
    rows, pq = index._rows, index._rows.short_codes._shards[0].pq
    codes = np.stack([rows.short_codes.code(row) for row in range(len(rows))])
    assert np.array_equal(codes, pq.compute_codes(rows.projection.apply(keys[rows.ids])))


def test_thousands_of_rows_keep_their_codes_through_removals_and_additions():
    rng = np.random.default_rng(3)
    keys = rng.standard_normal((6000, 8)).astype(np.float32)
    index = CodeIndex(8, lambda ids: keys[ids])
    index.build(np.arange(5000))
    for _ in range(3):
        index.remove(rng.choice(index.ids, 1500, replace=False))
        index.add(np.setdiff1d(np.arange(6000), index.ids)[:1200])
        assert_codes_are_those_of_keys(index, keys)


def test_rounded_keys_that_look_alike_are_told_apart_by_the_keys_themselves():
    rng = np.random.default_rng(1)
    keys = (rng.standard_normal(DIM) + rng.standard_normal((2000, DIM)) / 2000).astype(np.float32)
    index = CodeIndex(DIM, lambda ids: keys[ids])
    index.build(np.arange(20))
    queries = rng.standard_normal((50, DIM)).astype(np.float32)
    assert index.search(queries, 1, 1)[0][:, 0].tolist() == (queries @ keys[:20].T).argmax(1).tolist()


def test_equal_keys_and_keys_of_zeros_are_found():
    keys = np.zeros((300, DIM), np.float32)
    index = CodeIndex(DIM, lambda ids: keys[ids])
    index.build(np.arange(300))
    assert index.search(np.ones((2, DIM), np.float32), 3, 2)[1].tolist() == [[0] * 3] * 2
    keys[200:] = 1
    index.build(np.arange(250))
    index.add(np.arange(250, 300))
    assert index.search(np.ones((1, DIM), np.float32), 20, 1)[0].tolist() == [list(range(200, 220))]


def test_among_thousands_of_rounded_keys_that_look_alike_all_are_compared(monkeypatch):
    monkeypatch.setattr(code_rows, "_BY_SHORT_CODES", 1000)
    rng = np.random.default_rng(1)
    keys = (rng.standard_normal(32) + rng.standard_normal((900, 32)) / 200).astype(np.float32)
    index = CodeIndex(32, lambda ids: keys[ids])
    index.build(np.arange(900))
    queries = rng.standard_normal((50, 32)).astype(np.float32)
    for among in (None, np.arange(900)):
        scores = index.search(queries, 1, 2, among)[1][:, 0]
        np.testing.assert_allclose(scores, (queries @ keys.T).max(1), atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_searches_too():
    keys = random_keys(500).numpy()
    index = CodeIndex(DIM, lambda ids: keys[ids])
    index.build(np.arange(500))
    want = index.search(keys[:5], 1, 2)[0][:, 0].tolist()
    child = os.fork()
    if not child:
        try:
            os._exit(0 if index.search(keys[:5], 1, 2)[0][:, 0].tolist() == want else 2)
        finally:
            os._exit(1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("it hangs")
    assert status == 0
    assert index.search(keys[:5], 1, 1)[0][:, 0].tolist() == want


def test_codes_are_taken_up_and_given_up_with_the_number_of_facts(tmp_path: Path):
    base = open_base(tmp_path)
    base.add([(f"Prompt {i}", "x") for i in range(THRESHOLD)], random_keys(THRESHOLD))
    assert_finds_what_is_there(base)
    assert not codes_of(base)
    base.add([(f"Prompt {i}", "y") for i in range(50, 250)], random_keys(200, seed=1))
    assert_finds_what_is_there(base)
    assert codes_of(base) and len(base) == 250
    base.add([(f"Prompt {i}", "z") for i in range(250, 1500)], random_keys(1250, seed=2))
    assert_finds_what_is_there(base)
    base.remove(base.search(random_keys(200, seed=3))[0].unique().tolist())
    assert_finds_what_is_there(base)
    base.remove([fact.id for fact in base][THRESHOLD // 2 :])
    assert_finds_what_is_there(base)
    assert not codes_of(base)
    base.clear()
    assert base.search(random_keys(1))[0].tolist() == [[-1]]
    base.close()


def test_one_fact_replaced_over_and_over_leaves_nothing_in_the_way(tmp_path: Path):
    with open_base(tmp_path) as base:
        base.add([(f"Prompt {i}", "x") for i in range(300)], random_keys(300))
        query = random_keys(1, seed=5)
        for step in range(150):
            (id,) = base.add([("Prompt 7", f"answer {step}")], query * (2 - step / 1000))
            assert base.search(query)[0].item() == id
        assert_finds_what_is_there(base)
        assert len(base._index._index) == 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with open_base(tmp_path) as base:
        base.add([{"statement": f"Fact {i}.", "metadata": {"third": i % 3}} for i in range(300)], random_keys(300))
        assert_finds_what_is_there(base)
    return tmp_path


def test_a_saved_index_is_used_and_caught_up(path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(CodeIndex, "build", lambda *_: pytest.fail("made anew"))
    with open_base(path) as base:
        assert_finds_what_is_there(base)
        before = {file.name: file.stat().st_mtime_ns for file in (path / "facts.db-index").rglob("*")}
    assert {file.name: file.stat().st_mtime_ns for file in (path / "facts.db-index").rglob("*")} == before
    with open_base(path) as base, open_base(path, read_only=True) as reader:
        base.add([f"Fact {i}." for i in range(250, 350)], random_keys(100, seed=1))
        base.remove([0, 5])
        for one in (base, reader):
            assert_finds_what_is_there(one)
            assert_finds_what_is_there(one, where={"third": 1})
            assert codes_of(one)
    with open_base(path) as base:
        assert_finds_what_is_there(base)
    assert not caplog.text


def test_an_index_that_nobody_closed_was_saved_on_the_way(path: Path, monkeypatch: pytest.MonkeyPatch):
    base = open_base(path)
    base.add([f"More {i}." for i in range(150)], random_keys(150, seed=1))
    assert_finds_what_is_there(base)
    base._store.close()
    monkeypatch.setattr(CodeIndex, "add", lambda _, ids: pytest.fail("caught up") if len(ids) else None)
    with open_base(path) as base:
        assert_finds_what_is_there(base)


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
@pytest.mark.parametrize("file", ["0.faiss", "keys.codes", "rows.safetensors", "manifest.json"])
def test_a_damaged_index_is_made_anew(path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture):
    (damaged,) = (path / "facts.db-index").rglob(file)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(content if damage == "altered" else content[:-7])
    with open_base(path) as base:
        assert_finds_what_is_there(base)
        assert codes_of(base)
    assert "The index is rebuilt" in caplog.text
    caplog.clear()
    with open_base(path) as base:
        assert_finds_what_is_there(base)
    assert not caplog.text


def test_namespaces_filters_and_times(path: Path):
    with open_base(path) as base:
        other = base.namespace("other")
        other.add([f"Other {i}." for i in range(200)], random_keys(200, seed=7))
        for one in (base, other):
            assert_finds_what_is_there(one)
        for third in range(3):
            assert_finds_what_is_there(base, where={"third": third})
        assert base.search(random_keys(1), where={"third": 3})[0].item() == -1
        key = random_keys(1, seed=8) * 3
        (past,) = base.add([{"statement": "Long ago.", "valid_until": "2020-01-01"}], key)
        assert base.search(key)[0].item() != past
        hits = base.lookup(key, 2, valid_only=False)
        assert hits.ids[0, 0] == past and torch.equal(hits.keys[0, 0], key[0])
        assert hits.ids[0, 1] == base.search(key)[0].item()


def test_keys_made_anew(path: Path):
    with open_base(path) as base:
        base.replace_keys(random_keys(300, seed=9), "new weights")
        assert_finds_what_is_there(base)
        assert codes_of(base)


def test_without_faiss_every_key_is_compared_and_a_warning_says_so(path: Path, monkeypatch, caplog):
    monkeypatch.setattr(live_index.code_index, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING), open_base(path) as base:
        for i in range(3):
            base.add([f"More {i}."], random_keys(1, seed=1000 + i))
            assert_finds_what_is_there(base)
        assert not codes_of(base)
    assert caplog.text.count("pip install 'recipe-hf[scale]'") == 1


def test_full_scan_threshold_is_checked(tmp_path: Path):
    for value in (0, -1, True, 2.5, "many"):
        with pytest.raises(ValueError, match="full_scan_threshold must be a positive integer, got"):
            KnowledgeBase(DIM, full_scan_threshold=value)
        with pytest.raises(ValueError, match="full_scan_threshold must be a positive integer, got"):
            KnowledgeBase.open(tmp_path / "facts.db", full_scan_threshold=value)


def test_both_libraries_are_needed(monkeypatch: pytest.MonkeyPatch):
    assert code_index.is_available()
    monkeypatch.setattr(code_index.importlib.util, "find_spec", lambda name: None if name == "numkong" else name)
    assert not code_index.is_available()
