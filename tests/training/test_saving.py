"""Copies of a run's checkpoint: which is gone on from, what is refused, and that nothing is lost or changed by it."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipe_hf.training.config import TrainingConfig
from recipe_hf.training.saving import cut_log, find_best, find_whole, read_seal, seal, settle
from recipe_hf.training.trainer import Trainer
from tests.tiny_recipe import base_tokenizer, tiny_base, tiny_encoder
from tests.tiny_training import EXAMPLES, STAGES, tiny_config, write_counterfact, write_parts

STAGE = STAGES[1].changed({"steps": 4, "encoder_learning_rate": 1e-3})


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


class Interrupted(Exception):
    pass


class StoppingTrainer(Trainer):
    """A trainer that is interrupted before its third step."""

    def _train_step(self, *args: Any) -> dict[str, torch.Tensor]:
        if self.step == 2:
            raise Interrupted
        return super()._train_step(*args)


def config_of(parts: Path, directory: Path, **changes: Any) -> TrainingConfig:
    return tiny_config(parts, directory, **{"stages": [STAGE], "eval_steps": 2, **changes})


@pytest.fixture(scope="module")
def stopped(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run has left that was interrupted after two steps."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Interrupted):
        StoppingTrainer(config_of(parts, directory)).train()
    return directory


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "run")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def resume(parts: Path, directory: Path, **changes: Any) -> Trainer:
    trainer = Trainer(config_of(parts, directory, **changes))
    trainer.train(resume=True)
    return trainer


# ---------------------------------------------------------------------- whole and damaged copies


STATE = ("model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl")


@pytest.mark.parametrize("cut", [False, True], ids=["missing", "cut short"])
@pytest.mark.parametrize(
    "file", [*(f"checkpoint/{n}" for n in (*STATE, "run.json")), "best/model.safetensors", "best/config.json"]
)
def test_a_damaged_file_is_named(parts: Path, run: Path, file: str, cut: bool):
    path = run / file
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    before = contents(run)
    with pytest.raises((OSError, ValueError)) as caught:
        resume(parts, run)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert contents(run) == before


def test_a_byte_that_differs_is_damage(run: Path):
    path = run / "checkpoint" / "optimizer.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"optimizer.bin is damaged: it had \d+ bytes, SHA-256 .*, and has \d+ bytes"):
        find_whole(run / "checkpoint")


@pytest.mark.parametrize("text", ["[]", "{}", '{"step": 1, "inputs": {}, "files": 5}'])
def test_a_seal_that_says_nothing_is_damage(run: Path, text: str):
    (run / "checkpoint" / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json is damaged: it does not say what"):
        find_whole(run / "checkpoint")


def write_copy(directory: Path, step: int) -> None:
    directory.mkdir()
    (directory / "state").write_text(str(step))
    seal(directory, {"step": step, "inputs": {}})


@pytest.mark.parametrize(
    ("copies", "damaged", "expected"),
    [
        ({"": 2}, "", None),
        ({"": 2, ".old": 1}, None, ""),
        ({"": 1, ".new": 2}, None, ".new"),
        ({".new": 2, ".old": 1}, None, ".new"),
        ({".new": 2, ".old": 1}, ".new", ".old"),
        ({".old": 1}, None, ".old"),
        ({"": 2, ".old": 1}, "", ".old"),
        ({"": 1, ".new": 2}, "", ".new"),
        ({"": 1, ".new": 2}, ".new", ""),
    ],
)
def test_the_newest_whole_copy_is_gone_on_from(
    tmp_path: Path, copies: dict[str, int], damaged: str | None, expected: str | None
):
    directory = tmp_path / "checkpoint"
    for suffix, step in copies.items():
        write_copy(tmp_path / f"checkpoint{suffix}", step)
    if damaged is not None:
        (tmp_path / f"checkpoint{damaged}" / "state").write_text("")
    before = contents(tmp_path)
    if expected is None:
        with pytest.raises(ValueError, match="state is damaged"):
            find_whole(directory)
        assert contents(tmp_path) == before
        return
    copy, record = find_whole(directory)
    assert copy == tmp_path / f"checkpoint{expected}" and record["step"] == copies[expected]
    assert contents(tmp_path) == before
    settle(copy, directory)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert read_seal(directory)["step"] == copies[expected]


def test_a_copy_that_was_not_finished_is_none(tmp_path: Path):
    (tmp_path / "checkpoint.new").mkdir()
    (tmp_path / "checkpoint.new" / "state").write_text("1")
    with pytest.raises(FileNotFoundError, match="checkpoint does not exist, so there is nothing to resume"):
        find_whole(tmp_path / "checkpoint")


def test_the_best_is_found_where_its_change_of_place_was_interrupted(run: Path):
    best, old, new = run / "best", run / "best.old", run / "best.new"
    new.mkdir()
    assert find_best(best) == best
    new.rmdir()
    best.rename(old)
    assert find_best(best) == old
    shutil.copytree(old, new)
    assert find_best(best) == new
    shutil.rmtree(old)  # Then it was never finished.
    with pytest.raises(FileNotFoundError, match="best/config.json"):
        find_best(best)


def test_a_checkpoint_of_an_older_version_is_refused(parts: Path, run: Path):
    (run / "checkpoint" / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="run.json is missing: .* or an older version of recipe-hf wrote it"):
        resume(parts, run)


def test_random_states_are_those_of_the_interruption(parts: Path, stopped: Path, run: Path):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    trainer = StoppingTrainer(config_of(parts, run))
    with pytest.raises(Interrupted):
        trainer.train(resume=True)
    saved = torch.load(stopped / "checkpoint" / "random_states_0.pkl", weights_only=False)
    assert torch.equal(torch.get_rng_state(), saved["torch_manual_seed"])
    assert np.array_equal(np.random.get_state()[1], saved["numpy_random_seed"][1])
    assert random.getstate() == saved["random_state"]


# ---------------------------------------------------------------------- other runs


def other_rows(parts: Path, directory: Path) -> dict[str, Any]:
    examples = [*EXAMPLES[:3], dataclasses.replace(EXAMPLES[3], answer="Ghent"), *EXAMPLES[4:]]
    return {"train_file": str(write_counterfact(directory / "train.json", examples))}


def other_base(parts: Path, directory: Path) -> dict[str, Any]:
    tiny_base(seed=1).save_pretrained(directory / "base")
    base_tokenizer().save_pretrained(directory / "base")
    return {"base_model": str(directory / "base")}


def other_encoder(parts: Path, directory: Path) -> dict[str, Any]:
    shutil.copytree(parts / "encoder", directory / "encoder")
    tiny_encoder(seed=1).save_pretrained(directory / "encoder")
    return {"encoder": str(directory / "encoder")}


def weighted(parts: Path, directory: Path) -> dict[str, Any]:
    return {"train_file": [{"path": str(parts / "train.json"), "weight": 2.0}]}


CHANGES: dict[str, tuple[Callable[[Path, Path], dict[str, Any]], str]] = {
    "data": (other_rows, "train_file of contents was '25, SHA-256 [0-9a-f]+', now '25, SHA-256 [0-9a-f]+'"),
    "weights of data": (weighted, r"weights of contents was None, now \[2.0\]"),
    "a rate": (
        lambda *_: {"stages": [STAGE.changed({"sentinel_learning_rate": 0.5})]},
        "sentinel_learning_rate of 'heads' of stages was 0.001, now 0.5",
    ),
    "more steps": (
        lambda *_: {"stages": [STAGE.changed({"steps": 9})]},
        "steps of 'heads' of stages was 4, now 9",
    ),
    "a stage": (lambda *_: {"stages": [STAGE, STAGES[2]]}, r"stages was \["),
    "a seed": (lambda *_: {"seed": 1}, "seed of run was 0, now 1"),
    "evaluations": (lambda *_: {"eval_steps": 3}, "eval_steps of run was 2, now 3"),
    "a base": (other_base, "base_weights of start was"),
    "an encoder": (other_encoder, "weights of start was"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_another_run_is_refused_and_kept(
    parts: Path, run: Path, tmp_path: Path, change: Callable[[Path, Path], dict[str, Any]], message: str
):
    before = contents(run)
    with pytest.raises(ValueError, match=f"checkpoint is of another run: {message}.*: set it back, or choose another"):
        resume(parts, run, **change(parts, tmp_path))
    assert contents(run) == before


def test_what_decides_nothing_may_change(parts: Path, run: Path, tmp_path: Path):
    moved = shutil.copytree(parts, tmp_path / "moved")
    directory = run.rename(tmp_path / "elsewhere")
    changes = {"save_steps": 3, "logging_steps": 2, "license": "mit", "language": "en", "length_buckets": 2}
    changed = resume(moved, directory, **changes, pack_rows=True, base_attn_implementation="eager")
    assert changed.step == 4
    whole = Trainer(config_of(parts, tmp_path / "whole"))
    whole.train()
    for name, tensor in changed.model.state_dict().items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("left", ["checkpoint", "checkpoint.new", "checkpoint.old", "best", "best.old"])
def test_without_resume_nothing_of_an_earlier_run_is_lost(parts: Path, run: Path, left: str):
    (run / left.partition(".")[0]).rename(run / "kept")
    for name in ("checkpoint", "best"):
        shutil.rmtree(run / name, ignore_errors=True)
    (run / "kept").rename(run / left)
    before = contents(run)
    with pytest.raises(
        FileExistsError, match=r"holds an earlier run: resume it \(--resume\), choose another output_dir"
    ):
        Trainer(config_of(parts, run)).train()
    assert contents(run) == before and before


def test_what_was_never_whole_is_no_earlier_run(parts: Path, tmp_path: Path):
    for name in ("checkpoint.new", "best.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "random_states_1.pkl").write_text("half a fi")
    Trainer(config_of(parts, tmp_path)).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint", "metrics.jsonl"]
    assert not list(tmp_path.rglob("random_states_1.pkl"))


def test_where_there_is_a_best_the_run_can_be_resumed(parts: Path, tmp_path: Path):
    with pytest.raises(Interrupted):
        StoppingTrainer(config_of(parts, tmp_path, save_steps=100)).train()
    assert (tmp_path / "best").is_dir() and resume(parts, tmp_path, save_steps=100).step == 4


# ---------------------------------------------------------------------- the log


def test_a_log_is_cut_at_a_step(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "seconds": 0.1}) for step in (1, 2, 2, 3)]
    log.write_text("\n".join(lines) + "\n" + lines[-1][:9])
    cut_log(log, 2)
    assert log.read_text() == "".join(f"{line}\n" for line in lines[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    cut_log(tmp_path / "none.jsonl", 2)


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"seconds": 1}', "\0\0"])
def test_a_damaged_line_of_a_log_is_named(tmp_path: Path, line: str):
    log = tmp_path / "metrics.jsonl"
    log.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    before = log.read_bytes()
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, is damaged: delete it to go on"):
        cut_log(log, 2)
    assert log.read_bytes() == before
