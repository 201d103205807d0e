from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.asking.answers import Answers
from recipe_hf.evaluation.asking.general import load_prompts
from recipe_hf.evaluation.asking.trials import Trial
from recipe_hf.evaluation.editors.editor import Unedited
from recipe_hf.evaluation.editors.retrieval import recipe
from recipe_hf.evaluation.measuring.editing import edited, run_trial
from tests.tiny_evaluation import EXAMPLES, model
from tests.tiny_recipe import PROMPTS, UNRELATED


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_every_layout_is_read(tmp_path: Path):
    rows = [
        "Snow is",
        {"text": "Once upon a time", "id": 3},
        {"prompt": "Water boils at"},
        {"question": "Two plus two?", "choices": ["3", "4"], "answer": 1},
        {"goal": "Clean a pan.", "sol1": "Soap.", "sol2": "Sand."},
        {"sentence1": "It rains {here}.", "sentence2": "It is wet."},
    ]
    assert load_prompts(write(tmp_path / "prompts.jsonl", *rows)) == [
        "Snow is",
        "Once upon a time",
        "Water boils at",
        "Two plus two?\nA. 3\nB. 4\nAnswer:",
        "Question: Clean a pan.\nAnswer:",
        "It rains {here}.\nQuestion: It is wet. True or False?\nAnswer:",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x"}, "line 2 must be a string or an object with text; prompt; .* its fields are body"),
        (7, "line 2 must be a string or an object"),
        ({"text": ""}, "line 2: field 'text' must not be empty, got ''"),
        ({"question": "Why?", "choices": "none"}, "line 2: field 'choices' must not be empty, got 'none'"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, row: object, message: str):
    with pytest.raises(ValueError, match=message):
        load_prompts(write(tmp_path / "prompts.jsonl", "fine", row))


def test_only_a_newline_ends_a_line(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "One\u2028line"}\n"Another\x85one"\n', encoding="utf-8")
    assert load_prompts(path) == ["One\u2028line", "Another\x85one"]


def test_line_that_is_not_json(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text('"fine"\n\nnot json\n')
    with pytest.raises(ValueError, match="line 3 is not valid JSON"):
        load_prompts(tmp_path / "prompts.jsonl")


def test_empty_file(tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="must hold a prompt to a line, got none"):
        load_prompts(tmp_path / "prompts.jsonl")


def fired(facts: list[EditExample], prompts: list[str], num_edits: int | None = None) -> dict[str, Any]:
    trial = replace(Trial.draw(facts, num_edits), facts=facts, general={"mine": prompts})
    (report,) = run_trial(recipe(model()), trial, ["strict"], Answers())
    return report.general["mine"]


def test_fired_are_those_that_the_model_retrieves_a_fact_for():
    prompts = [*UNRELATED, *PROMPTS]
    found = fired(EXAMPLES, prompts)
    with edited(recipe(model()), EXAMPLES):
        right = {hit.statement: hit for hit in model().retrieve(PROMPTS)}
    assert found["prompts"] == 9 and [row["prompt"] for row in found["fired"]] == PROMPTS
    for row in found["fired"]:
        hit = right[row["statement"]]
        assert (row["score"], row["threshold"]) == pytest.approx((hit.score, hit.threshold), rel=1e-4)
    with edited(recipe(model()), EXAMPLES[:2]):
        expected = [text for text, hit in zip(prompts, model().retrieve(prompts), strict=True) if hit.fired]
    assert [row["prompt"] for row in fired(EXAMPLES[:2], prompts)["fired"]] == expected != PROMPTS


def test_facts_held_alone_take_turns():
    found = fired(EXAMPLES[:3], [EXAMPLES[i].prompt for i in (0, 0, 2, 2)], num_edits=1)
    statements = [f"{EXAMPLES[i].prompt} {EXAMPLES[i].answer}" for i in (0, 2)]
    assert [row["statement"] for row in found["fired"]] == statements


def test_editors_that_look_nothing_up_use_no_fact_for_them():
    trial = Trial.draw(EXAMPLES, general={"mine": PROMPTS})
    (report,) = run_trial(Unedited(model()), trial, ["strict"], Answers())
    assert not report.general and not any("fired" in name or "calibration" in name for name in report.metrics)
