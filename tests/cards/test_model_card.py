from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import BertConfig

from recipe_hf.cards import EvaluationResult, TrainingRun, model_card, published_card, write_model_card
from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.modeling.configuration import RecipeConfig


def make_checkpoint(
    path: Path, base: str | None = "HuggingFaceTB/SmolLM2-135M-Instruct", facts: int = 0, past: int = 0
) -> Path:
    encoder = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    RecipeConfig(
        encoder_config=encoder, base_model_name_or_path=base, hidden_size=48, knowledge_dim=64
    ).save_pretrained(path)
    if facts:
        knowledge = KnowledgeBase(64)
        ids = knowledge.add([f"Fact {i}." for i in range(facts + past)], torch.ones(facts + past, 64))
        knowledge.remove(ids[:past])
        knowledge.save(path / "knowledge")
    return path


def make_run(**changes) -> TrainingRun:
    values = {
        "base_weights": "the GGUF file of SmolLM2-135M-Instruct, Q4_1, dequantised",
        "encoder": "all-MiniLM-L6-v2",
        "training_data": "CounterFact, training part, 10,000 rows",
        "hardware": "two CPU cores",
        "hours": 1.5,
        "results": [
            EvaluationResult(
                dataset="CounterFact, test part",
                protocol="strict",
                seeds=[0, 1, 2],
                rows={
                    1000: {"reliability": 91.5, "locality": "97.0 ± 0.2"},
                    10000: {"reliability": 88.0, "locality": 90.1},
                },
            )
        ],
        "training_config": {"learning_rate": 0.001, "stages": ["warm start", "joint"]},
        "language": ["en"],
        "license": "apache-2.0",
        "limits": ["Answers of more than four tokens are often cut short."],
    }
    return TrainingRun(**(values | changes))


def test_card_has_metadata_the_hub_understands(tmp_path):
    write_model_card(make_checkpoint(tmp_path), make_run(datasets=["org/data"]))
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["library_name"] == "recipe_hf"
    assert data["pipeline_tag"] == "text-generation"
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["base_model_relation"] == "adapter"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["org/data"]
    assert "knowledge-editing" in data["tags"]


def test_card_says_what_the_run_and_the_checkpoint_know(tmp_path):
    text = write_model_card(make_checkpoint(tmp_path), make_run()).text
    for expected in (
        "# RECIPE for SmolLM2-135M-Instruct",
        "Trained against the GGUF file of SmolLM2-135M-Instruct, Q4_1, dequantised.",
        "**CounterFact, test part, protocol `strict`**, seeds 0, 1, 2:",
        "| number of edits | reliability | locality |\n|---:|---:|---:|\n"
        "| 1,000 | 91.5 | 97.0 ± 0.2 |\n| 10,000 | 88.0 | 90.1 |\n",
        "two CPU cores, 1.5 hours",
        "`knowledge_dim` 64, 3 continuous prompt tokens",
        "```yaml\nlearning_rate: 0.001\nstages:\n- warm start\n- joint\n```",
        "- Answers of more than four tokens are often cut short.",
        "None: the knowledge base is empty.",
    ):
        assert expected in text
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text


def test_card_of_facts_told_as_text_claims_no_training_for_its_base(tmp_path):
    config = json.loads((make_checkpoint(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"prompt_form": "text"}))
    text = write_model_card(tmp_path, make_run(repo_id="org/told")).text
    assert "gets its statement in front, as hidden text. A prompt" in text
    assert "holds the retriever (`model.safetensors`), not" in text
    assert 'Nothing in it was trained for this base (`prompt_form="text"`):\n' in text
    assert '(base, retriever="org/told")` gives any other base the same.\n\n## Use' in text
    assert "- Sizes: `knowledge_dim` 64, 10 sentinel tokens.\n" in text
    assert "continuous" not in text.partition("## Citation")[0] and "Trained against" not in text
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text


