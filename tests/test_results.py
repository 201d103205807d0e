"""`make results`: steps are resumed and timed, and page, README and card say what the summary says."""

from __future__ import annotations

import importlib
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


def counts(**right: int) -> dict[str, Any]:
    """Of 30 texts of each kind, so many came out right."""
    return {kind: {"asked": 30, "right": number, "wrong": ["x"]} for kind, number in right.items()}


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
    "gate": {"without": {"sets": {"statements": counts(asks=29, misses=20)}, "calibration": {}}},
}


def with_verifier() -> dict[str, Any]:
    """The same, once the verifier's steps were run."""
    calibration = {"at least 0.9": {"fired": 30, "right": 27}, "0.5 to 0.9": {"fired": 0, "right": 0}, "error": 0.042}
    sets = {"statements": counts(asks=30, misses=24), "updates": counts(retires=15, unrelated=30, stays=21)}
    verified = evaluation("counterfact-edit.json", {"strict": [1, 1000, 10000]}, 100)
    verified["protocols"]["strict"]["1000"] |= {
        "locality_fired": [0.3, 0.1],
        "general_fired/general-rte.jsonl": [7, 0],
    }
    return SUMMARY | {
        "evaluations": SUMMARY["evaluations"] | {"verified": verified, "verified-general": verified},
        "gate": SUMMARY["gate"] | {"with": {"sets": sets, "calibration": {"statements": calibration}}},
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
    assert "| `statements` | asks | 30 | 96.7 |" in page and "| together | 61 |" in page
    assert "With and without the verifier" not in readme and "| `statements` | 96.7 | 33.3 |" in readme
    assert readme.startswith("# Mine\n\n<!-- results -->\n") and readme.endswith("<!-- /results -->\n\nThe end.\n")
    assert "old" not in readme and "96.4 / 96.0 / 93.7 and 95.5 / 93.8 / 90.8" in readme
    assert "| statement and answer | 10,000 | 100 | 89.0 ± 0.5 |" in readme
    assert "| ZSRE of KnowEdit, held-out half | 652 | 652 |" in readme
    assert "held-out halves | 999 | 500 |" in readme
    assert "| CounterFact | `generation` | 1,000 | 50 | 89.9 ± 0.5 |" in readme and "`paper`" not in readme
    assert "| CounterFact | `paper` | 1,000 | 50 | 2 |" in page
    assert "Protocol `strict`; asked were 50 of reliability:" in page


def test_pages_put_the_verifier_beside_the_form_without(root: Path):
    list(results_page.write_pages(with_verifier(), root, Path("checkpoint")))
    page, readme = (root / "docs/results.md").read_text(), (root / "README.md").read_text()
    card = ModelCard.load(root / "checkpoint/README.md")
    assert page.index("with and without the verifier") < page.index("told as whole statements")
    without = (
        "| CounterFact | `strict` | 1,000 | 100 | without the verifier | 89.9 ± 0.5 | 90.9 ± 0.5 | 91.9 ± 0.5 | 96.9"
    )
    with_it = "| CounterFact | `strict` | 1,000 | 100 | with it | 89.9 ± 0.5 | 90.9 ± 0.5 | 91.9 ± 0.5 | 0.3 ± 0.1"
    assert f"{without} ± 0.5 | 97.9 ± 0.5 |\n{with_it} | 97.9 ± 0.5 |" in page
    assert (
        "| 10,000 | 100 | with it |" in readme
        and "| 1,000 | 100 | with it |" not in readme
        and "| 1 | with it |" not in page
    )
    assert "| facts held | RTE |\n| ---: | ---: |\n| 1 | 99.00 ± 0.50 |\n| 1,000 | 7.00 |" in page
    assert "| `statements` | asks | 30 | 96.7 | 100.0 |" in page and "| `updates` | retires | 30 | – | 50.0 |" in page
    assert (
        "| `statements` | misses | 30 | 33.3 | 20.0 |" in page and "| `updates` | unrelated | 30 | – | 0.0 |" in page
    )
    assert "| `statements` | with it | 30, 90.0 right | 0 | 4.2 |" in page
    in_short = "| `statements` | 96.7 | 100.0 | 33.3 | 20.0 |\n| `updates` | – | 50.0 | – | 15.0 |"
    assert in_short in readme and in_short in card.text
    names = {result.dataset_name for result in card.data.eval_results}
    assert "counterfact-edit.json, with the verifier, asking about at most 100 of the facts held" in names


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
    times = json.loads((results.results_directory(checkpoint, "one") / "times.json").read_text())
    assert {step: time["finished"] for step, time in times.items()} == {"one": True, "two": False}
    log.with_suffix(".ok").touch()
    results.run(None, checkpoint)
    results.run(["one"], checkpoint)
    assert log.read_text() == "onetwotwo" and "one: finished before" in capsys.readouterr().out
    with pytest.raises(typer.BadParameter, match="STEP must be one of one, two, got three"):
        results.run(["three"], checkpoint)


def test_results_are_those_of_the_weights_that_a_step_reads(tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")

    def directories() -> tuple[Path, ...]:
        return tuple(results.results_directory(checkpoint, step) for step in ("zsre", "verified-zsre", "gate"))

    def change(name: str, text: str) -> tuple[Path, ...]:
        (checkpoint / name).write_text(text)
        return directories()

    alone = change("model.safetensors", "weights")
    assert len(set(alone)) == 1
    verified = change("verifier.safetensors", "verifier")
    assert verified[0] == alone[0] != verified[1] == verified[2]
    config = json.loads((checkpoint / "config.json").read_text())
    for name in ("num_verified_facts", "verifier_margin", "verifier_gap", "supersede_threshold"):
        other = change("config.json", json.dumps(config | {name: 7}))
        assert other[0] == alone[0] and other[1] not in (alone[0], verified[1])
    assert change("verifier.safetensors", "another")[1] not in (other[1], verified[1])
    assert change("model.safetensors", "others")[0] != alone[0]


def test_steps_of_the_verifier_need_one(tmp_path: Path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(typer.BadParameter, match="got verified-zsre"):
        results.run(["gate", "verified-zsre"], checkpoint)


def test_a_summary_keeps_what_it_holds_of_the_same_weights(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr(results, "ROOT", root)
    monkeypatch.setattr(results, "SUMMARY", root / "docs/results.json")
    checkpoint = root / "checkpoint"
    for name in ("model", "verifier"):
        (checkpoint / f"{name}.safetensors").write_text(name)
    with pytest.raises(typer.BadParameter, match="No finished results"):
        results.summary(checkpoint)
    kept = {
        step: {"seconds": 1.0, "finished": True, "machine": "another", "weights": weights}
        for step, weights in {
            "counterfact": results.results_directory(checkpoint, "counterfact").name,
            "compare": results.results_directory(checkpoint, "compare").name,
            "zsre": "of other weights",
            "verified": "of another verifier",
        }.items()
    }
    (root / "docs/results.json").write_text(json.dumps(with_verifier() | {"times": kept}))
    directory = results.results_directory(checkpoint, "gate")
    directory.mkdir(parents=True)
    (directory / "gate.json").write_text(json.dumps({"without": {"sets": {}, "calibration": {}}}))
    taken = {"seconds": 2.0, "finished": True, "machine": "this"}
    (directory / "times.json").write_text(json.dumps({"gate": taken, "verified-zsre": taken | {"finished": False}}))
    results.summary(checkpoint)
    summary = json.loads((root / "docs/results.json").read_text())
    assert summary["times"] == {name: kept[name] for name in ("counterfact", "compare")} | {
        "gate": taken | {"weights": directory.name}
    }
    assert summary["evaluations"] == {"counterfact": SUMMARY["evaluations"]["counterfact"]}
    assert (summary["tables"], summary["failures"]) == (SUMMARY["tables"], SUMMARY["failures"])
    assert summary["gate"] == {"without": {"sets": {}, "calibration": {}}}
    results.summary(checkpoint)
    assert json.loads((root / "docs/results.json").read_text()) == summary


def test_every_step_is_a_command_of_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    Path("checkpoint/config.json").write_text('{"model_type": "recipe"}')
    Path("data").mkdir()
    Path("base.gguf").touch()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if not (results.ROOT / "benchmarks").is_dir():
        pytest.skip("the benchmarks are not in a source distribution")
    monkeypatch.syspath_prepend(str(results.ROOT / "benchmarks"))
    gate = typer.Typer()
    gate.command()(importlib.import_module("gate").main)
    for step in results.STEPS:
        words = results._command(step, Path("checkpoint"), "base.gguf", "float32", Path("results/x"))
        for word in words:
            if word.startswith("data/"):
                Path(word).touch()
        name = "gate" if step == "gate" else words[1]
        command = typer.main.get_command(gate) if step == "gate" else commands[name]
        parameters = command.make_context(name, words[2:], resilient_parsing=False).params
        assert parameters.get("no_verifier", False) == (step not in ("gate", "sweep") and "verified" not in step)


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
