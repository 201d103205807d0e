from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from recipe_hf.cli import app
from recipe_hf.datasets import load_examples
from recipe_hf.knowledge import KnowledgeBase
from tests.tiny_recipe import FACTS, PROMPTS, UNRELATED, tiny_base, tiny_recipe, verified_recipe
from tests.tiny_training import write_parts


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A directory with what `list` and `remove` read: the sizes and three facts."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "recipe", "knowledge_dim": 8}))
    knowledge = KnowledgeBase(8)
    knowledge.add(["Ann runs Acme.", "Bo plays the cello.", "Oslo is cold."], torch.eye(8)[:3])
    knowledge.save(tmp_path / "knowledge")
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny checkpoint without facts, and the directory of its base."""
    checkpoint, base = tmp_path_factory.mktemp("checkpoint"), tmp_path_factory.mktemp("base")
    tiny_base().save_pretrained(base)
    tiny_recipe().save_pretrained(checkpoint)
    return checkpoint, base


@pytest.fixture
def checkpoint(saved: tuple[Path, Path]):
    """The checkpoint, emptied of facts afterwards."""
    yield saved[0]
    KnowledgeBase(64).save(saved[0] / "knowledge")


def lines(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.output.splitlines()]


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert result.output.count("\n") == 1 and result.output.startswith("recipe-hf: ")
    assert message in result.output


def test_help_names_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    for command in (
        "demo",
        "train",
        "add",
        "remove",
        "list",
        "ask",
        "explain",
        "restore",
        "export",
        "salvage",
        "push",
        "compare",
        "ablate",
        "sweep",
        "serve",
        "keys",
    ):
        assert f" {command} " in result.output
        assert command == "train" or invoke(command, "--help").exit_code == 0


def test_list_prints_id_and_statement(stored):
    result = invoke("list", stored)
    assert result.exit_code == 0
    assert lines(result) == ["0 Ann runs Acme.", "1 Bo plays the cello.", "2 Oslo is cold."]


def test_list_of_checkpoint_without_facts_is_empty(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "recipe", "knowledge_dim": 8}))
    result = invoke("list", tmp_path)
    assert result.exit_code == 0 and result.output == ""


def test_remove_is_saved(stored):
    result = invoke("remove", stored, 0, 2)
    assert result.exit_code == 0
    assert lines(result)[:2] == ["removed 0 Ann runs Acme.", "removed 2 Oslo is cold."]
    assert lines(result)[2].endswith("now holds 1 fact.")
    assert [fact.id for fact in KnowledgeBase.load(stored / "knowledge")] == [1]


def test_remove_of_unknown_id_changes_nothing(stored):
    before = {path.name: path.read_bytes() for path in (stored / "knowledge").iterdir()}
    assert_refused(invoke("remove", stored, 0, 7), "id must be that of a fact in the knowledge base, got 7.")
    assert before == {path.name: path.read_bytes() for path in (stored / "knowledge").iterdir()}


def test_altered_knowledge_is_refused(stored):
    path = stored / "knowledge" / "knowledge.jsonl"
    path.write_text(path.read_text().replace("Ann", "Bob"))
    assert_refused(invoke("list", stored), "knowledge.jsonl is damaged")


@pytest.mark.parametrize(
    "arguments", [("list",), ("remove", 1), ("add", "A fact."), ("ask", "Why?"), ("push", "org/name"), ("demo",)]
)
def test_directory_without_checkpoint_is_refused(tmp_path, arguments):
    command, *rest = arguments
    where = ["--checkpoint", tmp_path] if command == "demo" else [tmp_path]
    assert_refused(invoke(command, *where, *rest), "CHECKPOINT must be a directory with a config.json")


def test_add_without_facts_is_refused(stored):
    assert_refused(invoke("add", stored), "add needs at least one statement, --prompt with --answer, or --from FILE.")


def test_facts_file_that_is_not_json_is_refused(stored):
    (stored / "facts.jsonl").write_text('"A fact."\nnot json\n')
    assert_refused(invoke("add", stored, "--from", stored / "facts.jsonl"), "facts.jsonl, line 2: not JSON")


def test_facts_file_that_is_not_there_is_named(stored):
    for path in (stored / "no.jsonl", stored):
        assert_refused(invoke("add", stored, "--from", path), f"--from must be a file that exists, got '{path}'.")


def test_push_needs_the_hub(stored, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(invoke("push", stored, "org/name"), "offline mode is enabled")


def test_wrong_option_is_a_usage_error(stored):
    result = invoke("add", stored, "A fact.", "--on-conflict", "shrug")
    assert result.exit_code == 2 and "shrug" in result.output


def test_added_facts_are_answered_until_removed(checkpoint, saved):
    (prompt, answer), base = FACTS[0], saved[1]
    added = invoke("add", checkpoint, f"{prompt} {answer}", "Grass is green.")
    assert lines(added)[:2] == [f"added 0 {prompt} {answer}", "added 1 Grass is green."]
    assert lines(added)[2].endswith("now holds 2 facts.")

    asked = lines(invoke("ask", checkpoint, prompt, "--base-model", base, "--max-new-tokens", 3))
    assert asked[0] == prompt and asked[2].startswith(f"fact 0: {prompt} {answer} (score ")

    assert invoke("remove", checkpoint, 0, 1).exit_code == 0
    asked = lines(invoke("ask", checkpoint, prompt, "--base-model", base, "--max-new-tokens", 3))
    assert asked[2] == "no fact applies: the base model's own answer"


def test_no_verifier_leaves_it_out(saved, dataset, tmp_path):
    """The verifier here affirms nothing; the retriever alone finds every fact."""
    verified_recipe(offset=-50).save_pretrained(tmp_path / "verified")
    (prompt, _), base = FACTS[0], ["--base-model", saved[1]]
    evaluated = ["evaluate", "--dataset", dataset, *base]
    for more, used, read in (([], "", True), (["--no-verifier"], "fact 0: ", False)):
        assert ("(used)" in invoke("explain", tmp_path / "verified", prompt, *more).output) == bool(used)
        asked = lines(invoke("ask", tmp_path / "verified", prompt, *base, "--max-new-tokens", 3, *more))
        assert asked[2].startswith(used or "no fact applies")
        output = tmp_path / f"evaluation-{read}.json"
        assert invoke(*evaluated, tmp_path / "verified", "--output", output, *more).exit_code == 0
        assert (json.loads(output.read_text())["settings"]["verifier"] is not None) == read


@pytest.mark.parametrize("command", ["ask", "explain", "evaluate", "compare", "ablate", "harness", "efficiency"])
def test_commands_that_ask_a_model_can_leave_the_verifier_out(command):
    assert "--no-verifier" in invoke(command, "--help").output


def test_a_fact_is_added_that_the_terminal_cannot_show(checkpoint):
    party = "\N{PARTY POPPER} is for parties."
    result = CliRunner(charset="cp1252").invoke(app, ["add", str(checkpoint), party])
    assert result.exit_code == 0 and lines(result)[0] == "added 0 ? is for parties."
    assert [fact.statement for fact in KnowledgeBase.load(checkpoint / "knowledge")] == [party]


def test_prompts_with_answers_are_added_together(checkpoint):
    told = ["--prompt", "Zork was written by", "--answer", "Infocom", "--prompt", "Dogs are", "--answer", "loud"]
    assert invoke("add", checkpoint, *told, "Oslo is cold.").exit_code == 0
    facts = list(KnowledgeBase.load(checkpoint / "knowledge"))
    assert [(fact.prompt, fact.answer) for fact in facts] == [
        ("Zork was written by", "Infocom"),
        ("Dogs are", "loud"),
        (None, None),
    ]
    refused = invoke("add", checkpoint, "--prompt", "Dogs are", "Oslo is cold.")
    assert_refused(refused, "--answer must be given once for each --prompt, got 0 for 1.")


def test_add_reads_json_lines_in_every_form(checkpoint, tmp_path):
    (tmp_path / "facts.jsonl").write_text(
        '"Grass is green."\n\n["The sky is", "blue"]\n'
        '{"prompt": "Snow is", "answer": "white", "metadata": {"source": "a look outside"}}\n'
    )
    assert invoke("add", checkpoint, "--from", tmp_path / "facts.jsonl").exit_code == 0
    facts = list(KnowledgeBase.load(checkpoint / "knowledge"))
    assert [fact.statement for fact in facts] == ["Grass is green.", "The sky is blue", "Snow is white"]
    assert facts[1].answer == "blue" and facts[2].metadata == {"source": "a look outside"}


def test_add_obeys_on_conflict(checkpoint):
    invoke("add", checkpoint, "Grass is green.")
    assert lines(invoke("add", checkpoint, "Grass is green.", "--on-conflict", "keep"))[0] == "kept 0 Grass is green."
    assert_refused(invoke("add", checkpoint, "Grass is green.", "--on-conflict", "error"), "on_conflict='error'")
    assert lines(invoke("add", checkpoint, "Grass is green."))[0] == "added 1 Grass is green."
    assert lines(invoke("add", checkpoint, "Grass is green.", "Grass  is green."))[0] == "added 3 Grass is green."


def test_refused_fact_changes_nothing(checkpoint):
    assert_refused(invoke("add", checkpoint, UNRELATED[0], "x" * 200), "the encoder's 96 tokens")
    assert len(KnowledgeBase.load(checkpoint / "knowledge")) == 0


def test_ask_with_another_base_is_refused(checkpoint, tmp_path):
    tiny_base(seed=1).save_pretrained(tmp_path)
    assert_refused(invoke("ask", checkpoint, "Why?", "--base-model", tmp_path), "base")


def test_facts_kept_in_a_file_of_their_own(checkpoint, saved, tmp_path):
    (prompt, answer), kept = FACTS[0], ["--knowledge", tmp_path / "facts.db"]
    added = invoke("add", checkpoint, f"{prompt} {answer}", *kept)
    assert lines(added) == [f"added 0 {prompt} {answer}", f"{tmp_path}/facts.db now holds 1 fact."]
    invoke("add", checkpoint, f"{prompt} {answer}", "Grass is green.", *kept, "--namespace", "acme")
    assert lines(invoke("list", checkpoint, *kept)) == [f"0 {prompt} {answer}"]
    assert len(lines(invoke("list", checkpoint, *kept, "--namespace", "acme"))) == 2
    assert lines(invoke("list", checkpoint)) == []
    options = ["--base-model", saved[1], "--max-new-tokens", 3]
    assert lines(invoke("ask", checkpoint, prompt, *options, *kept))[2].startswith(
        f"fact 0: {prompt} {answer} (score "
    )
    assert lines(invoke("ask", checkpoint, prompt, *options))[2] == "no fact applies: the base model's own answer"
    assert lines(invoke("remove", checkpoint, 0, *kept))[1] == f"{tmp_path}/facts.db now holds 0 facts."
    (past,) = lines(invoke("list", checkpoint, "--history", *kept))
    assert past.startswith(f"0 {prompt} {answer} (removed 20")
    assert lines(invoke("restore", checkpoint, 0, *kept)) == [f"added 1 {prompt} {answer}"]
    assert_refused(invoke("restore", checkpoint, 7, *kept), "id must be that of a past fact")
    explained = lines(invoke("explain", checkpoint, prompt, *kept))
    assert explained[0] == prompt and explained[2].endswith(f"fact 1: {prompt} {answer} (used)")
    with KnowledgeBase.open(tmp_path / "facts.db"):
        assert_refused(invoke("remove", checkpoint, 1, *kept), "It is being written by process")
        assert len(lines(invoke("list", checkpoint, *kept))) == 1


def test_files_of_facts_that_are_not_there_are_refused(stored, tmp_path):
    missing = ["--knowledge", tmp_path / "nothing.db"]
    for command in (["list"], ["export", tmp_path / "facts.jsonl"]):
        result = invoke(command[0], stored, *command[1:], *missing)
        assert_refused(result, "path must be a file that exists")
    assert_refused(invoke("list", stored, "--namespace", "acme"), "--namespace must come with --knowledge FILE")


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.parquet"])
def test_exported_facts_can_be_added(checkpoint, stored, tmp_path, name):
    invoke("remove", stored, 0)
    result = invoke("export", stored, tmp_path / name)
    assert lines(result)[0].endswith(f"{name} holds 2 facts.")
    assert invoke("add", checkpoint, "--from", tmp_path / name).exit_code == 0
    facts = [fact.statement for fact in KnowledgeBase.load(checkpoint / "knowledge")]
    assert facts == ["Bo plays the cello.", "Oslo is cold."]
    assert_refused(invoke("export", stored, tmp_path / "facts.csv"), "path must end in .jsonl or .parquet")


def test_a_truncated_file_of_facts_is_salvaged(stored, tmp_path):
    path = tmp_path / "facts.db"
    with KnowledgeBase.open(path, 8) as base:
        base.add([f"Fact {i}." for i in range(500)], torch.ones(500, 8))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size * 3 // 4)
    refused = invoke("list", stored, "--knowledge", path)
    assert_refused(refused, f"`recipe-hf salvage {path} NEW` saves what can be read of it")
    (said, *_) = lines(invoke("salvage", path, tmp_path / "new.db"))
    saved = len(lines(invoke("list", stored, "--knowledge", tmp_path / "new.db")))
    assert 0 < saved < 500
    assert said == f"{tmp_path}/new.db now holds {saved} facts and 0 past ones; {500 - saved} lost."
    assert_refused(invoke("salvage", path, tmp_path / "new.db"), "NEW must be a file that is not there yet")


def test_traceback_is_shown_on_demand(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_HF_TRACEBACK", "1")
    assert isinstance(invoke("list", tmp_path).exception, ValueError)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six facts of one's own, the first two with other questions."""
    rows = [{"prompt": f"The home of Person {i} is", "answer": "Oslo", "subject": f"Person {i}"} for i in range(6)]
    for row in rows[:2]:
        row |= {"rephrasings": [f"{row['subject']} lives in"], "unrelated": ["The sun is"]}
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_evaluate_prints_a_table_and_writes_every_outcome(checkpoint, saved, dataset, tmp_path):
    output, options = tmp_path / "evaluation.json", ["--base-model", saved[1], "--seeds", 0, "--seeds", 1]
    result = invoke("evaluate", checkpoint, "--dataset", dataset, *options, "--num-edits", 6, "--output", output)
    assert result.exit_code == 0, result.output
    assert "| facts | reliability | generality | locality | right fact, edits" in result.output
    record = json.loads(output.read_text())
    assert record["dataset"] == "facts.jsonl" and [r["seed"] for r in record["reports"]] == [0, 1]
    kinds = [outcome["kind"] for outcome in record["reports"][0]["outcomes"]]
    assert kinds == ["reliability"] * 6 + ["generality"] * 2 + ["locality"] * 2


