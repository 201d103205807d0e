"""Knowledge bases in files: opening, closing, and who may write."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from tests.engines import content, random_keys

DIM = 8


def fill(base: KnowledgeBase) -> KnowledgeBase:
    base.add([(f"prompt {i}", f"answer {i}") for i in range(6)], random_keys(6), encoder_fingerprint="weights")
    base.add([{"statement": "Żółw \u2028 \0 \x85", "metadata": {"b": 1, "a": [1.5, None]}}], random_keys(1, seed=1))
    base.add([("prompt 2", "new")], random_keys(1, seed=2))
    base.remove([0, 7])
    return base


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with KnowledgeBase.open(tmp_path / "new" / "facts.db", DIM) as base:
        fill(base)
    return tmp_path / "new" / "facts.db"


def test_what_was_done_is_there_after_opening_again(path: Path):
    with KnowledgeBase.open(path) as base:
        assert len(base) == 5 and [past.id for past in base.history()] == [2, 0, 7]
        before = content(base)
        assert base.add([("prompt 3", "new")], random_keys(1)) == [8]
        assert base.search(random_keys(1))[0].tolist() == [[8]]
        assert repr(base) == f"KnowledgeBase(5 facts, dim=8, {str(path)!r})"
    with KnowledgeBase.open(path) as base:
        assert content(base) != before and base.history("prompt 3")[0].replaced_by == 8
        base.clear()
    with KnowledgeBase.open(path) as base:
        assert len(base) == 0 and base.add(["a"], random_keys(1)) == [9]


def test_a_base_in_a_file_does_as_one_in_memory(tmp_path: Path):
    memory, file = fill(KnowledgeBase(DIM)), fill(KnowledgeBase.open(tmp_path / "facts.db"))
    untimed = [
        [{**fact.to_dict(), "created_at": "", "ended_at": ""} for fact in [*base, *base.history()]]
        for base in (memory, file)
    ]
    assert untimed[0] == untimed[1] and content(memory)[3:] == content(file)[3:]
    queries = random_keys(20, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(memory.search(queries, 3), file.search(queries, 3), strict=True))


def test_copies_between_memory_directory_and_file_are_exact(path: Path, tmp_path: Path):
    with KnowledgeBase.open(path) as base:
        expected = content(base)
        base.save(tmp_path / "saved")
    loaded = KnowledgeBase.load(tmp_path / "saved")
    assert content(loaded) == expected
    with loaded.copy_to(tmp_path / "copy.db") as base:
        assert content(base) == expected and base.add(["a"], random_keys(1)) == [8]
    with KnowledgeBase.open(tmp_path / "copy.db") as base:
        assert base[8].statement == "a"
        with pytest.raises(BlockingIOError):
            loaded.copy_to(tmp_path / "copy.db")
    with pytest.raises(
        ValueError, match="path must be that of an empty knowledge base, got .*copy.db, which has facts"
    ):
        loaded.copy_to(tmp_path / "copy.db")


def test_a_closed_base_says_so(path: Path):
    base = KnowledgeBase.open(path)
    other = base.namespace("other")
    base.close()
    base.close()
    for use in (lambda: len(base), lambda: base.add(["a"], random_keys(1)), lambda: base.search(random_keys(1))):
        with pytest.raises(ValueError, match="facts.db is closed: open it again"):
            use()
    with pytest.raises(ValueError, match="is closed"):
        len(other)
    assert repr(base) == f"KnowledgeBase(closed, {str(path)!r})"


def test_a_base_that_is_let_go_can_be_opened_again(path: Path):
    base = KnowledgeBase.open(path)
    base.add(["a"], random_keys(1))
    del base
    with KnowledgeBase.open(path) as base:
        assert len(base) == 6


def test_the_width_is_that_of_the_first_keys(tmp_path: Path):
    with KnowledgeBase.open(tmp_path / "facts.db") as base:
        assert base.dim is None and base.search(torch.ones(2, 3))[0].tolist() == [[-1], [-1]]
        with pytest.raises(ValueError, match=r"keys must have the shape \[1, dim\], got \[3\]"):
            base.add(["a"], torch.ones(3))
        with pytest.raises(ValueError, match=r"facts\[1\] must have a new prompt"):
            base.add(["a", "a"], torch.ones(2, 5), on_conflict="error")
        assert base.dim is None
        base.add(["a"], torch.ones(1, DIM))
        assert base.dim == DIM
        with pytest.raises(ValueError, match=r"keys must have the shape \[1, 8\], got \[1, 5\]"):
            base.add(["b"], torch.ones(1, 5))


def test_a_new_store_leaves_other_files_alone(tmp_path: Path):
    with KnowledgeBase.open(tmp_path / "facts.db.new", DIM) as base:
        before = content(fill(base))
    KnowledgeBase.open(tmp_path / "facts.db", DIM).close()
    with KnowledgeBase.open(tmp_path / "facts.db.new") as base:
        assert content(base) == before
    names = {"facts.db", "facts.db-writer", "facts.db.new", "facts.db.new-writer"}
    assert {file.name for file in tmp_path.iterdir()} - {"facts.db-index", "facts.db.new-index"} == names


# ---------------------------------------------------------------------- interruptions


class Interrupted:
    """A connection, with Ctrl-C pressed while it first runs a statement: Python says so once that is done."""

    def __init__(self, connection: sqlite3.Connection, statement: str) -> None:
        self._connection = connection
        self._statement: str | None = statement

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def execute(self, sql: str, *parameters: tuple) -> sqlite3.Cursor:
        cursor = self._connection.execute(sql, *parameters)
        if sql == self._statement:
            self._statement = None
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "COMMIT"])
def test_what_follows_an_interrupted_change_is_kept(path: Path, statement: str):
    with KnowledgeBase.open(path) as base, KnowledgeBase.open(path, read_only=True) as reader:
        base._store._connection = Interrupted(base._store._connection, statement)
        with pytest.raises(KeyboardInterrupt):
            base.add(["interrupted"], random_keys(1))
        assert len(base) == len(reader) == (5 if statement == "BEGIN IMMEDIATE" else 6)
        (id,) = base.add(["kept"], random_keys(1))
        with pytest.raises(ValueError, match=r"facts\[1\] must have a new prompt"):
            base.add(["half", "half"], random_keys(2), on_conflict="error")
        assert reader[id].statement == "kept"
        before = content(base)
    with KnowledgeBase.open(path) as base:
        assert content(base) == before


def test_a_change_whose_end_is_interrupted_twice_is_undone(path: Path):
    with KnowledgeBase.open(path) as base:
        before = content(base)
        connection = base._store._connection
        connection.execute("BEGIN IMMEDIATE")  # As if Ctrl-C came again before it was undone.
        connection.execute("DELETE FROM facts")
        assert content(base) == before
        (id,) = base.add(["kept"], random_keys(1))
    with KnowledgeBase.open(path) as base:
        assert base[id].statement == "kept" and len(base) == 6


@pytest.mark.parametrize("statement", ["BEGIN", "ROLLBACK"])
def test_an_interrupted_reader_still_sees_what_the_writer_does(path: Path, statement: str):
    with KnowledgeBase.open(path) as base, KnowledgeBase.open(path, read_only=True) as reader:
        reader._store._connection = Interrupted(reader._store._connection, statement)
        with pytest.raises(KeyboardInterrupt):
            len(reader)
        assert len(reader) == 5
        base.add(["new"], random_keys(1))
        assert len(reader) == 6


# ---------------------------------------------------------------------- what cannot be opened


def test_bad_arguments(path: Path, tmp_path: Path):
    for dim in (0, -8, 8.0, True, "8"):
        with pytest.raises(ValueError, match="dim must be a positive integer, got"):
            KnowledgeBase.open(tmp_path / "other.db", dim)
    assert not (tmp_path / "other.db").exists()
    with pytest.raises(ValueError, match="dim must be 8, the width of the keys in .*facts.db, got 16"):
        KnowledgeBase.open(path, 16)
    with pytest.raises(ValueError, match="path must be the file of a knowledge base, got the directory"):
        KnowledgeBase.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="path must be a file that exists, .* got .*nothing.db"):
        KnowledgeBase.open(tmp_path / "nothing.db", read_only=True)
    with pytest.raises(ValueError, match="namespace must be a string, got 3"):
        KnowledgeBase.open(path, namespace=3)
    with KnowledgeBase.open(path, DIM):
        pass


def test_a_file_of_something_else(tmp_path: Path):
    (tmp_path / "text").write_text("This is no database at all. " * 100)
    with pytest.raises(ValueError, match="text is damaged .*not a database.*`recipe-hf salvage"):
        KnowledgeBase.open(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE facts (id)")
    other.close()
    before = (tmp_path / "other").read_bytes()
    with pytest.raises(ValueError, match="path must be the file of a knowledge base, got another SQLite database"):
        KnowledgeBase.open(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == before


def test_a_store_of_a_newer_version(path: Path):
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 2")
    newer.close()
    with pytest.raises(ValueError, match="schema version 2, and this recipe-hf reads up to 1: .* upgrade recipe-hf"):
        KnowledgeBase.open(path)


def test_a_log_without_its_store_is_not_taken_for_a_new_one(path: Path):
    path.with_name("facts.db-wal").write_bytes(b"x" * 5000)
    path.unlink()
    with pytest.raises(ValueError, match="facts.db is missing beside .*facts.db-wal, which holds facts"):
        KnowledgeBase.open(path)


# ---------------------------------------------------------------------- who writes, who reads


def test_the_second_to_open_is_told_who_writes_or_reads(path: Path):
    with KnowledgeBase.open(path) as base:
        with pytest.raises(BlockingIOError, match=rf"written by process {os.getpid()} on .*read_only=True.*facts.db"):
            KnowledgeBase.open(path)
        with KnowledgeBase.open(path, read_only=True) as reader:
            assert content(reader) == content(base)
            for change in (
                lambda: reader.add(["a"], random_keys(1)),
                lambda: reader.remove(1),
                reader.clear,
                lambda: reader.restore(0),
                lambda: reader.replace_keys(random_keys(5), "other"),
            ):
                with pytest.raises(PermissionError, match="facts.db was opened to be read only"):
                    change()
            assert content(reader) == content(base)
    with KnowledgeBase.open(path) as base:
        assert len(base) == 5


def test_a_link_is_the_file_it_leads_to(path: Path, tmp_path: Path):
    (tmp_path / "link.db").symlink_to(path)
    with KnowledgeBase.open(tmp_path / "link.db") as base:
        assert len(base) == 5
        with pytest.raises(BlockingIOError):
            KnowledgeBase.open(path)


def test_a_reader_sees_what_the_writer_does(path: Path):
    with KnowledgeBase.open(path) as base, KnowledgeBase.open(path, read_only=True) as reader:
        query = random_keys(1, seed=7)
        reader.search(query)
        (id,) = base.add([("prompt 4", "new")], query)
        assert reader.search(query)[0].item() == id and reader.history("prompt 4")[0].replaced_by == id
        base.remove(id)
        assert reader.search(query, 9)[0].tolist() == base.search(query, 9)[0].tolist() and id not in reader
        keys = random_keys(len(base), seed=8)
        base.replace_keys(keys, "other")
        assert reader.lookup(keys[2:3]).facts == base.lookup(keys[2:3]).facts
        assert reader.encoder_fingerprint == "other"


_WRITER = """
import sys, torch
from recipe_hf.knowledge import KnowledgeBase
with KnowledgeBase.open(sys.argv[1]) as base:
    print("open", flush=True)
    for line in sys.stdin:
        print(base.add([line.strip()], torch.full((1, 8), 9.0)), flush=True)
