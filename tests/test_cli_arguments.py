"""How the command line reads its arguments, and what it says of an error."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from recipe_hf.cli.app import TakesLists
from tests.test_cli import assert_refused, invoke


def test_train_names_itself_and_what_it_lacks(tmp_path, capsys):
    assert_refused(invoke("train", "--config", tmp_path / "no.yaml"), "--config must be a file that exists, got")
    assert invoke("train", "--help").output.strip().startswith("Usage: recipe-hf train [OPTIONS]")
    assert_refused(
        invoke("train-verifier", "--config", tmp_path / "no.yaml"), "--config must be a file that exists, got"
    )
    assert invoke("train-verifier", "--help").output.strip().startswith("Usage: recipe-hf train-verifier [OPTIONS]")


def test_a_run_that_diverges_is_told_in_one_line(tmp_path, monkeypatch):
    @(trainer := typer.Typer()).command()
    def diverge(config: str = "") -> None:
        raise FloatingPointError("The loss is nan at step 3 of stage 'joint': lower its learning rates.")

    monkeypatch.setattr("recipe_hf.training.train.app", trainer)
    assert_refused(invoke("train", "--config", tmp_path), "The loss is nan at step 3")


@pytest.mark.parametrize("given", [["--seeds", "0", "1"], ["--seeds=0", "1"], ["--seeds=0", "--seeds=1"]])
def test_several_values_of_an_option(given):
    seen = []

    @(application := typer.Typer()).command(cls=TakesLists)
    def command(where: str, seeds: Annotated[list[int], typer.Option()] = [5], limit: int = 7) -> None:  # noqa: B006
        seen.append((where, seeds, limit))

    for arguments in (["x", *given], ["x", *given, "--limit=3"], [*given, "--limit=3", "x"], [*given, "."]):
        assert CliRunner().invoke(application, arguments).exit_code == 0
    assert seen == [("x", [0, 1], 7), ("x", [0, 1], 3), ("x", [0, 1], 3), (".", [0, 1], 7)]
