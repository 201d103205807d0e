from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipe_hf import RecipeForCausalLM
from recipe_hf.evaluation.measuring.editing import evaluate_editing
from recipe_hf.training import sweep as module
from recipe_hf.training.sweep import plot_sweep, run_sweep, sweep_page
from tests.tiny_recipe import tiny_base
from tests.tiny_training import EXAMPLES, tiny_config, write_counterfact, write_parts


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


def test_each_number_is_trained_and_evaluated_once(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = shutil.copytree(parts, tmp_path / "parts")
    config, output = tiny_config(parts, tmp_path / "runs", num_eval_questions=2), tmp_path / "sweep.json"
    trained: list[int] = []
    trainer = module.Trainer

    class Counted(trainer):
        def train(self, resume: bool = False) -> Path:
            if trained == [1]:
                raise KeyboardInterrupt
            trained.append(self.config.model.num_continuous_prompt_tokens)
            return super().train(resume)

    def run(**changes: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {"num_edits": 4, "num_questions": 3, "output": output} | changes
        return run_sweep(config, [1, 2], "tiny", EXAMPLES, **arguments)

    monkeypatch.setattr(module, "Trainer", Counted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [r["prompt_tokens"] for r in json.loads(output.read_text())["results"]] == [1]
    monkeypatch.setattr(module, "Trainer", trainer)
    record = run()
    assert trained == [1] and json.loads(output.read_text()) == json.loads(json.dumps(record))
    assert record["command"] == "sweep" and [row[:3] for row in record["rows"]] == [["strict", n, "4"] for n in "12"]
    assert all(len(row) == len(record["columns"]) for row in record["rows"])
    for result in record["results"]:
        best = tmp_path / "runs" / f"{result['prompt_tokens']}-prompt-tokens" / "best"
        model = RecipeForCausalLM.from_pretrained(best, base_model=str(parts / "base"))
        assert model.config.num_continuous_prompt_tokens == result["prompt_tokens"]
        assert result["metrics"] == evaluate_editing(model, EXAMPLES, 4, num_questions=3).metrics
    with pytest.raises(ValueError, match="num_edits was 4, now 5"):
        run(num_edits=5)
    before = output.read_bytes()
    write_counterfact(parts / "train.json", [*EXAMPLES[1:], EXAMPLES[0]])
    with pytest.raises(ValueError, match="another run: train_file of contents of training was '25, SHA-256"):
        run()
    write_counterfact(parts / "train.json")
    tiny_base(seed=1).save_pretrained(parts / "base")
    with pytest.raises(ValueError, match="another run: base_weights of start of training was"):
        run()
    assert output.read_bytes() == before
    page = sweep_page(record)
    assert "| protocol | prompt tokens | facts | reliability |" in page and "warm start 2, heads 3" in page
    plot_sweep(tmp_path / "sweep.png", record)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("lengths", "num_edits", "protocols", "message"),
    [
        ([], 4, ["strict"], r"lengths must be different numbers of at least 1, got \[\]"),
        ([1, 1], 4, ["strict"], "lengths must be different numbers"),
        ([0], 4, ["strict"], "lengths must be different numbers"),
        ([1], 99, ["strict"], "num_edits must be between 1 and the 25 facts of tiny, got 99"),
        ([1], 4, ["lenient"], "protocol must be one of"),
    ],
)
def test_what_makes_no_sense(parts, tmp_path, lengths, num_edits, protocols, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(tiny_config(parts, tmp_path), lengths, "tiny", EXAMPLES, num_edits, protocols=protocols)