def test_evaluate_takes_several_values_of_an_option_at_once(checkpoint, saved, dataset, tmp_path):
    output = tmp_path / "out" / "evaluation.json"
    options = ["--num-edits", 1, 4, "--seeds", 0, 2, "--protocol", "strict", "generation", "--num-questions", 2]
    result = invoke(
        "evaluate", "--dataset", dataset, *options, checkpoint, "--base-model", saved[1], "--output", output
    )
    assert result.exit_code == 0, result.output
    reports = json.loads(output.read_text())["reports"]
    cells = [(n, s, p) for n in (1, 4) for s in (0, 2) for p in ("strict", "generation")]
    assert [(r["num_edits"], r["seed"], r["protocol"]) for r in reports] == cells
    page = output.with_suffix(".md").read_text()
    assert page in result.output and "## Protocol `generation`" in page
    assert sorted(path.name for path in output.parent.iterdir()) == ["evaluation.json", "evaluation.md"]


def test_evaluate_probes_general_prompts_and_plots(checkpoint, saved, dataset, tmp_path):
    general = tmp_path / "general.jsonl"
    general.write_text('{"text": "The home of Person 1 is"}\n"Water boils at"\n')
    output = tmp_path / "evaluation.json"
    options = ["--base-model", saved[1], "--probes", "--general", general, "--plots", "--output", output]
    result = invoke("evaluate", checkpoint, "--dataset", dataset, *options)
    assert result.exit_code == 0, result.output
    (report,) = json.loads(output.read_text())["reports"]
    kinds = {outcome["kind"] for outcome in report["outcomes"]}
    assert kinds >= {"negated", "chat"} and report["general"]["general.jsonl"]["prompts"] == 2
    assert "| general prompts, general.jsonl: a fact was used |" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    again = invoke("evaluate", checkpoint, "--dataset", dataset, *options)
    assert again.exit_code == 0 and json.loads(output.read_text())["reports"] == [report]
    assert_refused(
        invoke("evaluate", checkpoint, "--dataset", dataset, *options[:2], "--output", output), "probes was"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plots",), "--plots needs --output"),
        (("--general", "no.jsonl"), "--general must be a file that exists, got 'no.jsonl'."),
        (("--general", "a/x.jsonl", "--general", "b/x.jsonl"), "--general must name files of different names"),
        (("--protocol", "strict", "lenient"), "--protocol must be one of strict, paper, generation, got 'lenient'"),
        (("--num-edits", 1, 1), "--num-edits must name one or more, none of them twice, got [1, 1]"),
        (("--num-questions", 0), "--num-questions must be at least 1, got 0"),
        (("--output", "results.txt"), "--output must end in .json, got 'results.txt'"),
    ],
)
def test_evaluate_refuses_what_makes_no_sense(checkpoint, saved, dataset, options, message):
    result = invoke("evaluate", checkpoint, "--dataset", dataset, "--base-model", saved[1], *options)
    assert_refused(result, message)


