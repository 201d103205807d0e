from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat

import pytest
import torch
from safetensors.torch import load_file, save

from recipe_hf.knowledge import FACTS_FILE, KEYS_FILE, KnowledgeBase
from recipe_hf.knowledge import files as knowledge_files
from recipe_hf.knowledge.files import MANIFEST, read_manifest, write_files
from tests.engines import content

FILES = [FACTS_FILE, KEYS_FILE, MANIFEST]


def make(answers: list[str]) -> KnowledgeBase:
    base = KnowledgeBase(4)
    base.add([(f"prompt {i}", answer) for i, answer in enumerate(answers)], torch.randn(len(answers), 4))
    return base


@pytest.fixture
def saved(tmp_path):
    base = make(["a", "b", "c"])
    base.remove(1)
    base.save(tmp_path / "knowledge")
    return tmp_path / "knowledge"


def forge(directory, change) -> None:
    """Saves again with right sums after `change(files, manifest)`."""
    manifest = read_manifest(directory)
    files = {name: (directory / name).read_bytes() for name in (FACTS_FILE, KEYS_FILE)}
    change(files, manifest)
    del manifest["files"], manifest["format_version"]
    write_files(directory, files, manifest)


def test_the_files_and_that_they_are_readable(saved):
    assert sorted(os.listdir(saved)) == sorted(FILES)
    records = [json.loads(line) for line in (saved / FACTS_FILE).read_text().splitlines()]
    assert [(record["id"], record["statement"]) for record in records] == [
        (0, "prompt 0 a"),
        (2, "prompt 2 c"),
        (1, "prompt 1 b"),
    ]
    assert records[2]["reason"] == "removed"
    assert load_file(saved / KEYS_FILE)["keys"].shape == (2, 4)
    manifest = json.loads((saved / MANIFEST).read_text())
    for name in (FACTS_FILE, KEYS_FILE):
        assert manifest["files"][name] == hashlib.sha256((saved / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(saved, name):
    os.remove(saved / name)
    with pytest.raises(FileNotFoundError, match=name):
        KnowledgeBase.load(saved)


def test_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold a saved knowledge base"):
        KnowledgeBase.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_lengthened_file(saved, name):
    whole = (saved / name).read_bytes()
    for altered in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"0"):
        (saved / name).write_bytes(altered)
        with pytest.raises(ValueError, match=name):
            KnowledgeBase.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_refused_or_means_nothing(saved, name):
    whole = (saved / name).read_bytes()
    expected = content(KnowledgeBase.load(saved))
    refused = 0
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 1 << position % 8
        (saved / name).write_bytes(altered)
        try:
            loaded = KnowledgeBase.load(saved)
        except ValueError as error:
            assert name in str(error)
            refused += 1
        else:
            assert name == MANIFEST, "data files are refused whatever bit was flipped"
            assert content(loaded) == expected
    assert refused > len(whole) * 0.8


def test_files_of_two_saves_are_not_mixed(saved, tmp_path):
    make(["x", "y"]).save(tmp_path / "other")
    for name in (FACTS_FILE, KEYS_FILE):
        kept = (saved / name).read_bytes()
        shutil.copy(tmp_path / "other" / name, saved / name)
        with pytest.raises(ValueError, match=name):
            KnowledgeBase.load(saved)
        (saved / name).write_bytes(kept)


def test_a_manifest_of_another_version(saved, monkeypatch):
    monkeypatch.setattr(knowledge_files, "FORMAT_VERSION", 2)
    make(["a"]).save(saved)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="must have format_version 1, got 2"):
        KnowledgeBase.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.ones(3, 4), "ids": torch.tensor([0, 1, 2])}, "2 facts and the 3 keys do not belong together"),
        ({"keys": torch.ones(3, 4)}, r"keys must have the shape \[2, 4\], got \[3, 4\]"),
        ({"keys": torch.ones(2, 5)}, r"keys must have the shape \[2, 4\], got \[2, 5\]"),
        ({"keys": torch.full((2, 4), float("nan"))}, "keys must be finite"),
        ({"ids": torch.tensor([0, 1])}, "do not belong together"),
        ({"keys": torch.ones(2, 4, dtype=torch.int32)}, "keys must be a floating point tensor"),
    ],
)
def test_keys_that_do_not_fit_their_facts(saved, change, message):
    def forge_keys(files, manifest):
        files[KEYS_FILE] = save({"ids": torch.tensor([0, 2]), "keys": torch.ones(2, 4), **change})

    forge(saved, forge_keys)
    with pytest.raises(ValueError, match=message):
        KnowledgeBase.load(saved)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"id": 2', b'"id": 0', "a fact is there twice"),
        (b'"id": 2', b'"id": 7', "ids must be from 0 to below 3, got 0 to 7"),
        (b'"prompt": "prompt 2"', b'"prompt": "prompt 0"', "a fact is there twice"),
        (b'"prompt": "prompt 2"', b'"colour": "blue"', "unexpected keyword argument 'colour'"),
        (b'"statement": "prompt 2 c", ', b"", "statement"),
        (b"{", b"[", "Expecting"),
    ],
)
def test_facts_that_make_no_sense(saved, old, new, message):
    def forge_facts(files, manifest):
        assert old in files[FACTS_FILE]
        files[FACTS_FILE] = files[FACTS_FILE].replace(old, new)

    forge(saved, forge_facts)
    with pytest.raises(ValueError, match=message):
        KnowledgeBase.load(saved)


