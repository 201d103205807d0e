from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from recipe_hf import RecipeForCausalLM
from recipe_hf.cli import app
from tests.tiny_recipe import GREEDY, MIXED, batch_of, edited_recipe, tiny_base


def split(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["split", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    edited_recipe().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def test_a_checkpoint_is_split_and_answers_as_before(checkpoint: Path, tmp_path: Path):
    parts = tmp_path / "parts"
    code, output = split(checkpoint, parts)
    assert code == 0 and f"{parts}/prompts holds the prompts of {checkpoint}" in output
    assert split(checkpoint, tmp_path / "again", "--retriever", parts / "retriever")[0] == 0
    written = [
        model.generate(**batch_of(model, MIXED), **GREEDY).tolist()
        for directory in (checkpoint, parts / "prompts", tmp_path / "again")
        for model in [RecipeForCausalLM.from_pretrained(directory, base_model=tiny_base())]
    ]
    assert written[0] == written[1] == written[2]
    assert not (parts / "retriever" / "knowledge").exists()


def test_what_cannot_be_split_is_refused(checkpoint: Path, tmp_path: Path):
    assert split(checkpoint, checkpoint) == (
        2,
        f"recipe-hf: DIR must be an empty directory, or none yet, got {str(checkpoint)!r}.",
    )
    code, output = split(checkpoint, tmp_path / "parts", "--retriever", "./nowhere")
    assert code == 2 and "--retriever must be a directory that exists, or a Hub id, got './nowhere'" in output
    code, output = split(checkpoint, tmp_path / "parts", "--retriever-revision", "v1")
    assert (code, output) == (2, "recipe-hf: --retriever-revision must come with --retriever, got 'v1' alone.")
    assert not (tmp_path / "parts").exists()
    split(checkpoint, tmp_path / "parts")
    code, output = split(tmp_path / "parts" / "retriever", tmp_path / "more")
    assert code == 2 and "CHECKPOINT must have prompts to be split" in output
    assert not (tmp_path / "more").exists()
