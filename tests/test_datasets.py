from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recipe_hf.datasets import LAYOUTS, DataSource, EditExample, load_examples, load_mixture, split_half
from tests.dataset_rows import FACT, FLAT, KNOWEDIT, ZSRE, without, write
from tests.hub_server import File, Hub, Repository


def fact(subject: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"The home of {subject} is", "answer": f"{subject}burg", "subject": subject} | fields


# ---------------------------------------------------------------- layouts


def test_layout_can_be_forced(tmp_path: Path):
    path = write(tmp_path / "cf.json", [FLAT | {"locality": {}}])
    assert load_examples(path)[0].rephrasings and load_examples(path)[0].unrelated[0][1] == "French"
    with pytest.raises(ValueError, match="has no unrelated question"):
        load_examples(path, layout="knowedit")
    with pytest.raises(ValueError, match=r"layout must be one of counterfact, .*facts, got 'zs'"):
        load_examples(path, layout="zs")


# ---------------------------------------------------------------- what is made up


def test_unrelated_questions_are_borrowed_from_those_that_name_neither_subject_nor_fact(tmp_path: Path):
    rows = [
        fact("Ann"),
        fact("Bo", unrelated=["The home of Cy is", "The age of Ann is", "The age of Bo is"]),
        fact("Cy"),
    ]
    path = write(tmp_path / "facts.jsonl", rows)
    drawn = [load_examples(path, seed=seed) for seed in range(10)]
    assert all([e.unrelated_is_made_up for e in examples] == [True, False, True] for examples in drawn)
    assert {examples[0].unrelated for examples in drawn} == {(("The age of Bo is", "Boburg"),)}
    assert {examples[2].locality_prompt for examples in drawn} == {"The age of Ann is", "The age of Bo is"}


def test_prompts_of_other_facts_serve_where_no_fact_has_an_unrelated_question(tmp_path: Path):
    names = ("Ann", "Bo", "Cy", "Dee", "Eli")
    rows = [without(KNOWEDIT, "locality") | {"locality": {}, "subject": n, "prompt": f"{n} lives in"} for n in names]
    rows[1]["ground_truth"] = "Oslo"
    path = write(tmp_path / "knowedit.json", rows)
    drawn = [load_examples(path, seed=seed) for seed in range(20)]
    assert all(e.locality_prompt != e.prompt and e.unrelated_is_made_up for examples in drawn for e in examples)
    pairs = {pair for examples in drawn for e in examples for pair in e.unrelated}
    assert pairs == {(f"{n} lives in", "Oslo" if n == "Bo" else "Riga") for n in names}
    assert load_examples(path, seed=7) == drawn[7]


def test_a_question_that_names_the_subject_is_not_borrowed(tmp_path: Path):
    rows = [fact("Ann"), fact("Bo", unrelated=["The age of Ann is"])]
    first, _ = load_examples(write(tmp_path / "facts.jsonl", rows))
    assert first.unrelated == (("The home of Bo is", "Boburg"),)


def test_a_fact_that_nothing_unrelated_can_be_found_for_is_named(tmp_path: Path):
    path = write(tmp_path / "facts.jsonl", [fact("Ann"), fact("Ann", prompt="The age of Ann is")])
    with pytest.raises(ValueError, match=r"facts\.jsonl: the fact 'The home of Ann is' has no unrelated question"):
        load_examples(path)


# ---------------------------------------------------------------- halves and mixtures


def test_halves_divide_the_rows_by_seed():
    examples = [EditExample(f"The home of S{i} is", "Oslo") for i in range(101)]
    train, held_out = split_half(examples)
    assert (len(train), len(held_out)) == (50, 51)
    assert sorted(train + held_out, key=examples.index) == examples
    assert train == sorted(train, key=examples.index) and held_out == sorted(held_out, key=examples.index)
    assert split_half(examples) == (train, held_out) and split_half(examples, seed=1)[0] != train
    # A contiguous or alternating half is not random.
    assert 10 < sum(i < 50 for i in map(examples.index, train)) < 40
    assert 10 < sum(i % 2 for i in map(examples.index, train)) < 40


def test_what_is_held_out_is_not_trained_on():
    examples = [EditExample(f"The home of S{i % 10} is", f"A{i}") for i in range(40)]
    train, held_out = split_half(examples)
    assert len(held_out) == 20 and not {e.prompt for e in train} & {e.prompt for e in held_out}


