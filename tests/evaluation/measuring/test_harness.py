"""lm-eval on tiny models: what is looked up, that the base is scored as lm-eval scores it, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'recipe-hf[harness]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.measuring.harness import LOCAL_TASKS, RecipeLM, load_task, run_harness
from recipe_hf.evaluation.reporting.costs import harness_table
from tests.tiny_recipe import FACTS, PROMPTS, UNRELATED, edited_recipe, tiny_recipe

ROOT = Path(__file__).parents[3]
EXAMPLES = [EditExample(prompt, answer) for prompt, answer in FACTS]
PAIRS = [
    *[(prompt, f" {answer}") for prompt, answer in FACTS],
    *[(prompt, continuation) for prompt in UNRELATED for continuation in (" A", " B", " three words long")],
]


def requests(pairs: list[tuple[str, str]], kind: str = "loglikelihood") -> list[Any]:
    return [Instance(kind, {}, pair, number) for number, pair in enumerate(pairs)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_base_is_scored_as_by_lm_eval(architecture: str):
    model = tiny_recipe(architecture)
    theirs = HFLM(pretrained=model.lm, tokenizer=model.tokenizer, backend="causal", batch_size=3, max_length=400)
    ours = RecipeLM(model, batch_size=3)
    expected, found = theirs.loglikelihood(requests(PAIRS)), ours.loglikelihood(requests(PAIRS))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.lookups and not any(hit.fired for hit in ours.lookups.values())


def test_the_context_is_looked_up_and_not_the_continuation():
    model = edited_recipe()
    lm = RecipeLM(model, batch_size=4)
    found = lm.loglikelihood(requests(PAIRS))
    assert {query for query, hit in lm.lookups.items() if hit.fired} == set(PROMPTS)
    assert {query for query, hit in lm.lookups.items() if not hit.fired} == set(UNRELATED)
    unedited = RecipeLM(tiny_recipe(), batch_size=4).loglikelihood(requests(PAIRS))
    for (context, _), edited, base in zip(PAIRS, found, unedited, strict=True):
        assert (abs(edited[0] - base[0]) < 2e-4) == (context in UNRELATED)
    # A fact's prompt as a continuation finds nothing.
    lm.lookups.clear()
    lm.loglikelihood(requests([(UNRELATED[0], f" {PROMPTS[0]}")]))
    assert [(query, hit.fired) for query, hit in lm.lookups.items()] == [(UNRELATED[0], False)]


def test_scores_are_those_of_a_row_alone():
    model = edited_recipe()
    together = RecipeLM(model, batch_size=7).loglikelihood(requests(PAIRS))
    alone = RecipeLM(model, batch_size=1).loglikelihood(requests(PAIRS))
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], abs=2e-4)


def test_generation_looks_up_the_context():
    model = edited_recipe()
    lm = RecipeLM(model, batch_size=2)
    options = {"until": ["<never>"], "max_gen_toks": 5, "do_sample": False}
    found = lm.generate_until(requests([(text, options) for text in (PROMPTS[0], UNRELATED[0])], "generate_until"))
    assert {query: hit.fired for query, hit in lm.lookups.items()} == {PROMPTS[0]: True, UNRELATED[0]: False}
    for text, said in zip((PROMPTS[0], UNRELATED[0]), found, strict=True):
        ids = model.tokenizer(text, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=5, do_sample=False)
        assert said == model.tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = {
        "mmlu": [{"question": f" {p} ", "choices": ["w", "x", "y", "z"], "answer": i} for i, p in enumerate(PROMPTS)],
        "piqa": [{"goal": text, "sol1": "by hand", "sol2": "by foot", "label": 1} for text in UNRELATED],
        "rte": [
            {"sentence1": text, "sentence2": "It is.", "label": label}
            for text, label in zip(UNRELATED, ["entailment", "not_entailment"] * 3, strict=False)
        ],
    }
    for name, found in rows.items():
        (tmp_path / f"general-{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return tmp_path


def test_local_tasks_base_against_edited(data: Path, tmp_path: Path):
    model = tiny_recipe()
    output = tmp_path / "out" / "harness.json"
    record = run_harness(model, LOCAL_TASKS, EXAMPLES, data, output=output)
    assert {name: found["rows"] for name, found in record["tasks"].items()} == {
        "local_mmlu": 4,
        "local_piqa": 5,
        "local_rte": 5,
    }
    mmlu = record["tasks"]["local_mmlu"]
    assert mmlu["queries"] == 4 and set(mmlu["base"]) == set(mmlu["edited"]) == {"acc"}
    assert set(record["tasks"]["local_piqa"]["base"]) == {"acc", "acc_norm"}
    assert all(0 <= found["base"]["acc"]["value"] <= 100 for found in record["tasks"].values())
    table = harness_table(record)
    assert table.count("\n") == 5 and "| mmlu | 4 | acc | " in table
    assert len(model.knowledge) == 0 and json.loads(output.read_text()) == json.loads(json.dumps(record))


def test_prompts_and_answers_of_the_local_tasks(data: Path):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    tasks = manager.load([load_task(name, data) for name in LOCAL_TASKS])["tasks"]
    texts, targets, choices = {}, {}, {}
    for name, task in tasks.items():
        doc = task.test_docs()[1]
        texts[name], targets[name] = task.doc_to_text(doc), task.doc_to_target(doc)
        choices[name] = task.doc_to_choice(doc)
    assert texts["local_mmlu"] == f"{PROMPTS[1]}\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert texts["local_piqa"] == f"Question: {UNRELATED[1]}\nAnswer:"
    assert texts["local_rte"] == f"{UNRELATED[1]}\nQuestion: It is. True or False?\nAnswer:"
    assert {name: int(target) for name, target in targets.items()} == dict.fromkeys(LOCAL_TASKS, 1)
    assert choices["local_piqa"] == ["by hand", "by foot"] and choices["local_rte"] == ["True", "False"]


def test_finished_tasks_are_not_run_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "harness.json"
    run_harness(tiny_recipe(), ["local_rte"], EXAMPLES, data, output=output)
    asked: list[int] = []
    original = RecipeLM._loglikelihood_tokens

    def counted(self: RecipeLM, requests: list[Any], **kwargs: Any) -> Any:
        asked.append(len(requests))
        return original(self, requests, **kwargs)

    monkeypatch.setattr(RecipeLM, "_loglikelihood_tokens", counted)
    record = run_harness(tiny_recipe(), ["local_rte", "local_piqa"], EXAMPLES, data, output=output)
    assert list(record["tasks"]) == ["local_rte", "local_piqa"] and asked == [10, 10]
    with pytest.raises(ValueError, match="holds another run: limit was None, now 2"):
        run_harness(tiny_recipe(), ["local_rte"], EXAMPLES, data, limit=2, output=output)


def test_other_rows_words_and_versions_are_other_runs(data: Path, tmp_path: Path):
    output = tmp_path / "harness.json"

    def run(*tasks: str, directory: Path = data) -> None:
        run_harness(tiny_recipe(), tasks, EXAMPLES, directory, output=output)

    run("local_rte", "local_piqa")
    before, file = output.read_text(), data / "general-rte.jsonl"
    rows = file.read_text()
    file.write_text(rows.replace("entailment", "not_entailment", 1))
    for task in ("local_rte", "local_piqa"):  # All that stands in the file is shown, asked for or not.
        with pytest.raises(
            ValueError, match=r"another run: data of local_rte was '\d+ bytes, SHA-256 .*', now '\d+ b"
        ):
            run(task)
    assert output.read_text() == before
    file.write_text(rows)
    held = json.loads(before)
    wording = held["tasks"]["local_rte"]["inputs"]["wording"]
    for recorded, other, message in (
        (f'"lm_eval": "{held["settings"]["lm_eval"]}"', '"lm_eval": "0.1"', "lm_eval was '0.1', now"),
        (f'"format": {held["settings"]["format"]}', '"format": 1', "format was 1, now"),
        (wording, "another", "wording of local_rte was 'another', now"),
    ):
        output.write_text(before.replace(recorded, other))
        with pytest.raises(ValueError, match=f"another run: {message}"):
            run("local_rte")
    output.write_text(before)
    (tmp_path / "elsewhere").mkdir()
    for path in data.glob("general-*.jsonl"):
        path.rename(tmp_path / "elsewhere" / path.name)
    run("local_rte", directory=tmp_path / "elsewhere")
    assert output.read_text() == before


def test_a_record_of_an_older_version_is_refused(data: Path, tmp_path: Path):
    output = tmp_path / "harness.json"
    record = json.loads((ROOT / "docs/results.json").read_text())["harness"]
    output.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="another run: command was not recorded, as by an older version of recipe-hf"):
        run_harness(tiny_recipe(), ["local_rte"], EXAMPLES, data, output=output)
    assert harness_table(record).count("\n") == 5  # Such a record is still read for a page.


def test_what_makes_no_sense_is_refused(data: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="local_mmlu, local_piqa, local_rte or tasks of lm-eval, got nosuch"):
        run_harness(tiny_recipe(), ["nosuch"], EXAMPLES, data)
    with pytest.raises(ValueError, match="data must be a directory with general-rte.jsonl"):
        run_harness(tiny_recipe(), ["local_rte"], EXAMPLES, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="tasks and facts must not be empty, got 1 tasks and 0 facts"):
        run_harness(tiny_recipe(), ["local_rte"], [], data)


def test_there_is_room_for_facts_told_as_text(data: Path):
    model = tiny_recipe(prompt_form="text")
    statements = [f"{prompt} {answer}" for prompt, answer in FACTS]
    longest = len(f"{max(statements, key=len)}.\n")  # One token to a byte.
    assert RecipeLM(model, statements=statements).max_length == 512 - longest
    assert RecipeLM(tiny_recipe(), statements=statements).max_length == 512 - 3
    found = run_harness(model, ["local_mmlu"], EXAMPLES, data)["tasks"]["local_mmlu"]
    assert found["rows"] == found["queries"] == 4
