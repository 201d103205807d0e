"""Editors that write into MLPs, by the names that the command line knows them by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from recipe_hf.evaluation.editors import EDITORS, EditorOptions
from recipe_hf.evaluation.measuring.comparison import Comparison, run_comparison
from tests.evaluation.editors.memory.editors_at_hand import FACTS, changed, recipe, weights

WRITING = ("rome", "wilke", "r-rome", "memit", "alphaedit", "wise", "t-patcher", "mend", "malmen")


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))


def options(tmp_path: Path) -> EditorOptions:
    file = tmp_path / "text.txt"
    file.write_text("Rivers run to the sea. " * 20, encoding="utf-8")
    return EditorOptions(key_text=str(file))


def test_names():
    assert set(WRITING) <= set(EDITORS)
    assert all(EDITORS[name].trains for name in WRITING)
    needing_rows = {name for name in WRITING if EDITORS[name].is_tuned}
    assert needing_rows == {"rome", "r-rome", "memit", "alphaedit", "mend", "malmen"}
    rows = [replace(fact, rephrasings=(fact.prompt,)) for fact in FACTS]
    with pytest.raises(ValueError, match="validation rows are needed for rome, mend, got none"):
        Comparison("tiny", rows, editors=["rome", "wilke", "mend"], num_edits=[1])


def test_a_comparison_of_them(tmp_path: Path):
    model = recipe(num_layers=2)
    copy = weights(model.lm)
    rows = [replace(fact, rephrasings=(fact.prompt,)) for fact in FACTS]
    comparison = Comparison(
        "tiny",
        rows,
        editors=["rome", "t-patcher"],
        num_edits=[2],
        protocols=["strict", "generation"],
        validation=rows,
        options=options(tmp_path),
    )
    record = run_comparison(model, comparison)
    assert [(r["editor"], r["protocol"]) for r in record["results"]] == [
        (name, protocol) for name in ("rome", "t-patcher") for protocol in ("strict", "generation")
    ]
    settings = record["results"][0]["settings"]
    assert settings["layer"] == 0 and settings["contexts"] == 21 and "SHA-256" in settings["keys of"]
    assert record["results"][0]["inputs"] == {"keys of": settings["keys of"]}
    assert record["results"][2]["settings"]["patches"] > 0
    assert not changed(copy, model.lm)
    kept = [path.name for path in (tmp_path / "recipe-hf" / "key-moments").iterdir()]
    assert len(kept) == 2


def test_a_text_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="key_text must be a file that exists, got 'nowhere.txt'"):
        EDITORS["memit"].make(recipe(), EditorOptions(key_text="nowhere.txt"))
