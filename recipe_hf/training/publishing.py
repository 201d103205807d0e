"""What a training run tells its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..cards.model_card import EvaluationResult, TrainingRun
from ..datasets import DataSource
from ..evaluation.editing import KINDS
from ..modeling.loading import checkpoint_directory

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
    runs = [*record.get("earlier_runs", []), record]
    held_out = config["num_eval_examples"]
    held = held_out + config.get("num_eval_training_facts", 0)
    kinds = [kind for kind in KINDS if f"eval_{kind}" in metrics]
    asked = min(held_out, config["num_eval_questions"])
    sources = _sources(record)
    data = " and ".join(dict.fromkeys(_source_name(source) for run in runs for source in _sources(run)))
    described: dict[str, Any] = {
        "base_weights": f"`{config['base_model']}`, in {_precision(config)}",
        "encoder": runs[0]["config"]["encoder"],
        "training_data": f"{data}, without the last {held_out} rows, which were held out to choose the best step",
        "hardware": f"{record['num_processes']} process(es) on {record['device']}",
        "hours": sum(run["hours"] for run in runs),
        "encoder_revision": runs[0].get("encoder_revision"),
        "versions": record.get("versions", {}),
        "training_config": config,
        "notes": [*_parts(runs), *_learning_curve(log, record["step"], held, kinds)],
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


def earlier_runs(checkpoint: str) -> list[dict[str, Any]]:
    """The records of the runs that made a checkpoint, in order; none for one without a record."""
    path = checkpoint_directory(checkpoint) / RUN_RECORD
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    return [*record.pop("earlier_runs", []), record]


def _parts(runs: list[dict[str, Any]]) -> list[str]:
    """What each run was, if there were several."""
    if len(runs) == 1:
        return []
    parts = []
    for number, run in enumerate(runs, start=1):
        stages = ", ".join(f"{stage['name']} ({stage['steps']})" for stage in run["config"]["stages"])
        data = " and ".join(_source_name(source) for source in _sources(run))
        what = f"to step {run['step']} of the stages {stages}, {run['hours']:.1f} hours, on {data}"
        parts.append(f"Run {number} of {len(runs)}: {what}.")
    return parts


def _sources(run: dict[str, Any]) -> list[Any]:
    source = run["config"]["train_file"]
    return source if isinstance(source, list) else [source]


def _source_name(source: Any) -> str:
    source = DataSource.parse(source)
    half = {"train": "the training half of ", "held_out": "the held-out half of ", None: ""}[source.half]
    return half + Path(source.path).name


def _precision(config: dict[str, Any]) -> str:
    return "float32" if config["mixed_precision"] == "no" else "the precision it is published in"


def _learning_curve(log: list[dict[str, Any]], last_step: int, held: int, kinds: list[str]) -> list[str]:
    points = []
    for line in log:
        if "eval_reliability" in line and line["step"] <= last_step:
            scores = " / ".join(f"{line[f'eval_{kind}']:.0f}" for kind in kinds)
            points.append(f"step {line['step']}: {scores}")
    return [f"Learning curve ({' / '.join(kinds)} with {held:,} facts held): {', '.join(points)}."] if points else []