class Crash(BaseException):
    pass


class CrashingSystem:
    """Lets the first `steps` file operations through, cuts the file then being written in half, and stops."""

    def __init__(self, monkeypatch, steps: int) -> None:
        self.left = steps
        for name in ("fsync", "replace"):
            monkeypatch.setattr(knowledge_files.os, name, self.wrap(getattr(os, name), cut=name == "fsync"))

    def wrap(self, operation, cut: bool):
        def call(*args):
            if self.left == 0:
                if cut and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                raise Crash
            self.left -= 1
            return operation(*args)

        return call


def save_crashing(base: KnowledgeBase, directory, steps: int) -> bool:
    """Whether the save stopped half-way."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        CrashingSystem(monkeypatch, steps)
        try:
            base.save(directory)
        except Crash:
            return True
    return False


def test_a_crash_at_any_moment_leaves_old_or_new_and_the_next_save_works(tmp_path):
    old, new, newer, last = make(["a"]), make(["b", "c"]), make(["d", "e", "f"]), make(["g"])
    seen, first = set(), 0
    while True:
        second = 0
        while True:
            directory = tmp_path / f"{first}-{second}"
            old.save(directory)
            crashed = save_crashing(new, directory, first)
            found = content(KnowledgeBase.load(directory))
            assert found in (content(old), content(new))
            seen.add((crashed, found == content(new)))
            crashed_again = save_crashing(newer, directory, second)
            assert content(KnowledgeBase.load(directory)) in (found, content(newer))
            last.save(directory)
            assert content(KnowledgeBase.load(directory)) == content(last)
            assert sorted(os.listdir(directory)) == sorted(FILES)
            if not crashed_again:
                break
            second += 1
        if not crashed:
            break
        first += 1
    assert first >= 8
    assert seen == {(True, False), (True, True), (False, True)}


def test_a_crash_of_the_first_save_leaves_no_half_base(tmp_path):
    steps = 0
    while save_crashing(make(["a"]), tmp_path / str(steps), steps):
        try:
            assert len(KnowledgeBase.load(tmp_path / str(steps))) == 1
        except FileNotFoundError as error:
            assert MANIFEST in str(error)
        steps += 1


def test_a_full_disk_leaves_what_was_saved(saved, monkeypatch):
    before = content(KnowledgeBase.load(saved))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(knowledge_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(["x"]).save(saved)
    monkeypatch.undo()
    assert content(KnowledgeBase.load(saved)) == before
