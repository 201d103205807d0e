from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipe_hf.evaluation.held import hold

from recipe_hf.evaluation.asking.general import load_prompts
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


def test_fired_are_those_that_the_model_retrieves_a_fact_for():
    prompts = GeneralPrompts([*UNRELATED, *PROMPTS])
    with hold(model(), EXAMPLES) as held:
        found = prompts.fired(held)
        right = {hit.statement: hit for hit in model().retrieve(PROMPTS)}
    assert found["prompts"] == 9 and [row["prompt"] for row in found["fired"]] == PROMPTS
    for row in found["fired"]:
        hit = right[row["statement"]]
        assert (row["score"], row["threshold"]) == pytest.approx((hit.score, hit.threshold), rel=1e-4)
    with hold(model(), EXAMPLES[:1]) as held:
        expected = [
            text for text, hit in zip(prompts.texts, model().retrieve(prompts.texts), strict=True) if hit.fired
        ]
        assert [row["prompt"] for row in prompts.fired(held)["fired"]] == expected != PROMPTS


def test_facts_held_alone_take_turns():
    prompts = GeneralPrompts([EXAMPLES[i].prompt for i in (0, 0, 2, 2)])
    with hold(model(), EXAMPLES[:3], alone=True) as held:
        fired = prompts.fired(held)["fired"]
    assert [row["statement"] for row in fired] == [f"{EXAMPLES[i].prompt} {EXAMPLES[i].answer}" for i in (0, 2)]
