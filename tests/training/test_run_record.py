from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from recipe_hf.cards import write_model_card
from recipe_hf.training.run_record import describe_run
from tests.cards.test_model_card import make_checkpoint
from tests.tiny_training import grouped

HUB_FILES = ["zjunlp/KnowEdit:benchmark/ZsRE/train.json", "azhx/counterfact@v1:train.json"]


def run_record(step: int = 30, **config: Any) -> dict[str, Any]:
    values = {
        "base_model": "org/base",
        "encoder": "org/encoder",
        "train_file": "data/train.json",
        "mixed_precision": "no",
        "num_eval_examples": 50,
        "num_eval_questions": 10,
        "stages": [{"name": "heads", "steps": 30}],
    }
    metrics = {f"eval_{kind}": 90.0 for kind in ("reliability", "generality", "locality")}
    record = {"step": step, "hours": 1.0, "device": "cpu", "num_processes": 1, "metrics": metrics}
    return record | {"config": values | config}


def evaluated(step: int, score: float) -> dict[str, Any]:
    return {"step": step} | {f"eval_{kind}": score for kind in ("reliability", "generality", "locality")}


def write_log(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(path: Path, earlier: tuple[dict[str, Any], ...] = (), **config: Any) -> Path:
    """A checkpoint with the record of a run that was evaluated once."""
    make_checkpoint(path)
    (path / "training.json").write_text(json.dumps(run_record(**config) | {"earlier_runs": earlier}))
    write_log(path / "metrics.jsonl", {"step": 10, "stage": "heads"}, evaluated(30, 90.0))
    return path


def test_card_claims_the_license_and_language_of_the_config_only(tmp_path: Path):
    write_model_card(tmp_path, describe_run(write_run(tmp_path)))
    assert not {"license", "language", "datasets"} & ModelCard.load(tmp_path / "README.md").data.to_dict().keys()
    write_model_card(tmp_path, describe_run(write_run(tmp_path, license="mit", language="de")))
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.language) == ("mit", ["de"])
    assert describe_run(write_run(tmp_path, language=["en", "de"])).language == ["en", "de"]


def test_a_record_with_groups_is_told_as_one_without(tmp_path: Path):
    record = run_record(license="mit", num_eval_training_facts=7)
    flat = write_run(tmp_path / "flat", earlier=(record,), **record["config"])
    groups = grouped(**record["config"])
    assert groups.keys() == {"model", "data", "run", "stages"}
    new = write_run(tmp_path / "grouped")
    (new / "training.json").write_text(json.dumps(record | {"config": groups, "earlier_runs": [record]}))
    told = [describe_run(directory, training_config={}) for directory in (flat, new)]
    assert told[0] == told[1] and told[0].results[0].rows.keys() == {57}


def test_hub_data_of_all_runs_are_in_the_metadata_and_named_wholly(tmp_path: Path):
    sources = [{"path": HUB_FILES[0], "half": "train"}, {"path": HUB_FILES[1]}, "data/own.json"]
    first = run_record(train_file="org/first")
    run = describe_run(write_run(tmp_path, earlier=(first,), train_file=sources))
    assert run.datasets == ["org/first", "zjunlp/KnowEdit", "azhx/counterfact"]
    named = f"org/first and the training half of {HUB_FILES[0]} and {HUB_FILES[1]} and own.json"
    assert run.training_data.startswith(f"{named}, without the last 50 rows")
    write_model_card(tmp_path, run)
    assert ModelCard.load(tmp_path / "README.md").data.datasets == run.datasets


def test_a_file_here_is_no_hub_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a:b.json").write_text("[]")
    run = describe_run(write_run(tmp_path / "run", train_file=["data/a:b.json", "data/gone.jsonl", "/x/y:z.json"]))
    assert run.datasets == [] and run.training_data.startswith("a:b.json and gone.jsonl and y:z.json, without")


@pytest.mark.parametrize(
    ("mixed_precision", "base_dtype", "said"),
    [
        ("no", None, "float32"),
        ("no", "bfloat16", "bfloat16"),
        ("no", "auto", "the precision it is published in"),
        ("bf16", None, "the precision it is published in"),
        ("bf16", "float32", "float32"),
    ],
)
def test_card_says_what_the_base_was_held_in(tmp_path: Path, mixed_precision: str, base_dtype: str | None, said: str):
    run = describe_run(write_run(tmp_path, mixed_precision=mixed_precision, base_dtype=base_dtype))
    assert run.base_weights == f"`org/base`, in {said}"


def test_learning_curve_says_how_many_facts_were_held_and_asked_about(tmp_path: Path):
    (curve,) = describe_run(write_run(tmp_path, num_eval_training_facts=1000)).notes
    assert curve == (
        "Learning curve (reliability / generality / locality with 1,050 facts held, 10 asked about): "
        "step 30: 90 / 90 / 90."
    )


def test_learning_curve_is_that_of_the_run_with_the_most_evaluations(tmp_path: Path):
    first = run_record(
        num_eval_questions=40, stages=[{"name": "warm start", "steps": 20}, {"name": "all", "steps": 20}]
    )
    write_run(tmp_path, earlier=(first,))
    lines = [
        {"step": 1, "stage": "warm start"},
        evaluated(20, 50.0),
        {"step": 21, "stage": "all"},
        evaluated(40, 80.0),
    ]
    write_log(tmp_path / "metrics-first.jsonl", *lines)
    curve = describe_run(tmp_path).notes[-1]
    assert curve == (
        "Learning curve (reliability / generality / locality with 50 facts held, 40 asked about, from "
        "metrics-first.jsonl, the one with the most evaluations of 2 logs): step 20: 50 / 50 / 50, "
        "step 40: 80 / 80 / 80."
    )
    # One that no run in the record can have written.
    write_log(tmp_path / "metrics-first.jsonl", *lines[:-1], evaluated(50, 80.0))
    assert "locality, from metrics-first.jsonl" in describe_run(tmp_path).notes[-1]
