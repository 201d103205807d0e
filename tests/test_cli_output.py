"""What becomes of the output never decides what a command does: real processes, pipes, files and signals."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from tests.command import run, start

PARTY = "\N{PARTY POPPER}"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A directory with what `list` and `remove` read: the sizes, and facts that few encodings can show."""
    (tmp_path / "config.json").write_text('{"model_type": "recipe", "knowledge_dim": 8}')
    knowledge = KnowledgeBase(8)
    knowledge.add([f"{PARTY} is for parties.", "Łódź is in Poland."], torch.from_numpy(np.eye(8, dtype="f4")[:2]))
    knowledge.save(tmp_path / "knowledge")
    return tmp_path


def cut_off(*arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a command whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*arguments, stdout=writer)
    os.close(writer)
    said = process.communicate()[1]
    return process.returncode, said


def statements(checkpoint: Path) -> list[str]:
    return [fact.statement for fact in KnowledgeBase.load(checkpoint / "knowledge")]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp1252:strict", "utf-8"])
def test_characters_that_cannot_be_shown_are_replaced(stored, encoding):
    shown = run("list", stored, PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert ("? is for parties." in shown.stdout) != (f"{PARTY} is for parties." in shown.stdout)
    removed = run("remove", stored, 0, PYTHONIOENCODING=encoding)
    assert (removed.returncode, removed.stderr) == (0, "")
    assert statements(stored) == ["Łódź is in Poland."]


def test_an_error_can_be_shown_in_any_encoding(stored):
    refused = run("list", stored / PARTY, PYTHONIOENCODING="cp1252")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("recipe-hf: CHECKPOINT must be")


def test_help_can_be_shown_in_any_encoding():
    assert run("list", "--help", PYTHONIOENCODING="ascii").returncode == 0


@pytest.mark.parametrize("arguments", [("list",), ("remove", 0), ("export", "facts.jsonl")])
def test_a_closed_pipe_ends_a_command_in_silence(stored, arguments, monkeypatch):
    monkeypatch.chdir(stored)
    assert cut_off(arguments[0], stored, *arguments[1:]) == (128 + signal.SIGPIPE, "")
    assert len(statements(stored)) == (1 if arguments[0] == "remove" else 2)
    assert (stored / "facts.jsonl").exists() == (arguments[0] == "export")


def test_a_closed_pipe_ends_what_prints_by_itself_in_silence(stored):
    for arguments in (("demo", "--checkpoint", stored, "--base-model", stored), ("train", "--help")):
        assert cut_off(*arguments) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_apart_from_a_refusal(stored):
    with open("/dev/full", "w") as full:
        process = start("remove", stored, 0, stdout=full)
        said = process.communicate()[1]
    assert process.returncode == 1 and said.count("\n") == 1
    assert "the output cannot be written: [Errno 28]" in said
    assert len(statements(stored)) == 1


def test_no_output_at_all_is_no_error(stored):
    process = start("list", stored, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert process.communicate()[1] == "" and process.returncode == 0


def test_an_interrupt_ends_a_command_in_silence(stored):
    os.mkfifo(stored / "facts.jsonl")
    # A process in the background of a script begins with the signal ignored, and hands that down.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = start("add", stored, "--from", stored / "facts.jsonl", stdout=subprocess.PIPE, preexec_fn=heed)
    with open(stored / "facts.jsonl", "w"):  # It is open for writing once the command reads it.
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 128 + signal.SIGINT
    assert len(statements(stored)) == 2
