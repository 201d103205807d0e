"""Damaged stores: a clear error, and what can be read of them."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.facts import PastFact
from recipe_hf.knowledge.sqlite.salvage import Salvage, salvage
from recipe_hf.knowledge.sqlite.write_ahead_log import has_lost_changes

DIM = 1024


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 facts in one namespace, 20 in another, some replaced and removed, with keys of 4 KB."""
    path = tmp_path_factory.mktemp("whole") / "facts.db"
    with KnowledgeBase.open(path, DIM) as base:
        keys = torch.randn(320, DIM, generator=torch.Generator().manual_seed(0))
        metadata = {"long": "x" * 9000}
        facts = [{"prompt": f"prompt {i}", "answer": f"Żółw {i}", "metadata": {"number": i}} for i in range(300)]
        facts[7]["metadata"] = metadata
        base.add(facts, keys[:300], encoder_fingerprint="weights")
        base.add([("prompt 3", "new"), ("prompt 4", "new")], keys[300:302])
        base.remove(range(100, 110))
        base.namespace("other").add([f"Other {i}." for i in range(20)], keys[300:])
    return path


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    shutil.copy(whole, tmp_path / "facts.db")
    return tmp_path / "facts.db"


def everything(path: Path) -> dict[tuple[str, int], tuple]:
    with KnowledgeBase.open(path) as base:
        found = {}
        for name in base.namespaces():
            space = base.namespace(name)
            contents = space.contents()
            keys = {fact.id: key for fact, key in zip(contents.facts, contents.keys, strict=True)} | contents.past_keys
            for fact in [*contents.facts, *contents.past]:
                found[name, fact.id] = fact, keys[fact.id].tolist() if fact.id in keys else None
        return found


def test_a_whole_store_is_saved_whole(whole: Path, tmp_path: Path):
    assert salvage(whole, tmp_path / "new.db") == Salvage(facts=310, past=12, lost=0, keys_lost=0)
    assert everything(tmp_path / "new.db") == everything(whole)
    with KnowledgeBase.open(tmp_path / "new.db") as base:
        assert base.encoder_fingerprint == "weights" and base.add(["a"], torch.ones(1, DIM)) == [302]


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_store_says_how_to_save_it(whole: Path, damaged: Path, tmp_path: Path, share: float):
    os.truncate(damaged, int(os.path.getsize(damaged) * share))
    with pytest.raises(ValueError, match=r"facts.db is damaged \(.*\): `recipe-hf salvage .*facts.db NEW` saves"):
        everything(damaged)
    saved, expected = salvage(damaged, tmp_path / "new.db"), everything(whole)
    found = everything(tmp_path / "new.db")
    assert saved.facts + saved.past == len(found)
    assert (saved.facts + saved.past + saved.lost if saved.lost is not None else 322) == 322
    assert len(found) >= (share - 0.03) * 300
    for place, (fact, key) in found.items():
        assert fact == expected[place][0] and key in (expected[place][1], [0.0] * DIM, None)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_are_noticed_and_the_rest_is_saved(whole: Path, damaged: Path, tmp_path: Path, seed: int):
    rng, altered, expected = random.Random(seed), bytearray(damaged.read_bytes()), everything(whole)
    for _ in range(20):
        altered[rng.randrange(4096, len(altered))] ^= 1 << rng.randrange(8)
    damaged.write_bytes(altered)
    with pytest.raises(ValueError, match="is damaged .*recipe-hf salvage"):
        assert everything(damaged) == expected, "a wrong fact was given out"
        raise ValueError("is damaged in what is not used: recipe-hf salvage")
    saved = salvage(damaged, tmp_path / "new.db")
    found = everything(tmp_path / "new.db")
    assert saved.facts + saved.past == len(found) >= 280
    for place, (fact, key) in found.items():
        assert fact == expected[place][0] and key in (expected[place][1], [0.0] * DIM, None)
    if saved.keys_lost:
        with KnowledgeBase.open(tmp_path / "new.db") as base:
            assert None in (base.encoder_fingerprint, base.namespace("other").encoder_fingerprint)