def test_evaluate_takes_halves_of_several_data_sets(checkpoint, saved, dataset, tmp_path):
    other, output = tmp_path / "other.jsonl", tmp_path / "evaluation.json"
    other.write_text(dataset.read_text().replace("Person", "Place"))
    both = ["--dataset", dataset, "--dataset", other, "--half", "held_out"]
    result = invoke("evaluate", checkpoint, *both, "--base-model", saved[1], "--output", output)
    assert result.exit_code == 0, result.output
    (report,) = json.loads(output.read_text())["reports"]
    held_out = [e.prompt for path in (dataset, other) for e in load_examples(path, half="held_out")]
    asked = [outcome["query"] for outcome in report["outcomes"] if outcome["kind"] == "reliability"]
    assert report["num_edits"] == 6 and sorted(asked) == sorted(held_out)


def test_evaluate_refuses_more_edits_than_facts(checkpoint, dataset):
    result = invoke("evaluate", checkpoint, "--dataset", dataset, "--num-edits", 7)
    assert_refused(result, "--num-edits must be between 1 and the 6 facts of facts.jsonl, got [7]")


def test_efficiency_writes_times_and_a_table(checkpoint, saved, dataset, tmp_path):
    output = tmp_path / "efficiency.json"
    options = ["--base-model", saved[1], "--num-edits", 1, 6, "--new-tokens", 2, "--repeats", 2, "--output", output]
    result = invoke("efficiency", checkpoint, "--dataset", dataset, *options)
    assert result.exit_code == 0, result.output
    assert list(json.loads(output.read_text())["rows"]) == ["1", "6"]
    assert output.with_suffix(".md").read_text() in result.output
    assert_refused(
        invoke("efficiency", checkpoint, "--dataset", dataset, *options[:2], "--num-edits", 7),
        "--num-edits must be between 1 and the 6 facts at hand, got [7]",
    )


