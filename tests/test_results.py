"""`make results`: steps are resumed and timed, and page, README and card say what the summary says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from recipe_hf.cards import write_model_card
from recipe_hf.cli import app
from scripts import results, results_page
from tests.cards.test_model_card import make_checkpoint, make_run
from tests.tiny_recipe import FACTS, UNRELATED, tiny_base, tiny_recipe


def evaluation(dataset: str, by_protocol: dict[str, list[int]], asked: int | None = None) -> dict[str, Any]:
    def metrics(number: int) -> dict[str, list[float | None]]:
        names = [*results_page.COLUMNS, "general_fired/general-rte.jsonl", "locality_nearest"]
        return {name: [90.0 + i - number / 10_000, 0.5] for i, name in enumerate(names)}

    head = {"dataset": dataset, "seeds": [0, 1], "num_questions": asked, "as_statements": False}
    head |= {"base_model": "tiny", "weights": "0123", "dtype": "float32"}
    protocols = {p: {str(n): metrics(n) for n in numbers} for p, numbers in by_protocol.items()}
    questions = {
        p: {str(n): {"reliability": min(n, asked or n)} for n in numbers} for p, numbers in by_protocol.items()
    }
    return head | {"asked": questions, "protocols": protocols}


SUMMARY: dict[str, Any] = {
    "checkpoint": "checkpoint",
    "times": {"counterfact": {"seconds": 61.0, "finished": True, "machine": "2 threads"}},
    "evaluations": {
        "counterfact": evaluation("counterfact-edit.json", {"strict": [1, 1000, 10000]}, 100),
        "statements": evaluation("counterfact-edit.json, told as statements", {"strict": [1000, 10000]}, 100),
        "zsre": evaluation("knowedit-zsre.json, half held_out", {"strict": [652]}),
        "wiki": evaluation("knowedit-wiki-recent.json, half held_out", {"strict": [999]}, 500),
        "protocols": evaluation("counterfact-edit.json", {"paper": [1000], "generation": [1000]}, 50),
        "probes": evaluation("counterfact-edit.json", {"strict": [1000]}, 50),
    },
    "failures": {
        "counterfact": {
            "missed": {
                "description": "The gate stayed shut",
                "share": 2.5,
                "examples": [
                    {"kind": "generality", "query": "Who | is it?", "fact": "It is Bo", "said": "", "expected": "Bo"}
                    | {"score": 1.0, "threshold": 1.5}
                ],
            }
        }
    },
    "tables": {"compare": "# Editors\n\n| editor | reliability |\n| --- | ---: |\n| mine | 1.0 |"},
    "unseen": {"wordings": {"prompts": {"asked": 30, "right": 29, "wrong": ["x"]}}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Mine\n\n<!-- results -->\nold\n<!-- /results -->\n\nThe end.\n")
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    write_model_card(checkpoint, make_run())
    return tmp_path


def test_pages_say_what_the_summary_says(root: Path):
    written = [
        path.relative_to(root).as_posix() for path in results_page.write_pages(SUMMARY, root, Path("checkpoint"))
    ]
    assert written == ["docs/results.md", "README.md", "checkpoint/README.md"]
    page, readme = (root / "docs/results.md").read_text(), (root / "README.md").read_text()
    assert "| 1,000 | 100 | 89.9 ± 0.5 | 90.9 ± 0.5 | 91.9 ± 0.5 | 96.4 | 96.0 | 93.7 |" in page
    assert "| 1 | 1 | 90.0 ± 0.5 | 91.0 ± 0.5 | 92.0 ± 0.5 | – | – | – |" in page
    assert "**The gate stayed shut: 2.5%.**" in page
    assert "| Who \\| is it? | generality | It is Bo (1.0, 1.5) | (nothing) | Bo |" in page
    assert "## Against other editors\n\n### Editors\n\n| editor |" in page
    assert "Not measured" in page.split("## Ablations")[1].split("## The number of prompt tokens")[0]
    assert "| `wordings` | 29 of 30 |" in page and "| together | 61 |" in page
    assert readme.startswith("# Mine\n\n<!-- results -->\n") and readme.endswith("<!-- /results -->\n\nThe end.\n")
    assert "old" not in readme and "96.4 / 96.0 / 93.7 and 95.5 / 93.8 / 90.8" in readme
    assert "| statement and answer | 10,000 | 100 | 89.0 ± 0.5 |" in readme
    assert "| ZSRE of KnowEdit, held-out half | 652 | 652 |" in readme
    assert "held-out halves | 999 | 500 |" in readme
    assert "| CounterFact | `generation` | 1,000 | 50 | 89.9 ± 0.5 |" in readme and "`paper`" not in readme
    assert "| CounterFact | `paper` | 1,000 | 50 | 2 |" in page
    assert "Protocol `strict`; asked were 50 of reliability:" in page


def test_pages_are_the_same_the_second_time(root: Path):
    files = list(results_page.write_pages(SUMMARY, root, Path("checkpoint")))
    first = [path.read_bytes() for path in files]
    assert [path.read_bytes() for path in results_page.write_pages(SUMMARY, root, Path("checkpoint"))] == first


def test_card_has_the_figures_in_its_text_and_metadata(root: Path):
    before = ModelCard.load(root / "checkpoint/README.md")
    list(results_page.write_pages(SUMMARY, root, Path("checkpoint")))
    card = ModelCard.load(root / "checkpoint/README.md")
    values = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    name = "counterfact-edit.json, asking about at most 100 of the facts held"
    assert values[name, "reliability, protocol strict, 10,000 edits"] == 89.0
    assert "| 10,000 | 89.0 ± 0.5 |" in card.text and "CounterFact, test part" not in card.text
    assert card.text.split("## Training")[1] == before.text.split("## Training")[1]
    assert card.text.split("## Results")[0] == before.text.split("## Results")[0]


def test_a_readme_without_marks_is_refused(root: Path):
    (root / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match="must have a line <!-- results -->"):
        list(results_page.write_pages(SUMMARY, root, Path("checkpoint")))


def test_a_summary_of_few_steps_makes_a_page(root: Path):
    few = SUMMARY | {"evaluations": {}, "failures": {}, "tables": {}}
    list(results_page.write_pages(few, root, Path("checkpoint")))
    page = (root / "docs/results.md").read_text()
    assert "Not measured" in page.split("## Against other editors")[1].split("##")[0]


def test_steps_are_timed_and_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(results, "STEPS", {"one": ["evaluate"], "two": ["evaluate"]})
    log = tmp_path / "log"

    def command(step: str, *_: Any) -> list[str]:
        fails = "raise SystemExit(3)" if step == "two" and not log.with_suffix(".ok").exists() else ""
        return [sys.executable, "-c", f"open({str(log)!r}, 'a').write({step!r}); {fails}"]

    monkeypatch.setattr(results, "_command", command)
    with pytest.raises(typer.Exit):
        results.run(None, checkpoint)
    times = json.loads((results.results_directory(checkpoint) / "times.json").read_text())
    assert {step: time["finished"] for step, time in times.items()} == {"one": True, "two": False}
    log.with_suffix(".ok").touch()
    results.run(None, checkpoint)
    results.run(["one"], checkpoint)
    assert log.read_text() == "onetwotwo" and "one: finished before" in capsys.readouterr().out
    with pytest.raises(typer.BadParameter, match="STEP must be one of one, two, got three"):
        results.run(["three"], checkpoint)
    first = results.results_directory(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"others")
    assert results.results_directory(checkpoint) != first


def test_every_step_is_a_command_of_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    Path("checkpoint/config.json").write_text('{"model_type": "recipe"}')
    Path("data").mkdir()
    Path("base.gguf").touch()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for step in results.STEPS:
        words = results._command(step, Path("checkpoint"), "base.gguf", "float32", Path("results/x"))
        for word in words:
            if word.startswith("data/"):
                Path(word).touch()
        if step != "unseen":
            name = words[1]
            commands[name].make_context(name, words[2:], resilient_parsing=False)


def test_small_steps_become_pages(root: Path, monkeypatch: pytest.MonkeyPatch):
    """The commands themselves, on a tiny checkpoint and in this process, then summary and pages."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'recipe-hf[harness]'")
    monkeypatch.chdir(root)
    monkeypatch.setattr(results, "ROOT", root)
    monkeypatch.setattr(results, "SUMMARY", root / "docs/results.json")
    monkeypatch.setattr(results, "IMAGES", root / "docs/images")
    checkpoint, base = root / "checkpoint", root / "base"
    tiny_recipe().save_pretrained(checkpoint)
    tiny_base().save_pretrained(base)
    write_model_card(checkpoint, make_run())
    rows = [
        {"prompt": prompt, "answer": answer, "rephrasings": [prompt], "unrelated": [unrelated]}
        for (prompt, answer), unrelated in zip(FACTS, UNRELATED, strict=False)
    ]
    (root / "facts.json").write_text(json.dumps(rows))
    row = {"sentence1": "It rains.", "sentence2": "It is dry.", "label": "not_entailment"}
    (root / "general-rte.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    facts = ["--dataset", "facts.json"]
    steps = {
        "efficiency": ["efficiency", *facts, "--num-edits", "1", "4", "--new-tokens", "2", "--repeats", "2"],
        "counterfact": [
            *("evaluate", *facts, "--num-edits", "1", "4", "--seeds", "0", "1", "--general", "general-rte.jsonl"),
            *("--num-questions", "3", "--plots"),
        ],
        "zsre": ["evaluate", *facts, "--half", "held_out"],
        "protocols": ["evaluate", *facts, "--protocol", "paper", "generation"],
        "harness": ["harness", "--facts", "facts.json", "--num-facts", "4", "--tasks", "local_rte", "--data", "."],
        "compare": ["compare", *facts, "--editors", "base", "recipe", "--num-edits", "4"],
    }
    monkeypatch.setattr(results, "STEPS", steps)
    monkeypatch.setattr(results, "EXAMPLES_OF", {"counterfact": (4, "strict"), "zsre": (None, "strict")})

    def in_this_process(words: list[str]) -> int:
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
        return result.exit_code

    monkeypatch.setattr(results, "_execute", in_this_process)
    results.run(None, Path("checkpoint"), "base")
    results.summary(Path("checkpoint"))
    summary = json.loads((root / "docs/results.json").read_text())
    assert set(summary["times"]) == set(steps) and set(summary["evaluations"]) == {"counterfact", "zsre", "protocols"}
    list(results_page.write_pages(summary, root, Path("checkpoint")))
    page = (root / "docs/results.md").read_text()
    assert "![Accuracy" in page and (root / "docs/images/results-counterfact.png").exists()
    assert "| 4 | base | " in page.split("## Against other editors")[1]
    assert "| rte | 3 | acc |" in page and "| facts held | RTE |" in page
    examples = [e for kind in summary["failures"]["counterfact"].values() for e in kind["examples"]]
    told = {f"{prompt} {answer}" for prompt, answer in FACTS}
    assert examples and {example["fact"] for example in examples} <= told
    assert ModelCard.load(checkpoint / "README.md").data.eval_results
