"""Undo, and things as they were."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase, timestamps
from recipe_hf.knowledge.facts import Fact, parse_facts
from tests.engines import ENGINES, content, open_base, random_keys

DIM = 8


def encode(statements: list[str]) -> torch.Tensor:
    return torch.stack([random_keys(1, seed=len(statement))[0] for statement in statements])


@pytest.fixture(params=ENGINES)
def base(request: pytest.FixtureRequest, tmp_path: Path):
    base = open_base(request.param, tmp_path, DIM)
    base.add([("a", "1"), ("b", "1"), ("c", "1")], random_keys(3), encoder_fingerprint="weights")
    with base:
        yield base


def test_restoring_takes_back_a_replacement(base: KnowledgeBase):
    base.add([{"prompt": "a", "answer": "2", "metadata": {"source": "x"}}], random_keys(1, seed=1))
    assert base.restore(0) == 4
    assert (base[4].prompt, base[4].answer, base[4].metadata) == ("a", "1", {}) and type(base[4]) is Fact
    assert torch.equal(base.keys([4]), random_keys(3)[:1])
    assert base.search(random_keys(3)[:1] * 9)[0].item() == 4
    assert [(past.id, past.reason, past.replaced_by) for past in base.history("a")] == [
        (0, "replaced", 3),
        (3, "replaced", 4),
    ]
    assert base.restore(3) == 5 and base[5].metadata == {"source": "x"} and len(base) == 3
    assert base.search(random_keys(3)[:1], where={"source": "x"})[0].item() == 5


def test_what_new_facts_supersede_is_in_the_history(base: KnowledgeBase):
    first, second = parse_facts([("d", "1"), ("e", "1")])
    superseded = [[base[0], base[2]], [first, base[0]]]  # The first of these leaves with "d" already.
    assert base.add([first, second], random_keys(2, seed=1), supersedes=superseded) == [3, 4]
    assert [fact.id for fact in base] == [1, 4]
    assert {past.id: past.replaced_by for past in base.history()} == {0: 3, 2: 3, 3: 4}


def test_restoring_takes_back_a_removal(base: KnowledgeBase):
    base.remove([0, 1])
    assert base.restore(1) == 3 and [fact.prompt for fact in base] == ["c", "b"]
    assert [past.id for past in base.history()] == [0, 1] and base[3].created_at >= base.history()[0].ended_at


@pytest.mark.parametrize("id", [1, 9, -1, "0", None, True, 10**30])
def test_only_a_past_fact_can_be_restored(base: KnowledgeBase, id: object):
    base.remove(0)
    before = content(base)
    with pytest.raises(KeyError, match="id must be that of a past fact of the knowledge base, got"):
        base.restore(id)
    assert content(base) == before


def test_a_key_of_other_weights_is_made_anew(base: KnowledgeBase):
    base.remove(0)
    base.replace_keys(random_keys(2, seed=5), "new weights")
    before = content(base)
    with pytest.raises(ValueError, match=r"encode must be given \(model.encode_statements\): the key of fact 0 was"):
        base.restore(0)
    with pytest.raises(ValueError, match=r"encode\(...\) must have the shape \[1, 8\], got \[1, 3\]"):
        base.restore(0, encode=lambda statements: torch.ones(1, 3))
    assert content(base) == before
    assert torch.equal(base.keys([base.restore(0, encode)]), encode(["a 1"]))
    base.clear()
    base.add(["x"], random_keys(1), encoder_fingerprint="newest weights")
    with pytest.raises(ValueError, match="the key of fact 1 was made by other weights"):
        base.restore(1)


def test_a_snapshot_is_a_copy_apart(base: KnowledgeBase):
    base.add([("a", "2")], random_keys(1, seed=1))
    copy = base.snapshot()
    before = content(copy)
    assert before == content(base)
    base.remove(1)
    copy.add([("d", "1")], random_keys(1))
    assert [fact.prompt for fact in base] == ["c", "a"] and [fact.prompt for fact in copy] == ["b", "c", "a", "d"]


def test_snapshots_of_every_moment(base: KnowledgeBase):
    moments = [(timestamps.now(), content(base))]

    def then() -> None:
        moments.append((timestamps.now(), content(base)))

    base.add([("a", "2"), ("d", "1"), ("d", "2")], random_keys(3, seed=1))
    then()
    base.remove([1, 5])
    then()
    base.restore(0)
    then()
    base.clear()
    then()
    base.add([("a", "3")], random_keys(1, seed=2))
    then()
    for time, expected in moments:
        for at in (time, datetime.fromisoformat(time)):
            assert content(base.snapshot(at=at)) == expected
    assert len(base.snapshot(at="2020-01-01")) == 0 and base.snapshot(at="2020-01-01").contents().next_id == 0
    assert content(base.snapshot(at=datetime(2200, 1, 1, tzinfo=UTC))) == moments[-1][1]


def test_a_snapshot_with_keys_of_other_weights(base: KnowledgeBase):
    time = timestamps.now()
    base.remove(0)
    base.replace_keys(random_keys(2, seed=5), "new weights")
    with pytest.raises(ValueError, match="encode must be given .*: the key of fact 0"):
        base.snapshot(at=time)
    copy = base.snapshot(at=time, encode=encode)
    assert [fact.id for fact in copy] == [0, 1, 2] and copy.encoder_fingerprint == "new weights"
    assert torch.equal(copy.keys([0, 1, 2]), torch.cat([encode(["a 1"]), random_keys(2, seed=5)]))


@pytest.mark.parametrize("at", ["yesterday", "", 5, b"2020-01-01", []])
def test_bad_times(base: KnowledgeBase, at: object):
    with pytest.raises(ValueError, match="at must be a datetime or a string such as '2026-05-01'"):
        base.snapshot(at=at)


def test_times_never_go_back(base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch):
    early = timestamps.datetime
    base.remove(0)
    left = base.history()[0].ended_at

    class SetBack(early):
        @classmethod
        def now(cls, tz=None):
            return early(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(timestamps, "datetime", SetBack)
    base.add([("a", "2")], random_keys(1))
    base.add(["x"], random_keys(1))
    assert left < base[3].created_at < base[4].created_at
    for seed in (7, 8):  # Keys made anew are noticed though no clock tells them apart.
        base.replace_keys(random_keys(4, seed), "new weights")
        found = base.lookup(random_keys(1), 4)
        assert torch.equal(found.keys[0], base.keys(found.ids[0].tolist()))


def test_keys_of_past_facts_are_saved(base: KnowledgeBase, tmp_path: Path):
    base.remove(0)
    base.save(tmp_path / "saved")
    loaded = KnowledgeBase.load(tmp_path / "saved")
    assert content(loaded) == content(base)
    assert torch.equal(loaded.keys([loaded.restore(0)]), random_keys(3)[:1])