def test_harness_compares_base_and_facts(checkpoint, saved, dataset, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'recipe-hf[harness]'")
    row = {"sentence1": "It rains.", "sentence2": "It is dry.", "label": "not_entailment"}
    (tmp_path / "general-rte.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    output = tmp_path / "harness.json"
    options = ["--base-model", saved[1], "--facts", dataset, "--tasks", "local_rte", "--data", tmp_path]
    result = invoke("harness", checkpoint, *options, "--num-facts", 5, "--limit", 2, "--output", output)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert record["tasks"]["local_rte"]["rows"] == 2 and record["settings"]["facts"].startswith("5, SHA-256")
    assert "| rte | 2 | acc | " in output.with_suffix(".md").read_text()
    assert_refused(invoke("harness", checkpoint, *options), "--num-facts must be at most the 6 of")


def test_evaluate_takes_the_precision_of_the_base(checkpoint, saved, dataset, tmp_path):
    output = tmp_path / "evaluation.json"
    options = ["--dataset", dataset, "--base-model", saved[1], "--output", output]
    assert invoke("evaluate", checkpoint, *options, "--dtype", "bfloat16").exit_code == 0
    assert json.loads(output.read_text())["settings"]["dtype"] == "bfloat16"
    assert_refused(invoke("evaluate", checkpoint, *options), "dtype was 'bfloat16', now 'float32'")


def test_compare_prints_a_table_and_goes_on(checkpoint, saved, dataset, tmp_path):
    output = tmp_path / "compare.json"
    options = ["--dataset", dataset, "--base-model", saved[1], "--num-edits", 2, 4, "--output", output]
    result = invoke("compare", checkpoint, *options, "--editors", "base", "context")
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert record["command"] == "compare" and record["settings"]["dataset"] == "facts.jsonl"
    assert [row[1:3] for row in record["rows"]] == [["2", "base"], ["2", "context"], ["4", "base"], ["4", "context"]]
    page = output.with_suffix(".md").read_text()
    assert page in result.output and "| 2 | context |" in page
    more = ["--editors", "lora", "--epochs", 1, "--max-trained-edits", 2]
    assert_refused(invoke("compare", checkpoint, *options, *more), "options was")


def test_compare_wants_rows_to_tune_on(checkpoint, dataset):
    result = invoke("compare", checkpoint, "--dataset", dataset, "--num-edits", 2)
    assert_refused(result, "validation rows are needed for context-minilm, grace, got none")


def test_ablate_measures_what_each_part_brings_and_draws_prompts(checkpoint, saved, dataset, tmp_path):
    output = tmp_path / "ablate.json"
    options = ["--dataset", dataset, "--validation", dataset, "--base-model", saved[1], "--num-edits", 4]
    result = invoke("ablate", checkpoint, *options, "--picture", "--picture-facts", 3, "--output", output)
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    assert record["command"] == "ablate"
    assert [row[2] for row in record["rows"]] == ["recipe-statements", "no-prompts", "no-sentinel", "neither"]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "Median norms in the picture: " in result.output and "facts.jsonl, trained weights" in result.output
    assert_refused(invoke("ablate", checkpoint, *options, "--picture"), "--picture needs --output")


def test_sweep_trains_with_each_number_of_tokens(dataset, tmp_path):
    parts, output = write_parts(tmp_path), tmp_path / "sweep.json"
    config = {
        "model": {"base_model": str(parts / "base"), "encoder": str(parts / "encoder"), "knowledge_dim": 64},
        "data": {"train_file": str(parts / "train.json"), "num_eval_examples": 4},
        "run": {"output_dir": str(tmp_path / "runs")},
        "stages": [{"name": "all", "steps": 1, "contrastive_batch_size": 4}],
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    options = ["--config", tmp_path / "tiny.yaml", "--tokens", 1, 2, "--num-edits", 3, "--output", output, "--picture"]
    result = invoke("sweep", "--dataset", dataset, *options)
    assert result.exit_code == 0, result.output
    assert [row[1] for row in json.loads(output.read_text())["rows"]] == ["1", "2"]
    assert output.with_suffix(".md").read_text() in result.output and output.with_suffix(".png").exists()


def test_evaluate_and_compare_take_a_checkpoint_that_tells_facts_as_text(saved, dataset, tmp_path):
    tiny_recipe(prompt_form="text").save_pretrained(tmp_path / "text")
    options = [tmp_path / "text", "--dataset", dataset, "--base-model", saved[1], "--num-edits", 4]
    options += ["--protocol", "strict", "generation"]
    record = tmp_path / "evaluation.json"
    result = invoke("evaluate", *options, "--output", record)
    assert result.exit_code == 0, result.output
    assert json.loads(record.read_text())["settings"]["prompt_form"] == "text"
    editors = ["--editors", "recipe", "recipe-statements", "--output", tmp_path / "compare.json"]
    result = invoke("compare", *options, *editors)
    assert result.exit_code == 0, result.output
    told = [json.loads(record.read_text())["reports"][i]["outcomes"] for i in (0, 1)]
    compared = [r["outcomes"] for r in json.loads((tmp_path / "compare.json").read_text())["results"]]
    outputs = [[outcome["output"] for outcome in outcomes] for outcomes in told]
    assert [[outcome["output"] for outcome in outcomes] for outcomes in compared] == outputs * 2


def test_ask_knows_how_long_facts_told_as_text_are(saved, tmp_path):
    model = tiny_recipe(prompt_form="text")
    model.add_knowledge(FACTS)
    model.save_pretrained(tmp_path / "text")
    for prompt, room in ((PROMPTS[0], 512 - len("The CEO of Acme is Ann Lee.\n")), (UNRELATED[0], 512)):
        result = invoke("ask", tmp_path / "text", prompt, "--base-model", saved[1], "--max-new-tokens", 600)
        assert_refused(result, f"--max-new-tokens must be at most {room - 1}, got 600.")
