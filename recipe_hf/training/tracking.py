"""Experiment trackers (TensorBoard, Trackio): what a run tells them, through Accelerate."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from .config import TrainingConfig

_OF_THE_EXTRA = ("tensorboard", "trackio")


def start_tracker(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Starts the tracker that `config` asks for, if it does, with the configuration as the run's."""
    if config.run.log_with is not None:
        accelerator.init_trackers("recipe-hf", config=plain_values(config.model_dump(mode="json")))


def require_tracker(accelerator: Accelerator, log_with: str | None) -> None:
    """Checks that Accelerate found the tracker, for it would drop one that is not installed, and log nothing.

    Raises:
        ImportError: If it is not installed.
    """
    if log_with is not None and not accelerator.log_with:
        package = "'recipe-hf[tracking]'" if log_with in _OF_THE_EXTRA else log_with
        raise ImportError(f"run.log_with needs {log_with}: pip install {package}")


def plain_values(value: Any, name: str = "") -> dict[str, Any]:
    """Numbers and texts by their place, such as `stages.0.steps`; `None` is left out, as no tracker shows it.

    >>> plain_values({"seed": 3, "encoder": None, "stages": [{"steps": 40}]})
    {'seed': 3, 'stages.0.steps': 40}
    """
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = dict(enumerate(value)).items()
    else:
        return {} if value is None else {name: value}
    return {n: v for key, part in parts for n, v in plain_values(part, f"{name}.{key}" if name else str(key)).items()}
