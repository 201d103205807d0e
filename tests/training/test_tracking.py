from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import tracking

from recipe_hf.training.trainer import Trainer
from tests.tiny_training import STAGES, tiny_config, write_parts


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
    assert str(caught.value) == f"log_with needs {name}: pip install {package}"
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
    assert values["base_model"] == config.base_model and values["knowledge_dim"] == 64
    assert values["stages.0.name"] == "heads" and values["stages.0.learning_rate"] == 0.001
    assert all(isinstance(value, (str, int, float)) for value in values.values())

    events = EventAccumulator(str(tmp_path / "recipe-hf")).Reload()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["read_out"] for line in logged if "read_out" in line}
    assert {event.step: event.value for event in events.Scalars("read_out")} == pytest.approx(losses, rel=1e-4)
    assert "eval_locality" in events.Tags()["scalars"]
