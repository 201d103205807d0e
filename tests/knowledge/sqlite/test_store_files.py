"""What becomes of a store whose files others delete or replace, or that lie where nobody can write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.exchange import read_facts
from recipe_hf.knowledge.sqlite.salvage import salvage
from tests.engines import qdrant

DIM = 8


def keys(n: int = 1) -> torch.Tensor:
    return torch.ones(n, DIM)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store" / "facts.db"
    with KnowledgeBase.open(path, DIM) as base:
        base.add(["a", "b"], keys(2))
    return path


# ---------------------------------------------------------------------- deleted, and replaced


def replace(path: Path) -> None:
    shutil.copyfile(path, path.with_name("another"))
    os.replace(path.with_name("another"), path)


LOSSES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "replaced": replace,
    "moved": lambda path: path.rename(path.with_name("moved")),
    "with its directory": lambda path: shutil.rmtree(path.parent),
    "its log": lambda path: path.with_name(path.name + "-wal").unlink(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_file_that_is_gone_takes_no_more_facts(path: Path, tmp_path: Path, loss: str):
    base = KnowledgeBase.open(path)
    base.add(["c"], keys())
    LOSSES[loss](path)
    before = sorted(tmp_path.rglob("*"))
    for change in (
        lambda: base.add(["d"], keys()),
        lambda: base.remove(0),
        base.clear,
        lambda: base.add(["e"], keys()),
    ):
        with pytest.raises(
            FileNotFoundError, match="deleted or replaced while it was open, so nothing.*copy_to.*facts.db"
        ):
            change()
    assert [fact.statement for fact in base] == ["a", "b", "c"]
    assert base.search(keys())[0].tolist() == [[0]]
    with base.copy_to(tmp_path / "copy.db") as copy:
        assert copy.add(["d"], keys()) == [3]
    base.close()
    assert {file for file in tmp_path.rglob("*") if "copy.db" not in str(file)} <= set(before)


def test_a_file_that_was_put_back_is_written_again(path: Path):
    with KnowledgeBase.open(path) as base:
        path.rename(path.with_name("moved"))
        with pytest.raises(FileNotFoundError):
            base.add(["c"], keys())
        path.with_name("moved").rename(path)
        base.add(["c"], keys())
    with KnowledgeBase.open(path) as base:
        assert [fact.statement for fact in base] == ["a", "b", "c"]


# ---------------------------------------------------------------------- where nobody can write


@pytest.fixture
def read_only_directory(path: Path) -> Iterator[Path]:
    """The store's directory, seen from a place where nobody can write to it, not even root."""
    place = path.parent.with_name("mounted")
    place.mkdir()
    try:
        subprocess.run(["mount", "--bind", str(path.parent), str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounts need root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True, capture_output=True)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_store_is_read_where_nobody_can_write(path: Path, read_only_directory: Path, tmp_path: Path):
    before = sorted(path.parent.iterdir())
    with KnowledgeBase.open(read_only_directory / "facts.db", read_only=True) as base:
        assert [fact.statement for fact in base] == ["a", "b"] and base.search(keys())[0].tolist() == [[0]]
        with pytest.raises(PermissionError, match="opened to be read only"):
            base.add(["c"], keys())
        base.export(tmp_path / "facts.jsonl")
    with pytest.raises(OSError, match="Read-only file system"):
        KnowledgeBase.open(read_only_directory / "facts.db")
    assert salvage(read_only_directory / "facts.db", tmp_path / "new.db").facts == 2
    assert sorted(path.parent.iterdir()) == before


def test_it_is_followed_when_it_is_written_from_elsewhere(path: Path, read_only_directory: Path):
    with KnowledgeBase.open(read_only_directory / "facts.db", read_only=True) as reader:
        assert len(reader) == 2
        for number in range(3):  # The first time the log is seen to come, the next times it has come and gone.
            with KnowledgeBase.open(path) as base:
                (id,) = base.add([f"new {number}"], keys() * (number + 2))
                if number == 0:
                    assert reader[id].statement == "new 0"
                base.add([f"newer {number}"], keys() * -1)
            assert reader[id].statement == f"new {number}" and len(reader) == 4 + 2 * number
            assert reader.search(keys())[0].tolist() == [[id]]


def test_a_log_that_cannot_be_read_is_named(path: Path, read_only_directory: Path):
    log = path.with_name("facts.db-wal")
    with KnowledgeBase.open(path) as base:
        base.add(["c"], keys())
        with KnowledgeBase.open(read_only_directory / "facts.db", read_only=True) as reader:
            assert len(reader) == 3
        shutil.copyfile(log, path.with_name("kept"))
    os.replace(path.with_name("kept"), log)
    with pytest.raises(OSError, match="changes are still in facts.db-wal: copy both files to one.*facts.db"):
        KnowledgeBase.open(read_only_directory / "facts.db", read_only=True)
    log.write_bytes(b"")
    with KnowledgeBase.open(read_only_directory / "facts.db", read_only=True) as reader:
        assert len(reader) == 3


_AS_NOBODY = """
import os, sys
sys.path.insert(0, sys.argv[2])
from recipe_hf.knowledge import KnowledgeBase
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
with KnowledgeBase.open(sys.argv[1], read_only=True) as base:
    print(len(base))
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs the permissions of POSIX")
def test_a_store_is_read_by_who_may_not_write_to_its_directory(path: Path):
    outside = Path(tempfile.mkdtemp())  # Others may not look into pytest's directories.
    shutil.copytree(path.parent, outside, dirs_exist_ok=True)
    try:
        outside.chmod(0o555)
        command = [sys.executable, "-c", _AS_NOBODY, str(outside / "facts.db"), str(Path(__file__).parents[3])]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr
    finally:
        outside.chmod(0o755)
        shutil.rmtree(outside)


# ---------------------------------------------------------------------- the home directory


def test_a_path_may_begin_with_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    with KnowledgeBase.open("~/facts.db", DIM) as base:
        base.add(["a"], keys())
        base.save("~/saved")
        base.export(Path("~/facts.jsonl"))
        base.copy_to("~/copy.db").close()
    assert len(KnowledgeBase.load("~/saved")) == 1 and read_facts("~/facts.jsonl")[0].statement == "a"
    assert salvage("~/facts.db", "~/new.db").facts == 1
    assert {"facts.db", "saved", "facts.jsonl", "copy.db", "new.db"} <= {file.name for file in home.iterdir()}
    assert list(here.iterdir()) == []


def test_a_directory_of_qdrant_may_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    qdrant("~/local", DIM).close()
    assert (tmp_path / "local").is_dir() and not (tmp_path / "~").exists()