def test_card_pins_revisions_and_versions(tmp_path):
    run = make_run(encoder_revision="e5ce", versions={"torch": "2.13.0", "transformers": "5.1.0"})
    config = json.loads((make_checkpoint(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"base_model_revision": "ba5e"}))
    text = write_model_card(tmp_path, run).text
    assert "dequantised, revision `ba5e`.\n" in text
    assert "all-MiniLM-L6-v2 (`bert`), revision `e5ce`.\n" in text
    assert "- Versions: torch 2.13.0, transformers 5.1.0.\n" in text
    assert "revision" not in write_model_card(make_checkpoint(tmp_path), make_run()).text


@pytest.mark.parametrize(
    ("facts", "past", "said"),
    [
        (1, 0, "ships 1 fact, in plain\ntext in"),
        (1200, 0, "ships 1,200 facts, in plain\ntext in"),
        (2, 3, "ships 2 facts and a history of 3 replaced or removed, in plain\ntext in"),
    ],
)
def test_card_counts_the_facts_and_says_they_are_public(tmp_path, facts, past, said):
    text = write_model_card(make_checkpoint(tmp_path, facts=facts, past=past), make_run()).text
    assert said in text and "as public as the repository" in text


def test_local_base_is_not_presented_as_a_hub_model(tmp_path):
    card = write_model_card(make_checkpoint(tmp_path, base="/data/models/my-base.gguf"), make_run())
    assert "base_model" not in card.data.to_dict()
    assert "/data/models" not in str(card)
    assert 'base_model="path/to/the/base"' in card.text


def test_run_names_the_base_and_the_repository(tmp_path):
    card = write_model_card(
        make_checkpoint(tmp_path, base=None), make_run(base_model="org/base", repo_id="org/recipe")
    )
    assert card.data.base_model == "org/base"
    assert 'RecipeForCausalLM.from_pretrained("org/recipe")' in card.text


def test_card_without_results_says_so(tmp_path):
    text = write_model_card(make_checkpoint(tmp_path), make_run(results=[], training_config={}, limits=[])).text
    assert "No evaluation was recorded" in text and "```yaml" not in text and "\n\n\n" not in text


def test_results_are_in_the_model_index_with_protocol_and_number_of_edits(tmp_path):
    write_model_card(make_checkpoint(tmp_path), make_run())
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == "RECIPE for SmolLM2-135M-Instruct"
    assert {result.dataset_type for result in data.eval_results} == {"counterfact"}
    assert [(result.metric_type, result.metric_name, result.metric_value) for result in data.eval_results] == [
        ("reliability", "reliability, protocol strict, 1,000 edits", 91.5),
        ("locality", "locality, protocol strict, 1,000 edits", 97.0),
        ("reliability", "reliability, protocol strict, 10,000 edits", 88.0),
        ("locality", "locality, protocol strict, 10,000 edits", 90.1),
    ]


def result_of(
    dataset: str, value: float, seeds: tuple[int, ...] = (0,), numbers: tuple[int, ...] = (1000,), **changes
):
    rows = {number: {"reliability": value} for number in numbers}
    return EvaluationResult(**{"dataset": dataset, "protocol": "strict", "seeds": list(seeds), "rows": rows} | changes)


def test_each_experiment_has_its_own_entry_in_the_model_index(tmp_path):
    names = [
        f"a.json, {how}" for how in ("asking about 500", "asking about 100", "told as statements, asking about 200")
    ]
    run = make_run(results=[result_of(name, 90.0 + number) for number, name in enumerate(names)])
    data = write_model_card(make_checkpoint(tmp_path), run).data.to_dict()
    found = {entry["dataset"]["name"]: entry for entry in data["model-index"][0]["results"]}
    assert list(found) == names
    assert [entry["dataset"]["type"] for entry in found.values()] == ["a"] * 3
    assert found[names[2]]["dataset"]["config"] == "a-json-told-as-statements-asking-about-200"
    values = [[metric["value"] for metric in entry["metrics"]] for entry in found.values()]
    assert values == [[90.0], [91.0], [92.0]]


