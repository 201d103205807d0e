"""What the command line loads before it answers, its version, and what shells complete."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from tests.command import python, run
from tests.tiny_recipe import base_tokenizer, edited_recipe, tiny_base

HEAVY = ["accelerate", "lm_eval", "matplotlib", "peft", "sentence_transformers", "torch", "transformers"]
_LOADED = """
import sys
from recipe_hf.cli import app
try:
    app(prog_name="recipe-hf")
finally:
    print("loaded", *sorted(set({heavy}) & set(sys.modules)))
"""


def loaded(*arguments: object, exit_code: int = 0) -> list[str]:
    """The heavy libraries that a command has imported by its end."""
    result = python(_LOADED.format(heavy=HEAVY), *arguments)
    assert result.returncode == exit_code, result.stderr
    *_, last = result.stdout.splitlines()
    return last.split()[1:]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A directory with what `list`, `export` and `remove` read: the sizes and two facts."""
    (tmp_path / "config.json").write_text('{"model_type": "recipe", "knowledge_dim": 8}')
    knowledge = KnowledgeBase(8)
    knowledge.add(["Ann runs Acme.", "Oslo is cold."], torch.from_numpy(np.eye(8, dtype="f4")[:2]))
    knowledge.save(tmp_path / "knowledge")
    (tmp_path / "empty.jsonl").touch()
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["explain", "--help"], ["evaluate", "--help"], ["serve", "--help"]]
)
def test_help_and_version_load_nothing_heavy(arguments):
    assert loaded(*arguments) == []


@pytest.mark.parametrize("arguments", [["list"], ["list", "--history"], ["remove", 0], ["export", "facts.jsonl"]])
def test_commands_on_facts_load_nothing_heavy(stored, arguments, monkeypatch):
    monkeypatch.chdir(stored)
    command, *rest = arguments
    assert loaded(command, stored, *rest) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", ".", ""],
        ["ask", "no", "Why?"],
        ["ask", ".", "Why?"],
        ["ask", ".", "Why?", "--base-model", "./no"],
        ["evaluate", ".", "--dataset", "no.json"],
        ["evaluate", ".", "--dataset", "empty.jsonl", "--plots"],
        ["convert", "./no", "new"],
        ["demo", "--checkpoint", ".", "--base-model", "./no"],
        ["list", "--no"],
        ["serve"],
        ["serve", ".", "--config", "no.yaml"],
        ["serve", ".", "--port", "70000"],
    ],
)
def test_wrong_arguments_are_refused_before_anything_heavy_is_loaded(stored, arguments, monkeypatch):
    monkeypatch.chdir(stored)
    assert loaded(*arguments, exit_code=2) == []


@pytest.mark.parametrize("arguments", [["add", "."], ["add", ".", ""], ["add", ".", "--from", "empty.jsonl"]])
def test_facts_are_checked_before_anything_heavy_is_loaded(stored, arguments, monkeypatch):
    monkeypatch.chdir(stored)
    assert loaded(*arguments, exit_code=2) == []


def test_an_answer_needs_no_library_of_training_or_measuring(tmp_path):
    tiny_base().save_pretrained(tmp_path / "base")
    base_tokenizer().save_pretrained(tmp_path / "base")
    edited_recipe().save_pretrained(tmp_path / "checkpoint")
    arguments = ["ask", tmp_path / "checkpoint", "The CEO of Acme is", "--base-model", tmp_path / "base"]
    assert not {"lm_eval", "matplotlib", "peft", "sentence_transformers"} & set(loaded(*arguments))


def test_the_version_is_that_of_the_distribution():
    assert run("--version").stdout == f"recipe-hf {version('recipe-hf')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell):
    # Without the variable, typer looks for the shell among the processes above, of which there may be none.
    shown = run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert (shown.returncode, shown.stderr) == (0, "") and "_RECIPE_HF_COMPLETE=complete_" in shown.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("recipe-hf eval", ["evaluate"]),
        ("recipe-hf ask checkpoint --max", ["--max-new-tokens"]),
        ("recipe-hf add checkpoint --on-conflict ", ["replace", "keep", "error", "supersede", "report"]),
        ("recipe-hf evaluate --num-edits 1 10 100 --see", ["--seeds"]),
        ("recipe-hf evaluate --seeds=0 1 2 --half ", ["train", "held_out"]),
        ("recipe-hf compare checkpoint --protocol strict generation --editors base recipe --dt", ["--dtype"]),
    ],
)
def test_a_line_is_completed(line, expected):
    position = str(len(line.split(" ")) - 1)
    completed = run(_RECIPE_HF_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=position)
    assert (completed.stdout.split(), completed.stderr) == (expected, "")