"""


def test_two_processes(path: Path):
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(BlockingIOError, match=f"It is being written by process {writer.pid} on "):
            KnowledgeBase.open(path)
        # The lock is on the first byte, which on Windows only its holder can read.
        assert path.with_name("facts.db-writer").read_bytes()[1:].startswith(f"process {writer.pid} on ".encode())
        with KnowledgeBase.open(path, read_only=True) as reader:
            assert len(reader) == 5
            writer.stdin.write("Said elsewhere.\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "[8]\n"
            assert reader.lookup(torch.ones(1, DIM)).facts[0][0].statement == "Said elsewhere."
        writer.kill()
        writer.wait()
    with KnowledgeBase.open(path) as base:
        assert base[8].statement == "Said elsewhere."


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_must_open_it_again(path: Path):
    with KnowledgeBase.open(path) as base:
        child = os.fork()
        if not child:
            try:
                len(base)
            except RuntimeError as error:
                os._exit(0 if f"was opened by process {os.getppid()}" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert base.add(["a"], random_keys(1)) == [8]


_FORKING_WRITER = """
import os, sys, time
from recipe_hf.knowledge import KnowledgeBase
base = KnowledgeBase.open(sys.argv[1])
if os.fork():
    time.sleep(600)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_lock_of_a_killed_writer_does_not_last_as_long_as_its_children(path: Path):
    command = [sys.executable, "-c", _FORKING_WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(BlockingIOError):
            KnowledgeBase.open(path)
        writer.kill()
        writer.wait()
        with KnowledgeBase.open(path) as base:
            assert len(base) == 5