def test_halves_borrow_only_from_themselves(tmp_path: Path):
    rows = [fact(f"S{i}", **({"unrelated": [f"Thing {i} is"]} if i % 3 else {})) for i in range(40)]
    path = write(tmp_path / "facts.jsonl", rows)
    train, held_out = (load_examples(path, half=half) for half in ("train", "held_out"))  # type: ignore[arg-type]
    assert [e.prompt for e in train] == [e.prompt for e in split_half(load_examples(path))[0]]
    questions, others = ({p for e in half for p, _ in e.unrelated} for half in (train, held_out))
    assert any(e.unrelated_is_made_up for e in train) and not questions & others
    with pytest.raises(ValueError, match="half must be 'train' or 'held_out', got 'test'"):
        load_examples(path, half="test")  # type: ignore[arg-type]


def test_a_mixture_is_drawn_by_weight(tmp_path: Path):
    few = write(tmp_path / "few.jsonl", [fact(f"S{i}") for i in range(2)])
    many = write(tmp_path / "many.json", [FLAT | {"prompt": f"Q{i}", "target_new": f"A{i}"} for i in range(6)])
    examples, probabilities = load_mixture([(few, 3), {"path": str(many), "layout": "counterfact-flat"}])
    assert [e.answer for e in examples] == ["S0burg", "S1burg", *(f"A{i}" for i in range(6))]
    assert probabilities == pytest.approx([3 / 8] * 2 + [1 / 24] * 6)
    assert load_mixture(few) == load_mixture([DataSource(str(few))]) == (load_examples(few), [0.5, 0.5])
    halves = load_mixture([{"path": str(many), "half": "train"}, {"path": str(many), "half": "held_out"}])
    assert halves[0] == load_examples(many, half="train") + load_examples(many, half="held_out")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "2", True, None])
def test_weights_must_be_positive(weight: Any):
    with pytest.raises(ValueError, match=r"weight of a\.json must be a number above 0, got"):
        load_mixture([("a.json", weight)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": None}, "path of a data source must be a non-empty text, got None"),
        ((5, 1), "path of a data source must be a non-empty text, got 5"),
        ({"path": "a", "layout": ["facts"]}, r"layout must be one of counterfact, .*facts, got \['facts'\]"),
        ({"path": "a", "half": "test"}, "half must be 'train' or 'held_out', got 'test'"),
    ],
)
def test_fields_of_a_source_are_checked_before_any_is_read(source: Any, message: str):
    with pytest.raises(ValueError, match=message):
        load_mixture([source])


@pytest.mark.parametrize("source", [{"weight": 1}, {"path": "a", "wieght": 2}, ("a", 1, 2), 3, None])
def test_what_is_no_source_is_refused(source: Any):
    with pytest.raises(ValueError, match=r"mapping with path and, if wanted, weight, layout, half, got"):
        load_mixture([source])


def test_a_mixture_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one data source"):
        load_mixture([])


# ---------------------------------------------------------------- bad files


def test_unknown_layout_lists_the_known_ones(tmp_path: Path):
    with pytest.raises(ValueError, match="row 0 is in no known layout: its fields are question, label") as error:
        load_examples(write(tmp_path / "a.json", [{"question": "q", "label": 1}]))
    assert all(f"{name}: " in str(error.value) for name in LAYOUTS)


@pytest.mark.parametrize("rows", [{"rows": [FLAT]}, [], "x", None])
def test_what_is_not_a_list_of_rows_is_refused(tmp_path: Path, rows: object):
    with pytest.raises(ValueError, match=r"cf\.json must hold a non-empty JSON list of rows"):
        load_examples(write(tmp_path / "cf.json", rows))