def test_what_two_runs_measured_alike_stands_once_as_the_larger_one_found_it(tmp_path):
    one, three, longer = (
        result_of("a.json", 91.0),
        result_of("a.json", 92.0, seeds=(0, 1, 2)),
        result_of("a.json", 93.0, numbers=(1000, 10000)),
    )
    other = result_of("a.json", 94.0, protocol="generation")
    card = write_model_card(make_checkpoint(tmp_path), make_run(results=[one, three, longer, other]))
    assert [(result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        ("reliability, protocol strict, 1,000 edits", 92.0),
        ("reliability, protocol strict, 10,000 edits", 93.0),
        ("reliability, protocol generation, 1,000 edits", 94.0),
    ]
    assert card.text.count("**a.json, protocol `strict`**") == 2 and "91.0" not in card.text
    assert "seeds 0, 1, 2:" in card.text and "| 1,000 | 92.0 |" in card.text


def test_card_claims_no_license_or_language_that_is_not_given(tmp_path):
    card = write_model_card(make_checkpoint(tmp_path), make_run(license=None, language=[]))
    assert not {"license", "language"} & card.data.to_dict().keys()
    assert "It knows the languages of its encoder and training data.\n" in card.text
    assert "training data: en, de.\n" in write_model_card(tmp_path, make_run(language=["en", "de"])).text


def test_card_without_a_run_says_what_is_not_known(tmp_path):
    config = RecipeConfig.from_pretrained(make_checkpoint(tmp_path))
    card = model_card(config)
    data = card.data.to_dict()
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not {"license", "language", "datasets", "model-index"} & data.keys()
    assert "No record of it came with this checkpoint.\n- Encoder: `bert`.\n- Sizes:" in card.text
    assert "No evaluation was recorded" in card.text and "Trained against" not in card.text
    assert "{{" not in card.text and "None." not in card.text and "\n\n\n" not in card.text


def test_published_card_names_the_repository_and_the_facts_that_go_with_it(tmp_path):
    knowledge = KnowledgeBase(64)
    ids = knowledge.add([f"Fact {i}." for i in range(3)], torch.ones(3, 64))
    knowledge.remove(ids[:1])
    empty = str(write_model_card(make_checkpoint(tmp_path), make_run()))
    full = published_card(empty, "org/recipe", knowledge)
    assert 'RecipeForCausalLM.from_pretrained("org/recipe")' in full
    assert "ships 2 facts and a history of 1 replaced or removed" in full and "None:" not in full
    assert full.split("## Citation")[1] == empty.split("## Citation")[1]
    assert published_card(full, "org/recipe", knowledge) == full
    assert published_card(full, "org/recipe", None) == published_card(empty, "org/recipe", None)


def test_published_card_of_somebody_else_tells_of_facts_only():
    knowledge = KnowledgeBase(64)
    assert published_card("# Mine\n", "org/recipe", knowledge) == "# Mine\n"
    knowledge.add(["A fact."], torch.ones(1, 64))
    assert published_card("# Mine\n", "org/recipe", knowledge).startswith(
        "# Mine\n\n## Facts shipped\n\nThis repository ships 1 fact, in plain"
    )


def test_example_in_card_is_python(tmp_path):
    text = write_model_card(make_checkpoint(tmp_path), make_run()).text
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")


def test_directory_without_checkpoint_is_refused_and_untouched(tmp_path):
    with pytest.raises(ValueError, match="model_dir must be a checkpoint directory"):
        write_model_card(tmp_path, make_run())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "lenient"}, "protocol must be one of strict, paper, generation, got 'lenient'"),
        ({"seeds": []}, "seeds must name at least one"),
        ({"rows": {}}, "rows must hold at least one"),
        ({"rows": {1: {"a": 1.0}, 2: {"b": 1.0}}}, "rows must have the metrics"),
    ],
)
def test_impossible_results_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EvaluationResult(**({"dataset": "d", "protocol": "strict", "seeds": [0], "rows": {1: {"a": 1.0}}} | changes))
