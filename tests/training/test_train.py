"""The command line of training: in this process, and launched by Accelerate in two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from recipe_hf import RecipeForCausalLM
from recipe_hf.training import train
from recipe_hf.training.config import LOSSES
from tests.tiny_training import STAGES, tiny_config, write_parts

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


def write_config(parts: Path, directory: Path, **changes: Any) -> Path:
    values = tiny_config(parts, directory / "run", **changes).model_dump(mode="json")
    (directory / "run.yaml").write_text(yaml.safe_dump(values))
    return directory / "run.yaml"


def read_log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_arguments_take_the_place_of_the_config(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_config(parts, tmp_path, stages=STAGES[1:2], base_model="none", encoder="none", train_file="none")
    arguments = ["--config", path, "--base-model", parts / "base", "--encoder", parts / "encoder", "--seed", 5]
    arguments += ["--train-file", parts / "train.json", "--output-dir", tmp_path / "other"]
    arguments += ["--set", "data.sampling.chat_share=0", "--set", "stages.0.loss_weights={read_out: 1e-1}"]
    arguments += ["--set", "stages.0.encoder_layers="]
    train.app([str(argument) for argument in arguments], standalone_mode=False)
    assert str(tmp_path / "other" / "best") in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    summary = json.loads((tmp_path / "other" / "best" / "training.json").read_text())
    assert summary["config"]["run"]["seed"] == 5 and summary["config"]["data"]["sampling"]["chat_share"] == 0
    stage = summary["config"]["stages"][0]
    assert (stage["loss_weights"], stage["encoder_layers"]) == ({"read_out": 0.1}, None)
    train.app([str(argument) for argument in [*arguments, "--resume"]], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "data.sampling.chat_shares=0"],
            "unknown field .*chat_shares; the nearest is data.sampling.chat_share",
        ),
        (["--set", "run.seed=low"], "run.seed must be a valid integer, got 'low'."),
        (["--set", "run.seed"], "--set must be NAME=VALUE, got 'run.seed'."),
        (["--set", "run.seed=[1"], r"--set run.seed=\[1 is not valid YAML"),
        (["--push_to_hub"], "run.hub_model_id must be a repository id such as"),
        (["--push_to_hub", "--hub_model_id", "a/b/c"], "run.hub_model_id 'a/b/c' cannot be pushed to: Repo id must"),
        (["--push-to-hub", "--hub-model-id", "a/b/c"], "run.hub_model_id 'a/b/c' cannot be pushed to: Repo id must"),
    ],
)
def test_arguments_that_are_refused(parts: Path, tmp_path: Path, arguments: list[str], message: str):
    path = write_config(parts, tmp_path, stages=STAGES[1:2])
    with pytest.raises((ValueError, OSError), match=message):
        train.app(["--config", str(path), *arguments], standalone_mode=False)
    assert not (tmp_path / "run").exists()


def test_script_tells_an_error_in_one_line(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("stages: 5")
    for name, message in (("run.yaml", "missing fields model, data, run."), ("no.yaml", "--config must be a")):
        command = [sys.executable, "training/train.py", "--config", str(tmp_path / name)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 1 and result.stderr.count("\n") == 1
        assert result.stderr.startswith("train.py: ") and message in result.stderr


def launch(config: Path, *arguments: str, stderr: IO[str] | None = None) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launcher, "--main_process_port", str(port), "training/train.py", "--config", str(config), *arguments]
    # Accelerate starts several processes for GPUs only; told this, each of them computes on the CPU.
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600, stderr=stderr)


@pytest.mark.slow
def test_two_processes_train_through_every_stage_and_resume(parts: Path, tmp_path: Path):
    config = write_config(parts, tmp_path, save_steps=3)
    launch(config)
    log = read_log(tmp_path / "run")
    steps = [line for line in log if "stage" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert set(LOSSES) <= steps[-1].keys()
    assert json.loads((tmp_path / "run" / "best" / "training.json").read_text())["num_processes"] == 2
    RecipeForCausalLM.from_pretrained(tmp_path / "run" / "best")
    launch(config, "--resume")
    assert read_log(tmp_path / "run") == log


def test_two_processes_have_the_losses_of_one_with_their_joint_batch(parts: Path, tmp_path: Path):
    warm = STAGES[0].changed({"editing_batch_size": 4})
    joint = STAGES[3].changed({"steps": 4, "query_batch_size": 4, "mined_negatives": 1, "editing_batch_size": 2})
    logs = []
    for processes, shard_base in ((1, False), (2, False), (2, True)):
        sizes = ("contrastive_batch_size", "query_batch_size", "editing_batch_size")
        shares = [
            {name: getattr(stage, name) and getattr(stage, name) // processes for name in sizes}
            for stage in (warm, joint)
        ]
        stages = [stage.changed(share) for stage, share in zip((warm, joint), shares, strict=True)]
        directory = tmp_path / f"{processes} {shard_base}"
        directory.mkdir()
        config = write_config(parts, directory, stages=stages, eval_steps=3, save_steps=6, shard_base=shard_base)
        train.app(["--config", str(config)], standalone_mode=False) if processes == 1 else launch(config)
        lines = read_log(directory / "run")
        logs.append([{k: v for k, v in line.items() if k not in ("stage", "seconds")} for line in lines])
    one, *two = logs
    assert len(one) == 6 + 2
    for log in two:
        for expected, found in zip(one, log, strict=True):
            assert found == pytest.approx(expected, abs=3e-4, rel=1e-3), expected["step"]


@pytest.mark.slow
def test_two_processes_both_end_where_the_repository_is_refused(parts: Path, tmp_path: Path):
    config = write_config(parts, tmp_path, push_to_hub=True, hub_model_id="no/repository/id")
    with open(tmp_path / "stderr", "w+") as stderr:
        with pytest.raises(subprocess.CalledProcessError):
            launch(config, stderr=stderr)
        stderr.seek(0)
        assert "hub_model_id 'no/repository/id' cannot be pushed to: Repo id must be" in stderr.read()
    assert not (tmp_path / "run").exists()
