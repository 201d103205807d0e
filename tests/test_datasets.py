from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe_hf.datasets import EditExample, load_counterfact

ROW = {
    "prompt": "The mother tongue of Danielle Darrieux is",
    "target_new": " English ",
    "subject": "Danielle Darrieux",
    "rephrase_prompt": "Danielle Darrieux, a native",
    "locality_prompt": "Léon Blum spoke",
    "locality_ground_truth": "French",
    "ground_truth": "French",
}


def write(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_rows_become_examples_in_order(tmp_path: Path):
    first, second = load_counterfact(write(tmp_path / "cf.json", [ROW, ROW | {"target_new": "Welsh"}]))
    assert first == EditExample(
        prompt="The mother tongue of Danielle Darrieux is",
        answer="English",
        subject="Danielle Darrieux",
        rephrase_prompt="Danielle Darrieux, a native",
        locality_prompt="Léon Blum spoke",
        locality_answer="French",
    )
    assert second.answer == "Welsh"


@pytest.mark.parametrize("value", [None, "  ", 3, ["x"]])
def test_bad_field_is_named_with_its_row(tmp_path: Path, value: object):
    path = write(tmp_path / "cf.json", [ROW, ROW | {"rephrase_prompt": value}])
    with pytest.raises(ValueError, match="row 1: field 'rephrase_prompt' must be a non-empty string"):
        load_counterfact(path)


def test_missing_field_is_named(tmp_path: Path):
    row = {name: value for name, value in ROW.items() if name != "subject"}
    with pytest.raises(ValueError, match="row 0: field 'subject' .* got None"):
        load_counterfact(write(tmp_path / "cf.json", [row]))


@pytest.mark.parametrize("rows", [{"rows": [ROW]}, [], "x", None])
def test_what_is_not_a_list_of_rows_is_refused(tmp_path: Path, rows: object):
    with pytest.raises(ValueError, match=r"cf\.json must hold a non-empty JSON list of rows"):
        load_counterfact(write(tmp_path / "cf.json", rows))


def test_row_that_is_not_a_mapping_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="row 1: field 'prompt'"):
        load_counterfact(write(tmp_path / "cf.json", [ROW, "x"]))


def test_broken_json_is_refused(tmp_path: Path):
    (tmp_path / "cf.json").write_text('[{"prompt": ')
    with pytest.raises(ValueError, match=r"cf\.json is not valid JSON"):
        load_counterfact(tmp_path / "cf.json")


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_counterfact(tmp_path / "none.json")
