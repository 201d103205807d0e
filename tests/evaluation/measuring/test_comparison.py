"""Comparisons of editors: the figures, what is asked of the base, and that an interrupted run goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.asking import answers
from recipe_hf.evaluation.editors import EDITORS, EditorOptions
from recipe_hf.evaluation.editors.finetuning import Budget
from recipe_hf.evaluation.measuring import plans
from recipe_hf.evaluation.measuring.comparison import Comparison, run_comparison
from recipe_hf.evaluation.measuring.editing import evaluate_editing
from recipe_hf.evaluation.measuring.metrics import EditingReport
from recipe_hf.evaluation.measuring.timing import Times
from recipe_hf.evaluation.reporting.comparison import comparison_page
from tests.tiny_evaluation import EXAMPLES, model, write_sentence_model

COMPARISON = Comparison(
    "tiny", EXAMPLES, [2, 4], editors=["base", "recipe-statements", "no-sentinel"], validation=EXAMPLES
)


def of(record: dict, editor: str, facts: int, protocol: str = "strict") -> dict:
    (found,) = [r for r in record["results"] if (r["editor"], r["facts"], r["protocol"]) == (editor, facts, protocol)]
    return found


@pytest.mark.parametrize("protocol", ["strict", "generation"])
def test_recipe_has_the_figures_of_an_evaluation(protocol: str):
    record = run_comparison(
        model(), replace(COMPARISON, editors=["base", "recipe-statements"], protocols=[protocol]), batch_size=3
    )
    scores = dict.fromkeys(("score", "threshold", "probability"))
    for facts in (2, 4):
        expected: EditingReport = evaluate_editing(model(), EXAMPLES, facts, protocol=protocol)
        found = of(record, "recipe-statements", facts, protocol)
        for kind in ("reliability", "generality", "locality"):
            assert found[kind] == pytest.approx(expected.metrics[kind])
        assert found["right_fact_edits"] == expected.metrics["reliability_right_fact"]
        assert found["right_fact_rephrasings"] == expected.metrics["generality_right_fact"]
        assert found["fired_unrelated"] == expected.metrics["locality_fired"]
        # Of what was looked up before, among other facts, the last digits of scores may differ.
        assert [o | scores for o in found["outcomes"]] == [asdict(o) | scores for o in expected.outcomes]
        assert found["tokens_added"] == 3
        base = of(record, "base", facts, protocol)
        assert base["locality"] == 100 and base["tokens_added"] == 0 and "fired_unrelated" not in base
        assert base["reliability"] < 100
        assert all(r["edit_ms"] >= 0 and r["generation_ms"] >= 0 for r in (base, found))


def test_locality_is_against_the_model_before_the_edit():
    options = EditorOptions(Budget(epochs=20), learning_rate=0.01)
    comparison = replace(COMPARISON, editors=["ft"], num_edits=[4], options=options)
    before = {name: tensor.clone() for name, tensor in model().lm.state_dict().items()}
    record = run_comparison(model(), comparison)
    found = of(record, "ft", 4)
    assert found["locality"] < 100 and found["reliability"] > 90
    assert found["settings"]["epochs"] == 20
    assert all((model().lm.state_dict()[name] == tensor).all() for name, tensor in before.items())


def test_the_table_is_beside_the_results():
    record = run_comparison(model(), replace(COMPARISON, num_questions=2, seeds=[0, 1], command="ablate"))
    assert record["command"] == "ablate" and record["columns"][:4] == ["protocol", "facts", "editor", "reliability"]
    assert [row[:3] for row in record["rows"]] == [
        ["strict", facts, name] for facts in "24" for name in ("base", "recipe-statements", "no-sentinel")
    ]
    assert all(len(row) == len(record["columns"]) for row in record["rows"])
    assert record["rows"][0][5] == "100.0 ± 0.0" and record["rows"][0][6] == "–"
    page = comparison_page(record)
    assert page.startswith("tiny, trained weights") and "seeds 0, 1" in page and "at most 2 of the facts held" in page
    assert "| facts | editor | reliability |" in page and "- `no-sentinel`, 2 facts, seed 0: threshold" in page


def test_an_interrupted_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "out" / "run.json"
    measure, measured = plans.run_trial, []

    def counted(editor, trial, *args):
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(trial.num_edits)
        return measure(editor, trial, *args)

    monkeypatch.setattr(plans, "run_trial", counted)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(model(), COMPARISON, output)
    assert len(json.loads(output.read_text())["results"]) == 4
    with pytest.raises(KeyboardInterrupt):
        run_comparison(model(), COMPARISON, output)
    measured.clear()
    lines: list[str] = []
    record = run_comparison(model(), COMPARISON, output, report=lines.append)
    assert measured == [4, 4] and [line.split(",")[0] for line in lines] == ["recipe-statements", "no-sentinel"]
    assert json.loads(output.read_text()) == json.loads(json.dumps(record))
    assert len(record["rows"]) == 6 and [path.name for path in output.parent.iterdir()] == ["run.json"]
    # More may be asked for later.
    more = run_comparison(model(), replace(COMPARISON, editors=["base", "neither"], num_edits=[4]), output)
    assert measured == [4, 4, 4] and len(more["rows"]) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_questions": 2}, "num_questions was None, now 2"),
        ({"dataset": "other"}, "dataset was 'tiny', now 'other'"),
        ({"options": EditorOptions(Budget(epochs=3))}, "epochs of budget of options was 10, now 3"),
    ],
)
def test_another_comparison_is_not_overwritten(tmp_path: Path, changes: dict, message: str):
    output = tmp_path / "run.json"
    run_comparison(model(), replace(COMPARISON, editors=["base"], num_edits=[2]), output)
    before = output.read_bytes()
    with pytest.raises(ValueError, match=message):
        run_comparison(model(), replace(COMPARISON, editors=["base"], num_edits=[2], **changes), output)
    with pytest.raises(ValueError, match="command was 'compare', now 'ablate'"):
        run_comparison(model(), replace(COMPARISON, editors=["base"], num_edits=[2], command="ablate"), output)
    assert output.read_bytes() == before


def test_another_number_of_threads_is_another_comparison(tmp_path: Path):
    output, threads = tmp_path / "run.json", torch.get_num_threads()
    run_comparison(model(), replace(COMPARISON, editors=["base"], num_edits=[2]), output)
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ValueError, match=f"machine was '{threads} threads on .*', now '{threads + 1} threads on"):
            run_comparison(model(), COMPARISON, output)
    finally:
        torch.set_num_threads(threads)


def test_another_sentence_model_of_the_same_name_is_another_comparison(tmp_path: Path):
    path = write_sentence_model(tmp_path / "one", 0)
    options = EditorOptions(sentence_model=str(path))
    comparison = replace(COMPARISON, editors=["base"], num_edits=[2], options=options)
    output = tmp_path / "run.json"
    run_comparison(model(), comparison, output)
    both = replace(comparison, editors=["base", "context-minilm"])
    assert len(run_comparison(model(), both, output)["rows"]) == 2
    before = output.read_bytes()
    shutil.rmtree(path)
    write_sentence_model(tmp_path / "two", 1).rename(path)
    with pytest.raises(ValueError, match="sentence_model_weights of context-minilm was '[0-9a-f]+', now '[0-9a-f]+'"):
        run_comparison(model(), both, output)
    run_comparison(model(), comparison, output)  # The base has nothing to do with it.
    assert output.read_bytes() == before


def test_files_that_are_no_record(tmp_path: Path):
    output = tmp_path / "run.json"
    output.write_text("[]")
    with pytest.raises(ValueError, match="holds no evaluation to resume. Choose another file, or delete this one"):
        run_comparison(model(), COMPARISON, output)
    with pytest.raises(ValueError, match=r"output must end in .json, got '.*run.txt'"):
        run_comparison(model(), COMPARISON, tmp_path / "run.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"editors": []}, r"editors must name one or more, none of them twice, got \[\]"),
        ({"editors": ["base", "roma"]}, "editors must be among base, recipe, .*, got 'roma'"),
        ({"protocols": ["lenient"]}, "protocol must be one of"),
        ({"num_edits": [0, 4, 5]}, r"num_edits must be between 1 and the 4 facts of tiny, got \[0, 5\]"),
        ({"seeds": [0, 0]}, "seeds must name one or more, none of them twice"),
        ({"validation": []}, "validation rows are needed for no-sentinel, got none"),
        ({"num_validation": 0}, "num_validation must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(COMPARISON, **changes)


def test_editors_that_train_take_part_where_facts_are_few():
    comparison = replace(COMPARISON, editors=["ft", "base", "grace"], max_trained_edits=3)
    assert comparison.cells == [(2, "ft", 0), (2, "base", 0), (2, "grace", 0), (4, "base", 0)]


def test_thresholds_are_tuned_among_as_many_facts():
    rows = [replace(EXAMPLES[0], prompt=f"P{i} is") for i in range(10)]
    comparison = replace(COMPARISON, validation=[*rows, rows[9]], num_validation=3)
    facts, asked = comparison.tuning_rows(5)
    assert [e.prompt for e in facts] == [f"P{i} is" for i in range(5, 10)] and asked == rows[7:]
    assert comparison.tuning_rows(2)[0] == rows[7:]


def test_every_editor_can_be_made_by_name():
    kinds = {name: kind for name, kind in EDITORS.items() if name not in ("context-minilm", "r-rome", "lte")}
    for name, kind in kinds.items():
        assert kind.make(model(), EditorOptions()).lm is model().lm, name


def test_editors_left_out_are_named():
    lines: list[str] = []
    run_comparison(
        model(), replace(COMPARISON, editors=["base", "ft"], num_edits=[4], max_trained_edits=2), report=lines.append
    )
    assert lines[0] == "ft: not with 4 facts (max_trained_edits)" and len(lines) == 2
    with pytest.raises(
        ValueError, match=r"max_trained_edits=2 facts, and ft do, so that none is left for num_edits \[4\]"
    ):
        replace(COMPARISON, editors=["ft"], num_edits=[4], max_trained_edits=2)


def test_no_editor_is_timed_with_queries_that_an_earlier_one_encoded(monkeypatch: pytest.MonkeyPatch):
    encoded: list[str] = []
    encode = model().retriever.encode_queries
    monkeypatch.setattr(
        model().retriever, "encode_queries", lambda texts, *a: (encoded.extend(texts), encode(texts, *a))[1]
    )
    timed: list[int] = []
    time_answers = Times.time_answers

    def counted(*args):
        before = len(encoded)
        time_answers(*args)
        timed.append(len(encoded) - before)

    monkeypatch.setattr(Times, "time_answers", counted)
    run_comparison(model(), replace(COMPARISON, editors=["recipe", "recipe-statements"], num_edits=[4]))
    assert timed == [4, 4]


@pytest.mark.parametrize("num_edits", [1, 4])
def test_who_looks_nothing_up_answers_alike_under_the_protocol_of_the_paper(num_edits: int):
    comparison = replace(COMPARISON, editors=["ft", "recipe"], num_edits=[num_edits], protocols=["strict", "paper"])
    record = run_comparison(model(), comparison)
    strict, paper = (of(record, "ft", num_edits, protocol) for protocol in ("strict", "paper"))
    assert strict["outcomes"] == paper["outcomes"] and "right_fact_edits" not in strict
    scores = [[o["score"] for o in of(record, "recipe", num_edits, p)["outcomes"]] for p in ("strict", "paper")]
    assert scores[0] != scores[1]


def test_a_comparison_is_asked_on_within_an_editor_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output, comparison = tmp_path / "run.json", replace(COMPARISON, editors=["recipe"], num_edits=[4])
    unbroken = run_comparison(model(), comparison, batch_size=3)
    predict, calls = answers.predict, []

    def counted(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return predict(*args)

    monkeypatch.setattr(answers, "predict", counted)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(model(), comparison, output, batch_size=3)
    calls.clear()
    monkeypatch.setattr(answers, "predict", lambda *args: calls.append(args) or predict(*args))
    record = run_comparison(model(), comparison, output, batch_size=3)
    batches = len(calls)
    calls.clear()
    run_comparison(model(), comparison, batch_size=3)
    assert batches == len(calls) - 2 > 0
    assert of(record, "recipe", 4)["outcomes"] == of(unbroken, "recipe", 4)["outcomes"]


def test_records_of_an_older_format_are_not_gone_on_from(tmp_path: Path):
    output, comparison = tmp_path / "run.json", replace(COMPARISON, editors=["base"], num_edits=[2])
    run_comparison(model(), comparison, output)
    output.write_text(output.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(ValueError, match="holds another run: format was 2, now 3"):
        run_comparison(model(), comparison, output)
