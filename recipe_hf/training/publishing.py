"""What a training run tells its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..cards.model_card import EvaluationResult, TrainingRun
from ..datasets import DataSource
from ..evaluation.editing import KINDS

RUN_RECORD = "training.json"
METRICS_LOG = "metrics.jsonl"


def describe_run(directory: str | Path, **known: Any) -> TrainingRun:
    """The run that made a checkpoint, from the record and the log in its directory.

    Args:
        directory: The checkpoint, with `training.json` and `metrics.jsonl`.
        **known: Fields of [`TrainingRun`] that are known better.

    Raises:
        FileNotFoundError: If the directory lacks either file.
    """
    directory = Path(directory)
    record = json.loads((directory / RUN_RECORD).read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (directory / METRICS_LOG).read_text(encoding="utf-8").splitlines()]
    config, metrics = record["config"], record["metrics"]
    held_out = config["num_eval_examples"]
    held = held_out + config.get("num_eval_training_facts", 0)
    kinds = [kind for kind in KINDS if f"eval_{kind}" in metrics]
    asked = min(held_out, config["num_eval_questions"])
    sources = config["train_file"] if isinstance(config["train_file"], list) else [config["train_file"]]
    data = " and ".join(_source_name(source) for source in sources)
    described: dict[str, Any] = {
        "base_weights": f"`{config['base_model']}`, in {_precision(config)}",
        "encoder": config["encoder"],
        "training_data": f"{data}, without the last {held_out} rows, which were held out to choose the best step",
        "hardware": f"{record['num_processes']} process(es) on {record['device']}",
        "hours": record["hours"],
        "encoder_revision": record.get("encoder_revision"),
        "versions": record.get("versions", {}),
        "training_config": config,
        "notes": [_learning_curve(log, record["step"], held, kinds)],
        "results": [
            EvaluationResult(
                dataset=f"{_source_name(sources[-1])}, its last {held_out} rows, asking about {asked}",
                protocol="strict",
                seeds=[0],
                rows={held: {kind: metrics[f"eval_{kind}"] for kind in kinds}},
            )
        ],
    }
    return TrainingRun(**described | known)


def _source_name(source: Any) -> str:
    source = DataSource.parse(source)
    half = {"train": "the training half of ", "held_out": "the held-out half of ", None: ""}[source.half]
    return half + Path(source.path).name


def _precision(config: dict[str, Any]) -> str:
    return "float32" if config["mixed_precision"] == "no" else "the precision it is published in"


def _learning_curve(log: list[dict[str, Any]], last_step: int, held: int, kinds: list[str]) -> str:
    points = []
    for line in log:
        if "eval_reliability" in line and line["step"] <= last_step:
            scores = " / ".join(f"{line[f'eval_{kind}']:.0f}" for kind in kinds)
            points.append(f"step {line['step']}: {scores}")
    return f"Learning curve ({' / '.join(kinds)} with {held:,} facts held): {', '.join(points)}."