def test_files_without_an_edit_are_refused(tmp_path: Path):
    (tmp_path / "facts.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match=r"facts\.jsonl must hold a non-empty JSON list of rows, or a row to a line"):
        load_examples(tmp_path / "facts.jsonl")
    with pytest.raises(ValueError, match=r"zsre\.json holds no edit"):
        load_examples(write(tmp_path / "zsre.json", [ZSRE | {"alt": ""}]))


def test_broken_files_are_refused(tmp_path: Path):
    (tmp_path / "cf.json").write_text('[{"prompt": ')
    with pytest.raises(ValueError, match=r"cf\.json is not valid JSON: .*line 1"):
        load_examples(tmp_path / "cf.json")
    (tmp_path / "facts.jsonl").write_text(json.dumps(FACT) + "\n\n{'prompt'}\n")
    with pytest.raises(ValueError, match=r"facts\.jsonl, line 3, is not valid JSON"):
        load_examples(tmp_path / "facts.jsonl")
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.json is not UTF-8 text"):
        load_examples(tmp_path / "latin.json")


@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "9" * 5000], ids=["deep", "long"])
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, value: str):
    rows = [json.dumps(FACT), json.dumps(FACT | {"metadata": 0}).replace("0", value)]
    (tmp_path / "facts.json").write_text(f" [ {rows[0]} ,\n{rows[1]}]")
    with pytest.raises(ValueError, match=r"facts\.json, row 1, cannot be read: .*(recursion|5000 digits)"):
        load_examples(tmp_path / "facts.json")
    (tmp_path / "facts.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"facts\.jsonl, line 2, cannot be read: .*(recursion|5000 digits)"):
        load_examples(tmp_path / "facts.jsonl")


def test_the_name_of_a_file_may_end_in_capitals(tmp_path: Path):
    (tmp_path / "facts.JSONL").write_text(json.dumps(FACT) + "\n" + json.dumps(FACT))
    assert len(load_examples(tmp_path / "facts.JSONL")) == 2


@pytest.mark.parametrize("path", ["none.json", "data/none.jsonl", "a/b/c", "."])
def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^{path} is no file, nor named as one on the Hub is: org/name:file"):
        load_examples(path)


# ---------------------------------------------------------------- the Hub

# HF_ENDPOINT is read once, at import, so the client has a process of its own.
CLIENT = """
import json, sys, time
from recipe_hf.datasets import load_examples
sleep, results = time.sleep, {}
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
for path in sys.argv[1:]:
    try:
        results[path] = [example.answer for example in load_examples(path)]
    except Exception as error:
        results[path] = [kind.__name__ for kind in type(error).__mro__], str(error)
print(json.dumps(results))
"""
FOUND = {
    "org/facts": ["Ann Lee"],
    "org/facts:data/facts.jsonl": ["Ann Lee"],
    "org/facts@v2:data/facts.jsonl": ["Bo Ray"],
    "org/facts@v2": ["Bo Ray"],
    "org/many:a.json": ["English"],
    "ann/private:a.json": ["English"],
}
MISSING = {
    "org/none:a.json": "404",
    "org/none": "404",
    "org/many:c.json": "404",
    "org/many@v3:a.json": "404",
    "bob/private:a.json": "404",
    "org/many": "say which, as org/many:FILE. Its JSON files: a.json, b.json.",
    "org/a--b:c.json": "Cannot have -- or",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("hub")

    def commit(repo_id: str, files: dict[str, object], revision: str = "main") -> None:
        repository = hub.repositories.setdefault(("dataset", repo_id), Repository(repo_id.endswith("/private")))
        contents = {name: write(directory / Path(name).name, rows).read_bytes() for name, rows in files.items()}
        repository.commit(revision, {name: File(content, False) for name, content in contents.items()}, "files")

    with closing(Hub()) as hub:
        commit("org/facts", {"README.md": "", "data/facts.jsonl": [FACT]})

        commit("org/facts", {"data/facts.jsonl": [FACT | {"answer": "Bo Ray"}]}, "v2")
        for repo_id in ("org/many", "ann/private", "bob/private"):
            commit(repo_id, {"a.json": [FLAT], "b.json": [ZSRE]})
        hub.break_connections("GET .*b.json", times=100)
        output = subprocess.run(
            [sys.executable, "-c", CLIENT, *FOUND, *MISSING, "org/many:b.json"],
            env=os.environ
            | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(directory), "HF_TOKEN": "hf_ann", "HF_HUB_OFFLINE": "0"},
            check=True,
            capture_output=True,
        )
    return json.loads(output.stdout)


@pytest.mark.parametrize("path", FOUND)
def test_files_on_the_hub(results: dict[str, Any], path: str):
    assert results[path] == FOUND[path]


@pytest.mark.parametrize("path", MISSING)
def test_what_the_hub_does_not_have_is_named(results: dict[str, Any], path: str):
    kinds, message = results[path]
    assert "FileNotFoundError" in kinds
    assert message.startswith(f"{path} is neither a file nor one on the Hub that can be read: ")
    assert MISSING[path] in message


def test_a_broken_connection_is_named(results: dict[str, Any]):
    kinds, message = results["org/many:b.json"]
    assert "ConnectionError" in kinds and "The download of org/many:b.json broke off" in message


def test_a_local_file_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    write(tmp_path / "org" / "facts", [FLAT])
    assert load_examples("org/facts")[0].answer == "English"
