from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipe_hf.evaluation.measuring.evaluation import Evaluation, run_evaluation
from recipe_hf.evaluation.reporting.summary import FAILURES, failures, figure, summarize_record, summary_rows
from tests.tiny_evaluation import EXAMPLES, model

EVALUATION = Evaluation("tiny", EXAMPLES, [1, 4], [0, 1], ["strict", "generation"])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("run") / "run.json"
    run_evaluation(model(), EVALUATION, output)
    return json.loads(output.read_text())


def test_means_and_intervals_are_those_of_the_reports(record: dict[str, Any]):
    found = summarize_record(record)
    assert (
        found["dataset"] == "tiny"
        and found["seeds"] == [0, 1]
        and list(found["protocols"]) == ["strict", "generation"]
    )
    for protocol, by_number in found["protocols"].items():
        for number, metrics in by_number.items():
            reports = [r for r in record["reports"] if (r["protocol"], str(r["num_edits"])) == (protocol, number)]
            for name, (mean, interval) in metrics.items():
                values = [report["metrics"][name] for report in reports]
                assert mean == pytest.approx(sum(values) / 2, abs=1e-3)
                assert interval == pytest.approx(12.706 * abs(values[0] - values[1]) / 2, abs=1e-3)
    rows = summary_rows(found, "strict", numbers=[4])
    assert list(rows) == [4] and rows[4]["reliability"] == figure(found["protocols"]["strict"]["4"]["reliability"])
    assert len(json.dumps(found)) < len(json.dumps(record)) / 2


def test_unfinished_evaluations_are_not_summarised(record: dict[str, Any]):
    with pytest.raises(ValueError, match="The evaluation of tiny is not finished"):
        summarize_record(record | {"finished": False})


def outcome(**values: Any) -> dict[str, Any]:
    row = {"kind": "reliability", "query": "Q", "answer": "A", "retrieved_id": 0, "is_right_fact": True}
    row |= {
        "score": 2.0,
        "threshold": 1.0,
        "accuracy": 1.0,
        "fact_id": 0,
        "nearest_id": 0,
        "output": "A",
        "expected": "A",
    }
    return row | values


def test_failures_are_told_apart():
    rows = [
        outcome(),
        outcome(query="missed", retrieved_id=None, is_right_fact=False, accuracy=0.0, score=0.5),
        outcome(query="mixed up", retrieved_id=1, nearest_id=1, is_right_fact=False, accuracy=0.0),
        outcome(query="misspoken", accuracy=0.5, output="B"),
        outcome(kind="locality", query="left alone", concerns=False, retrieved_id=None),
        outcome(kind="locality", query="fired", concerns=False, retrieved_id=1, nearest_id=1, is_right_fact=False),
    ]
    head = {"num_edits": 2, "seed": 0, "protocol": "strict"}
    found = failures({"reports": [head | {"outcomes": rows}]}, 2, "strict", ["Q A", "R B"])
    assert {name: [e["query"] for e in kind["examples"]] for name, kind in found.items()} == {
        "missed": ["missed"],
        "wrong fact": ["mixed up"],
        "false fire": ["fired"],
        "wrong answer": ["misspoken"],
    }
    assert {name: kind["share"] for name, kind in found.items()} == {
        "missed": 25.0,
        "wrong fact": 25.0,
        "false fire": 50.0,
        "wrong answer": 25.0,
    }
    assert found["wrong fact"]["examples"][0] == {
        **{"kind": "reliability", "query": "mixed up", "fact": "R B", "said": "A", "expected": "A"},
        **{"score": 2.0, "threshold": 1.0},
    }
    assert set(found) == set(FAILURES)
    assert (
        failures({"reports": [head | {"outcomes": rows[:1] * 9}]}, 2, "strict", ["Q A"])["false fire"]["share"] is None
    )


def test_examples_are_the_same_each_time_and_not_more_than_asked_for():
    rows = [outcome(query=f"Q{i}", accuracy=0.0) for i in range(30)]
    record = {"reports": [{"num_edits": 2, "seed": 0, "protocol": "strict", "outcomes": rows}]}
    drawn = [failures(record, 2, "strict", ["Q A"], count=3)["wrong answer"]["examples"] for _ in range(2)]
    assert drawn[0] == drawn[1] and len({e["query"] for e in drawn[0]}) == 3


def test_a_summary_is_smaller_than_a_page_of_rows(record: dict[str, Any], tmp_path: Path):
    assert "outcomes" not in json.dumps(summarize_record(record))