@pytest.mark.parametrize(
    ("change", "id"),
    [
        ("statement = 'prompt 9 Żółw 8'", 9),
        ("metadata = '{}'", 9),
        ("departure = 50, ended_at = '2020-01-01'", 9),
        ("departure = NULL", 100),
        ("ended_at = '2020-01-01'", 100),
        ("reason = 'replaced', replaced_by = 4", 100),
        ("departure = 'x'", 100),
    ],
)
def test_a_row_that_was_altered_is_never_given_out(damaged: Path, tmp_path: Path, change: str, id: int):
    with closing(sqlite3.connect(damaged)) as store, store:
        store.execute(f"UPDATE facts SET {change} WHERE namespace = '' AND id = {id}")
    with KnowledgeBase.open(damaged) as base:
        for use in (lambda: base.get(id), lambda: [*base, *base.history()], lambda: base.restore(id)):
            with pytest.raises(ValueError, match=rf"is damaged \(fact {id} is not as it was written\)"):
                use()
    saved = salvage(damaged, tmp_path / "new.db")
    assert saved.facts + saved.past == 321 and saved.lost == 1
    assert ("", id) not in everything(tmp_path / "new.db")


def test_what_only_the_log_holds_is_saved(damaged: Path, tmp_path: Path):
    with KnowledgeBase.open(damaged) as base:
        base.add(["Only in the log."], torch.ones(1, DIM))
        shutil.copy(damaged, tmp_path / "copy.db")
        shutil.copy(f"{damaged}-wal", tmp_path / "copy.db-wal")
    assert salvage(tmp_path / "copy.db", tmp_path / "new.db").facts == 311


