"""`scripts/release.py average`: the mean of weights that were trained one from another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from recipe_hf import RecipeForCausalLM
from tests.tiny_recipe import untrained_recipe

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not SCRIPTS.is_dir():
        pytest.skip("the scripts are not in a source distribution")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import release

    return lambda *args: CliRunner().invoke(release.app, ["average", *map(str, args)])


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    """Two checkpoints with weights of their own."""
    paths = [tmp_path / "before", tmp_path / "after"]
    for seed, path in enumerate(paths):
        model = untrained_recipe(num_answer_prompt_tokens=3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weights in model.parameters():
                weights.normal_(generator=generator)
        model.save_pretrained(path)
        (path / "training.json").write_text(f'{{"step": {seed}}}')
    return paths


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return dict(RecipeForCausalLM.from_pretrained(path, base_model=False).named_parameters())


@pytest.mark.parametrize("shares", [[], [0.25, 0.75]])
def test_average(run: Any, checkpoints: list[Path], tmp_path: Path, shares: list[float]):
    options = [option for share in shares for option in ("--share", share)]
    result = run(*checkpoints, "--output", tmp_path / "mean", *options)
    assert result.exit_code == 0, result.output
    of_first, of_last = shares or [0.5, 0.5]
    first, last, mean = (parameters(path) for path in (*checkpoints, tmp_path / "mean"))
    assert mean.keys() == last.keys() and "answer_prompt_encoder.offset" in mean
    for name, weights in mean.items():
        torch.testing.assert_close(weights, of_first * first[name] + of_last * last[name])
    assert (tmp_path / "mean" / "training.json").read_text() == '{"step": 1}'


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.6]])
def test_shares_that_do_not_fit_are_refused(run: Any, checkpoints: list[Path], tmp_path: Path, shares: list[float]):
    options = [option for share in shares for option in ("--share", share)]
    result = run(*checkpoints, "--output", tmp_path / "mean", *options)
    assert result.exit_code == 2 and "must be given 2 times and be 1 in all" in " ".join(result.output.split())
    assert not (tmp_path / "mean").exists()


def test_checkpoints_of_other_sizes_are_refused(run: Any, checkpoints: list[Path], tmp_path: Path):
    shutil.rmtree(checkpoints[0])
    untrained_recipe().save_pretrained(checkpoints[0])
    result = run(*checkpoints, "--output", tmp_path / "mean")
    assert result.exit_code == 2 and "checkpoints must have the weights of" in " ".join(result.output.split())
    assert not (tmp_path / "mean").exists()
