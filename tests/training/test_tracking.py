from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import tracking

from recipe_hf.training.trainer import Trainer
from tests.tiny_training import STAGES, tiny_config, write_parts

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "'recipe-hf[tracking]'"), ("trackio", "'recipe-hf[tracking]'"), ("aim", "aim")],
)
def test_a_tracker_that_is_not_installed_is_refused(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ImportError) as caught:
        Trainer(tiny_config(parts, tmp_path / "run", log_with=name))
    assert str(caught.value) == f"run.log_with needs {name}: pip install {package}"
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_exist_is_refused(parts: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="tensorbord"):
        Trainer(tiny_config(parts, tmp_path, log_with="tensorbord"))


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard, of the tracking extra, is not installed")
def test_tensorboard_gets_the_configuration_and_the_losses(parts: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(parts, tmp_path, stages=STAGES[1:2], log_with="tensorboard", eval_steps=1)
    Trainer(config).train()
    (stored,) = (tmp_path / "recipe-hf").glob("*/hparams.yml")
    values: dict[str, Any] = yaml.safe_load(stored.read_text())
    assert values["model.base_model"] == config.model.base_model and values["model.knowledge_dim"] == 64
    assert values["stages.0.name"] == "heads" and values["stages.0.learning_rate"] == 0.001
    assert all(isinstance(value, (str, int, float)) for value in values.values())

    events = EventAccumulator(str(tmp_path / "recipe-hf")).Reload()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["read_out"] for line in logged if "read_out" in line}
    assert {event.step: event.value for event in events.Scalars("read_out")} == pytest.approx(losses, rel=1e-4)
    assert "eval_locality" in events.Tags()["scalars"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio, of the tracking extra, is not installed")
def test_trackio_gets_the_configuration_and_the_losses(parts: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path / "run", stages=STAGES[1:2], log_with="trackio")
    values = config.model_dump(mode="json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values | {"stages": list(values["stages"])}))
    # Trackio reads where to write when it is imported.
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}
    script = ["training/train.py", "--config", str(tmp_path / "run.yaml")]
    subprocess.run([sys.executable, *script], cwd=ROOT, env=environment, check=True, timeout=300)

    def ask(*words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "trackio.cli", *words, "--project", "recipe-hf", "--json"]
        told = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=300)
        return json.loads(told.stdout)

    (run,) = ask("list", "runs")["runs"]
    stored = ask("get", "run", "--run", run)
    assert (
        stored["config"]["model.base_model"] == config.model.base_model
        and stored["config"]["stages.0.learning_rate"] == 0.001
    )
    assert "eval_locality" in stored["metrics"]
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["read_out"] for line in logged if "read_out" in line}
    values = ask("get", "metric", "--run", run, "--metric", "read_out")["values"]
    assert {value["step"]: value["value"] for value in values} == pytest.approx(losses)
