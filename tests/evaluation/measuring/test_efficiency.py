from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.measuring.efficiency import measure_efficiency
from recipe_hf.evaluation.reporting.costs import efficiency_page
from tests.tiny_recipe import FACTS, UNRELATED, tiny_recipe

EXAMPLES = [EditExample(*fact, unrelated=((text, "x"),)) for fact, text in zip(FACTS, UNRELATED, strict=False)]


def test_times_and_sizes(tmp_path: Path):
    model = tiny_recipe()
    (kept,) = model.add_knowledge(["Bo plays the cello."])
    output = tmp_path / "out" / "efficiency.json"
    record = measure_efficiency(model, EXAMPLES, [1, 4], new_tokens=3, repeats=3, output=output)
    assert [fact.id for fact in model.knowledge] == [kept]
    assert json.loads(output.read_text()) == record and list(record["rows"]) == ["1", "4"]
    for row in record["rows"].values():
        assert row["key_bytes"] == 4 * model.config.knowledge_dim < row["disk_bytes"]
        assert row["memory_bytes"] is None
        assert all(row[name] > 0 for name in row if name.startswith(("edit", "base", "generate", "ratio")))
    page = efficiency_page(record)
    assert "3 new tokens" in page and page.count("\n| ") == 4


def test_numbers_that_were_measured_stand(tmp_path: Path):
    output = tmp_path / "efficiency.json"
    first = measure_efficiency(tiny_recipe(), EXAMPLES, [1], 2, 2, output)
    both = measure_efficiency(tiny_recipe(), EXAMPLES, [1, 2], 2, 2, output)
    assert both["rows"]["1"] == first["rows"]["1"] and set(both["rows"]) == {"1", "2"}
    with pytest.raises(ValueError, match="repeats was 2, now 3"):
        measure_efficiency(tiny_recipe(), EXAMPLES, [1], 2, 3, output)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ValueError, match=f"machine was '{threads} threads on .*', now '{threads + 1} threads on"):
            measure_efficiency(tiny_recipe(), EXAMPLES, [1], 2, 2, output)
    finally:
        torch.set_num_threads(threads)


def test_more_edits_than_facts_are_refused():
    with pytest.raises(ValueError, match=r"num_edits must be between 1 and the 4 facts at hand, got \[5\]"):
        measure_efficiency(tiny_recipe(), EXAMPLES, [1, 5])
