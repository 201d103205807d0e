"""What a training run tells its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..cards.model_card import EvaluationResult, TrainingRun
from ..datasets import DataSource, named_on_hub
from ..evaluation.asking.questions import KINDS
from ..modeling.loading import checkpoint_directory

RUN_RECORD = "training.json"
METRICS_LOG = "metrics.jsonl"
_EARLIER_LOGS = "metrics-*.jsonl"


def describe_run(directory: str | Path, **known: Any) -> TrainingRun:
    """The run that made a checkpoint, from the record and the log in its directory.

    Args:
        directory: The checkpoint, with `training.json` and `metrics.jsonl`, and if wanted the logs of earlier runs as
            `metrics-*.jsonl`.
        **known: Fields of [`TrainingRun`] that are known better.

    Raises:
        FileNotFoundError: If the directory lacks either of the first two.
    """
    directory = Path(directory)
    record = json.loads((directory / RUN_RECORD).read_text(encoding="utf-8"))
    logs = {
        path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (directory / METRICS_LOG, *sorted(directory.glob(_EARLIER_LOGS)))
    }
    config, metrics = _fields(record), record["metrics"]
    runs = [*record.get("earlier_runs", []), record]
    held_out = config["num_eval_examples"]
    kinds = [kind for kind in KINDS if f"eval_{kind}" in metrics]
    sources = [source for run in runs for source in _sources(run)]
    on_hub = [named_on_hub(source.path) for source in sources]
    language = config.get("language") or []
    described: dict[str, Any] = {
        "base_weights": f"`{config['base_model']}`, in {_precision(config)}",
        "encoder": _fields(runs[0])["encoder"],
        "training_data": f"{_names(sources)}, without the last {held_out} rows, "
        "which were held out to choose the best step",
        "hardware": f"{record['num_processes']} process(es) on {record['device']}",
        "hours": sum(run["hours"] for run in runs),
        "encoder_revision": runs[0].get("encoder_revision"),
        "versions": record.get("versions", {}),
        "datasets": list(dict.fromkeys(named["repo_id"] for named in on_hub if named)),
        "language": [language] if isinstance(language, str) else language,
        "license": config.get("license"),
        "training_config": record["config"],
        "notes": [*_parts(runs), *_learning_curve(logs, runs)],
        "results": [
            EvaluationResult(
                dataset=f"{_source_name(sources[-1])}, its last {held_out} rows, asking about {_num_asked(config)}",
                protocol="strict",
                seeds=[0],
                rows={_num_held(config): {kind: metrics[f"eval_{kind}"] for kind in kinds}},
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


def _fields(run: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run by their own names, for its record may be older than their groups."""
    config = run["config"]
    groups = [value for value in config.values() if isinstance(value, dict)]
    return {name: value for group in (config, *groups) for name, value in group.items()}


def _parts(runs: list[dict[str, Any]]) -> list[str]:
    """What each run was, if there were several."""
    if len(runs) == 1:
        return []
    parts = []
    for number, run in enumerate(runs, start=1):
        stages = ", ".join(f"{stage['name']} ({stage['steps']})" for stage in run["config"]["stages"])
        what = f"to step {run['step']} of the stages {stages}, {run['hours']:.1f} hours, on {_names(_sources(run))}"
        parts.append(f"Run {number} of {len(runs)}: {what}.")
    return parts


def _sources(run: dict[str, Any]) -> list[DataSource]:
    sources = _fields(run)["train_file"]
    return [DataSource.parse(source) for source in (sources if isinstance(sources, list) else [sources])]


def _names(sources: list[DataSource]) -> str:
    return " and ".join(dict.fromkeys(_source_name(source) for source in sources))


def _source_name(source: DataSource) -> str:
    """A file on the Hub wholly, one of this machine without its directory."""
    half = {"train": "the training half of ", "held_out": "the held-out half of ", None: ""}[source.half]
    return half + (source.path if named_on_hub(source.path) else Path(source.path).name)


def _precision(config: dict[str, Any]) -> str:
    dtype = config.get("base_dtype") or ("float32" if config["mixed_precision"] == "no" else "auto")
    return "the precision it is published in" if dtype == "auto" else dtype


def _num_held(config: dict[str, Any]) -> int:
    return config["num_eval_examples"] + (config.get("num_eval_training_facts") or 0)


def _num_asked(config: dict[str, Any]) -> int:
    return min(config["num_eval_examples"], config["num_eval_questions"])


def _learning_curve(logs: dict[str, list[dict[str, Any]]], runs: list[dict[str, Any]]) -> list[str]:
    """The curve of the log with the most evaluations, and of how many facts, where the run that wrote it is known."""
    evaluations = {name: [line for line in log if "eval_reliability" in line] for name, log in logs.items()}
    evaluations[METRICS_LOG] = [line for line in evaluations[METRICS_LOG] if line["step"] <= runs[-1]["step"]]
    name, lines = max(evaluations.items(), key=lambda item: len(item[1]))
    if not lines:
        return []
    kinds = [kind for kind in KINDS if all(f"eval_{kind}" in line for line in lines)]
    scores = [" / ".join(f"{line[f'eval_{kind}']:.0f}" for kind in kinds) for line in lines]
    points = ", ".join(f"step {line['step']}: {score}" for line, score in zip(lines, scores, strict=True))
    writers = runs[-1:] if name == METRICS_LOG else _writers(logs[name], runs)
    numbers = {
        f" with {_num_held(fields):,} facts held, {_num_asked(fields):,} asked about"
        for fields in map(_fields, writers)
    }
    how = numbers.pop() if len(numbers) == 1 else ""
    of = f", from {name}, the one with the most evaluations of {len(logs)} logs" if len(logs) > 1 else ""
    return [f"Learning curve ({' / '.join(kinds)}{how}{of}): {points}."]


def _writers(log: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that a log may be of, by the stages and the steps in it."""
    stages = {line["stage"] for line in log if "stage" in line}
    return [
        run
        for run in runs
        if stages <= {stage["name"] for stage in run["config"]["stages"]}
        and log[-1]["step"] <= sum(stage["steps"] for stage in run["config"]["stages"])
    ]
