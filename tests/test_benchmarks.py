"""The benchmarks of docs/performance.md run, at a small size, and put their tables between the marks there."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe_hf.modeling.verifier import is_update
from recipe_hf.training.verification.written import number_of, part_of
from tests.tiny_recipe import FACTS, UNRELATED, base_tokenizer, tiny_base, tiny_recipe, verified_recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("the benchmarks are not in a source distribution")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return Path(shutil.copy(ROOT / "docs/performance.md", tmp_path))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_recipe().save_pretrained(tmp_path / "recipe")
    return tmp_path / "recipe"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    facts = [*FACTS, *((f"The size of {name} is", "two") for name in "abcdefgh")]
    questions = [[(text, "yes")] for text in UNRELATED] + [[]] * len(facts)
    rows = [
        {"prompt": prompt, "answer": answer, "unrelated": asked}
        for (prompt, answer), asked in zip(facts, questions, strict=False)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_what_a_benchmark_imports_is_there(document: Path, name: str):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("recipe_hf"):
            raise
        pytest.skip(f"{error.name} is not installed")


def rows_of(document: Path, name: str) -> list[list[str]]:
    """The rows of the one table between the marks of `name`."""
    text = document.read_text(encoding="utf-8")
    assert text.count(f"<!-- {name} -->") == text.count(f"<!-- end of {name} -->") == 1
    section = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("with_keys", [False, True])
def test_generation(document: Path, checkpoint: Path, data: Path, tmp_path: Path, with_keys: bool):
    base = tmp_path / "base"
    tiny_base().save_pretrained(base)
    tiny_recipe().tokenizer.save_pretrained(base)
    keys = tmp_path / "keys"
    keys.mkdir()
    for name, size in (("0", 3), ("1", 8)):
        np.save(keys / f"{name}.npy", np.zeros((size, 64), np.float16))
    generation = importlib.import_module("generation")
    for size in (10, 12):  # The second replaces the table of the first.
        generation.main(
            facts=[size],
            checkpoint=checkpoint,
            base_model=str(base),
            data=[data],
            keys=keys if with_keys else None,
            batch_size=[1],
            new_tokens=3,
            triples=2,
            asked=5,
            document=document,
        )
    rows = rows_of(document, "generation")
    assert [row[:3] for row in rows] == [["12", "hits", "1"], ["12", "misses", "1"]]
    assert all(float(row[4].partition("%")[0]) > 0 for row in rows)


def test_adding_facts(document: Path, checkpoint: Path, data: Path):
    importlib.import_module("adding_facts").main(
        checkpoint=checkpoint, data=data, facts=[1, 20], single=2, batch=3, turns=2, document=document
    )
    rows = rows_of(document, "adding facts")
    assert [row[0] for row in rows] == ["1"] * 5 + ["20"] * 5
    assert all(row[3].endswith(")") for row in rows if row[1] != "plain loop")


@pytest.mark.slow
def test_memory(document: Path, checkpoint: Path):
    importlib.import_module("memory").main(facts=2000, checkpoint=checkpoint, document=document)
    rows = rows_of(document, "memory")
    assert len(rows) == 4
    stored = [float(row[3].removesuffix(" KB")) for row in rows]
    assert stored[1] > 0.25 and stored[0] == stored[2] == stored[3] == 0  # A key is 64 float32 numbers.


def test_the_gate_is_measured_with_and_without_the_verifier(document: Path):
    """A verifier that affirms all that it reads: every miss fires, and every newer statement retires all old ones."""
    gate = importlib.import_module("gate")
    model = verified_recipe(offset=5.0)
    model.config.supersede_threshold = -1e3
    told = [f"{prompt} {answer}" for prompt, answer in FACTS]
    asked = [gate.Asked("asks", prompt, place) for place, (prompt, _) in enumerate(FACTS)]
    misses = [gate.Asked("misses, name", text) for text in UNRELATED]
    newer = [
        gate.Asked(kind, "The river through Gotham is the Dart.", 0) for kind in ("retires", "stays", "unrelated")
    ]
    sets = [gate.FactSet("statements", told, [*asked, *misses]), gate.FactSet("chat", FACTS[:1], misses)]
    record = gate.measure(model, sets, gate.FactSet("updates", told, newer))
    without, with_it = record["without"], record["with"]
    every = {"asked": len(FACTS), "right": len(FACTS), "wrong": []}
    assert without["sets"]["statements"]["asks"] == without["sets"]["statements"]["asks, another used"] == every
    assert without["sets"]["statements"]["misses"]["right"] == len(UNRELATED)
    assert list(without["sets"]) == ["statements", "chat"] and list(without["calibration"]) == ["statements"]
    missed = {"asked": len(UNRELATED), "right": 0, "wrong": UNRELATED}
    assert with_it["sets"]["chat"] == {"misses, name": missed, "misses": missed}
    used = with_it["sets"]["statements"]
    assert used["asks, another used"]["right"] == used["asks"]["right"] < len(FACTS)  # The newest of all is used.
    found = with_it["calibration"]["statements"]
    share = used["asks"]["right"] / (len(FACTS) + len(UNRELATED))
    assert found["at least 0.9"] == {"fired": len(FACTS) + len(UNRELATED), "right": used["asks"]["right"]}
    assert found["0.5 to 0.9"]["fired"] == 0 and found["error"] == pytest.approx(torch.tensor(5.0).sigmoid() - share)
    right = {kind: count["right"] for kind, count in with_it["sets"]["updates"].items()}
    others = {"retires, another retired": 0, "stays, another retired": 0, "unrelated": 0}
    assert right == {"retires": 1, "stays": 0} | others
    assert len(model.knowledge) == len(FACTS), "what was retired in a copy is held still"
    assert f"| statements | misses | {len(UNRELATED)} of {len(UNRELATED)} | 0 of {len(UNRELATED)} |" in gate.table(
        record
    )
    model.verifier = None
    assert list(gate.measure(model, sets, gate.FactSet("updates", told, newer))) == ["without"]


def test_the_sets_of_the_gate_were_not_trained_on(document: Path, tmp_path: Path):
    gate = importlib.import_module("gate")
    chat = [{"texts": [f"play song {number}"], "source": "clinc150" if number else "other"} for number in range(30)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    (tmp_path / "facts.json").write_text(
        json.dumps([{"prompt": prompt, "answer": answer} for prompt, answer in FACTS])
    )
    sets = {one.name: one for one in gate.fact_sets(tmp_path / "facts.json", tmp_path / "chat.jsonl")}
    assert list(sets) == ["unseen_wordings", "unseen_wordings_near", "statements", "families", "chat"]
    assert len(sets["unseen_wordings_near"].facts) == 60
    assert {part_of(text) for text in sets["statements"].facts} == {"exam"}
    assert 0 < len(sets["chat"].asked) < 29 and {ask.kind for ask in sets["chat"].asked} == {"clinc150"}
    assert all(number_of(ask.text) % 2 == 0 for ask in sets["chat"].asked)
    old = gate.updates()
    assert {part_of(text) for text in old.facts} == {"exam"} and not any(is_update(ask.text) for ask in old.asked)
    assert {ask.kind for ask in old.asked} == {"retires", "stays", "unrelated"}
    assert [old.facts[ask.place] for ask in old.asked if ask.kind == "unrelated"] == [
        ask.text for ask in old.asked if ask.kind == "unrelated"
    ]


def test_forms_of_prompts_are_measured_side_by_side(document: Path, checkpoint: Path, data: Path, tmp_path: Path):
    page = Path(shutil.copy(ROOT / "docs/bases.md", tmp_path))
    for name, base in (("own", tiny_base()), ("other", tiny_base("gpt2"))):
        base.save_pretrained(tmp_path / name)
        base_tokenizer().save_pretrained(tmp_path / name)
    importlib.import_module("prompt_forms").main(
        checkpoint, data, 4, str(tmp_path / "own"), [str(tmp_path / "other")], page
    )
    rows = rows_of(page, "prompt forms")
    assert [row[1] for row in rows] == ["not told", "continuous prompts", "hidden text", "not told", "hidden text"]
    lengths = [len(f"{prompt} {answer}.\n") for prompt, answer in FACTS]
    text = f"{sum(lengths) / 4:.1f}"
    assert [row[2] for row in rows] == ["", "3.0", text, "", text]
    assert all(row[5] == row[8] == "100.0" for row in rows), "no unrelated question fires a fact"


def test_serving(document: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    base = tmp_path / "base"
    tiny_base().save_pretrained(base)
    base_tokenizer().save_pretrained(base)
    rows = [
        {"prompt": prompt, "subject": prompt, "target_new": answer, "rephrase_prompt": prompt,
         "locality_prompt": asked, "locality_ground_truth": "yes"}
        for (prompt, answer), asked in zip(FACTS, UNRELATED, strict=False)
    ]  # fmt: skip
    data = tmp_path / "counterfact.json"
    data.write_text(json.dumps(rows))
    document.write_text(document.read_text() + "\n<!-- serving -->\n<!-- end of serving -->\n")
    importlib.import_module("serving").main(
        checkpoint, str(base), [data], facts=4, clients=2, prompts=2, rounds=2, max_tokens=3, document=document
    )
    rows = rows_of(document, "serving")
    assert len(rows) == 6 and {row[0] for row in rows} == {"recipe-hf serve"}
    assert rows[4][2] == "50%"
