"""Runs of several cells: what is written, and that an interrupted run ends as an unbroken one does."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_hf.evaluation.asking import answers
from recipe_hf.evaluation.measuring.evaluation import Evaluation, run_evaluation
from tests.tiny_evaluation import EXAMPLES, model

EVALUATION = Evaluation("tiny", EXAMPLES, [1, 3, 4], [0, 1], ["strict", "paper", "generation"])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("run") / "run.json"
    run_evaluation(model(), EVALUATION, output, batch_size=3)
    assert [path.name for path in output.parent.iterdir()] == ["run.json"]
    return output.read_text()


def calls_of_the_base(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Rows of each call of the base; optionally, the user loses patience."""
    calls: list[int] = []
    for name in ("predict", "write"):
        original = getattr(answers, name)

        def counted(editor: Any, readings: Any, asked: Any, original: Any = original) -> Any:
            if len(calls) == stop_after:
                raise KeyboardInterrupt
            calls.append(len(readings))
            return original(editor, readings, asked)

        monkeypatch.setattr(answers, name, counted)
    return calls


def test_every_cell_is_there(unbroken: str):
    record = json.loads(unbroken)
    cells = [(r["num_edits"], r["seed"], r["protocol"]) for r in record["reports"]]
    assert cells == [(n, s, p) for n in (1, 3, 4) for s in (0, 1) for p in ("strict", "paper", "generation")]
    assert record["finished"] is True and record["dataset"] == "tiny"
    assert [len(r["outcomes"]) for r in record["reports"]] == [12] * 6 + [9] * 6 + [12] * 6
    assert set(record["reports"][0]["outcomes"][0]) >= {
        "kind",
        "query",
        "retrieved_id",
        "is_right_fact",
        "score",
        "threshold",
        "output",
        "expected",
    }


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9, 14])
def test_interrupted_run_ends_as_an_unbroken_one(unbroken: str, tmp_path: Path, monkeypatch, stop_after: int):
    output = tmp_path / "run.json"
    with monkeypatch.context() as patch:
        before = calls_of_the_base(patch, stop_after)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(model(), EVALUATION, output, batch_size=3)
    assert json.loads(output.read_text())["finished"] is False
    with monkeypatch.context() as patch:
        after = calls_of_the_base(patch)
        run_evaluation(model(), EVALUATION, output, batch_size=3)
    with monkeypatch.context() as patch:
        whole = calls_of_the_base(patch)
        run_evaluation(model(), EVALUATION, tmp_path / "whole.json", batch_size=3)
        assert before + after == whole
    assert output.read_text() == unbroken
    assert not output.with_suffix(".partial.jsonl").exists()


def test_unfinished_line_of_the_journal_is_asked_again(unbroken: str, tmp_path: Path, monkeypatch):
    output, journal = tmp_path / "run.json", tmp_path / "run.partial.jsonl"
    with monkeypatch.context() as patch:
        calls_of_the_base(patch, stop_after=6)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(model(), EVALUATION, output, batch_size=3)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-20])
    run_evaluation(model(), EVALUATION, output, batch_size=3)
    assert output.read_text() == unbroken


def test_finished_run_asks_nothing(unbroken: str, tmp_path: Path, monkeypatch):
    output = tmp_path / "run.json"
    output.write_text(unbroken)
    calls = calls_of_the_base(monkeypatch)
    reports = run_evaluation(model(), EVALUATION, output, batch_size=3)
    assert calls == [] and len(reports) == 18 and output.read_text() == unbroken


def test_cells_share_what_the_model_said(monkeypatch):
    calls = calls_of_the_base(monkeypatch)
    run_evaluation(model(), replace(EVALUATION, protocols=["strict"], num_edits=[4]))
    assert sum(calls) <= 4 + 4 + 4 + 2  # Two seeds with the same facts: one asks. Locality asks twice where it fires.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 2]}, r"seeds was \[0, 1\], now \[0, 2\]"),
        ({"protocols": ["strict"]}, "protocols was"),
        ({"examples": [replace(EXAMPLES[0], answer="Bo"), *EXAMPLES[1:]]}, "facts was '4, SHA-256"),
        ({"num_questions": 2}, "num_questions was None, now 2"),
        ({"as_statements": True}, "as_statements was False, now True"),
    ],
)
def test_file_of_another_run_is_refused_and_kept(unbroken: str, tmp_path: Path, changes, message: str):
    output = tmp_path / "run.json"
    output.write_text(unbroken)
    with pytest.raises(ValueError, match=f"holds another run: {message}.*Choose another file, or delete this one"):
        run_evaluation(model(), replace(EVALUATION, **changes), output)
    assert output.read_text() == unbroken


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": {}, "reports": [{"seed": 1}]}'])
def test_file_of_something_else_is_refused_and_kept(tmp_path: Path, content: str):
    output = tmp_path / "run.json"
    output.write_text(content)
    with pytest.raises(ValueError, match="holds (no evaluation to resume|another run)"):
        run_evaluation(model(), EVALUATION, output)
    assert output.read_text() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": ["strict", "lenient"]}, "protocol must be one of strict, paper, generation, got 'lenient'"),
        ({"num_edits": [1, 5]}, r"num_edits must be between 1 and the 4 facts of tiny, got \[5\]"),
        ({"seeds": []}, r"seeds must name one or more, none of them twice, got \[\]"),
        ({"seeds": [1, 1]}, r"seeds must name one or more, none of them twice, got \[1, 1\]"),
        ({"num_questions": 0}, "num_questions must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(EVALUATION, **changes)


def test_another_base_is_another_run(unbroken: str, tmp_path: Path):
    output = tmp_path / "run.json"
    output.write_text(unbroken)
    other = copy.deepcopy(model())
    with torch.no_grad():
        next(iter(other.lm.get_decoder().layers)).mlp.down_proj.weight.mul_(1.01)
    with pytest.raises(ValueError, match="holds another run: base_weights was"):
        run_evaluation(other, EVALUATION, output, batch_size=3)


def test_another_temperature_is_another_run(unbroken: str, tmp_path: Path):
    output = tmp_path / "run.json"
    output.write_text(unbroken)
    other = copy.deepcopy(model())
    other.config.similarity_temperature = 0.1
    with pytest.raises(ValueError, match=r"holds another run: similarity_temperature was 1\.0, now 0\.1"):
        run_evaluation(other, EVALUATION, output, batch_size=3)


@pytest.mark.parametrize("line", ["no JSON", "[[true, 5]]", "[5]"])
def test_damaged_journal_is_named(unbroken: str, tmp_path: Path, line: str):
    output, journal = tmp_path / "run.json", tmp_path / "run.partial.jsonl"
    record = json.loads(unbroken)
    output.write_text(json.dumps(record | {"finished": False, "reports": []}))
    journal.write_text(f"[]\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2 of {journal} is damaged"):
        run_evaluation(model(), EVALUATION, output, batch_size=3)


@pytest.mark.parametrize("missing", ["reports", "score"])
def test_damaged_reports_are_named(unbroken: str, tmp_path: Path, missing: str):
    output = tmp_path / "run.json"
    record = json.loads(unbroken)
    del (record if missing == "reports" else record["reports"][0]["outcomes"][0])[missing]
    output.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"output {output} is damaged"):
        run_evaluation(model(), EVALUATION, output, batch_size=3)