FRAME = 24 + 4096


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A store whose writer was killed after 40 changes, a fact each, which only the log holds."""
    with KnowledgeBase.open(tmp_path / "writing.db", DIM) as base:
        for number in range(40):
            base.add([f"Fact {number}."], torch.full((1, DIM), float(number)))
        for suffix in ("", "-wal"):
            shutil.copy(f"{tmp_path / 'writing.db'}{suffix}", f"{tmp_path / 'killed.db'}{suffix}")
    return tmp_path / "killed.db"


def test_an_altered_log_is_noticed_and_what_follows_is_saved(killed: Path, tmp_path: Path):
    log = Path(f"{killed}-wal")
    content = bytearray(log.read_bytes())
    for place in (32 + 60 * FRAME + 3000, 32 + 60 * FRAME + 9, 3, 20):  # A page, a frame's header, that of the log.
        altered = content.copy()
        altered[place] ^= 4
        log.write_bytes(altered)
        for read_only in (False, True):
            with pytest.raises(ValueError, match="its log is malformed.*recipe-hf salvage"):
                KnowledgeBase.open(killed, read_only=read_only)
        assert log.read_bytes() == altered
        new = tmp_path / f"new-{place}.db"
        found = salvage(killed, new)
        assert found.facts >= 38 and found.lost is None
        with KnowledgeBase.open(new) as base:
            assert {"Fact 0.", "Fact 39."} <= {fact.statement for fact in base}


def test_a_log_that_ends_amid_a_change_is_what_a_crash_leaves(killed: Path):
    log = Path(f"{killed}-wal")
    content = log.read_bytes()
    log.write_bytes(content[: -FRAME // 2])
    assert len(KnowledgeBase.open(killed)) == 39
    log.write_bytes(content[:-FRAME] + bytes(FRAME))
    assert len(KnowledgeBase.open(killed)) == 39


def test_a_frame_that_was_read_half_written_is_no_damage(killed: Path, monkeypatch: pytest.MonkeyPatch):
    log = Path(f"{killed}-wal")
    content = log.read_bytes()
    half = content[: 32 + 60 * FRAME + 2000] + bytes(FRAME - 2000) + content[32 + 61 * FRAME :]
    log.write_bytes(half)
    assert has_lost_changes(log)
    readings = iter([half, content])
    monkeypatch.setattr(Path, "read_bytes", lambda _: next(readings))
    assert not has_lost_changes(log)


@pytest.fixture
def rekeyed(tmp_path: Path) -> Path:
    """A store whose writer was killed after all keys were made anew, which only the log holds."""
    with KnowledgeBase.open(tmp_path / "writing.db", DIM) as base:
        base.add([f"Fact {number}." for number in range(8)], torch.ones(8, DIM), encoder_fingerprint="old")
    with KnowledgeBase.open(tmp_path / "writing.db") as base:
        base.remove(7)
        base.replace_keys(torch.full((7, DIM), 2.0), "new")
        base.add(["Later."], torch.full((1, DIM), 2.0), encoder_fingerprint="new")
        for suffix in ("", "-wal"):
            shutil.copy(f"{tmp_path / 'writing.db'}{suffix}", f"{tmp_path / 'rekeyed.db'}{suffix}")
    return tmp_path / "rekeyed.db"


def test_keys_are_never_said_to_be_of_weights_that_did_not_make_them(rekeyed: Path, tmp_path: Path):
    assert salvage(rekeyed, tmp_path / "whole.db") == Salvage(facts=8, past=1, lost=0, keys_lost=0)
    with KnowledgeBase.open(tmp_path / "whole.db") as base:
        assert base.encoder_fingerprint == "new" and base.keys(range(7)).unique().tolist() == [2.0]
        assert not base.contents().past_keys
    log = Path(f"{rekeyed}-wal")
    content = log.read_bytes()
    for frame in range((len(content) - 32) // FRAME - 2):
        altered = bytearray(content)
        altered[32 + frame * FRAME + 3000] ^= 4
        log.write_bytes(altered)
        salvage(rekeyed, tmp_path / f"{frame}.db")
        with KnowledgeBase.open(tmp_path / f"{frame}.db") as base:
            keys = base.keys([fact.id for fact in base])
            assert base.encoder_fingerprint is None and len(base) >= 7 and not base.contents().past_keys
            assert frame or keys.unique().tolist() == [2.0]  # The first frame is from before that.


def test_pages_no_longer_used_give_no_keys_of_earlier_weights(tmp_path: Path):
    path = tmp_path / "facts.db"
    with KnowledgeBase.open(path, 64) as base:
        base.add([f"Fact {number}." for number in range(20)], torch.ones(20, 64), encoder_fingerprint="old")
        base.remove(range(5))
    before = path.read_bytes()
    with KnowledgeBase.open(path) as base:
        base.replace_keys(torch.full((15, 64), 2.0), "new")
    expected = everything(path)
    path.write_bytes(path.read_bytes() + before)
    assert salvage(path, tmp_path / "new.db") == Salvage(facts=15, past=5, lost=0, keys_lost=0)
    assert everything(tmp_path / "new.db") == expected
    with KnowledgeBase.open(tmp_path / "new.db") as base:
        assert base.encoder_fingerprint == "new"


def test_the_log_of_an_emptied_file_is_kept(killed: Path, tmp_path: Path):
    os.truncate(killed, 0)
    log = Path(f"{killed}-wal").read_bytes()
    for read_only in (False, True):
        with pytest.raises(ValueError, match="the file is empty.*recipe-hf salvage"):
            KnowledgeBase.open(killed, read_only=read_only)
    assert Path(f"{killed}-wal").read_bytes() == log
    found = salvage(killed, tmp_path / "new.db")
    assert (found.facts, found.keys_lost) == (40, 0)


def test_a_lost_replacement_note_leaves_one_fact_to_a_prompt(damaged: Path, tmp_path: Path):
    """As if the page had survived only as it was before fact 3 was replaced by fact 300."""
    with KnowledgeBase.open(damaged) as base, base._store.change():
        columns = ("departure", "ended_at", "reason", "replaced_by", "ending_sum")
        forgotten = ", ".join(f"{column} = NULL" for column in columns)
        base._store.execute(f"UPDATE facts SET {forgotten} WHERE namespace = '' AND id = 3")
    salvage(damaged, tmp_path / "new.db")
    with KnowledgeBase.open(tmp_path / "new.db") as base:
        (past,) = base.history("prompt 3")
        assert isinstance(past, PastFact) and (past.id, past.replaced_by) == (3, 300)
        base.save(tmp_path / "saved")
    assert len(KnowledgeBase.load(tmp_path / "saved")) == 290


def test_bad_arguments(damaged: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="DAMAGED must be the file of a knowledge base, got .*nothing"):
        salvage(tmp_path / "nothing", tmp_path / "new.db")
    with KnowledgeBase.open(damaged), pytest.raises(BlockingIOError, match="It is being written by process"):
        salvage(damaged, tmp_path / "new.db")
    with pytest.raises(ValueError, match="NEW must be a file that is not there yet, got .*facts.db"):
        salvage(damaged, damaged)
