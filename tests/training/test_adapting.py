"""`recipe-hf adapt`: the prompts of another base, for a retriever that is trained already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from typer.testing import CliRunner

from recipe_hf import RecipeForCausalLM
from recipe_hf.cli import app
from recipe_hf.training.adapting import faster_precision
from recipe_hf.training.config import StageConfig
from recipe_hf.training.objective import RecipeObjective, parameter_groups
from recipe_hf.training.sampling import FactSampler
from recipe_hf.training.warm_start import embedding_scale
from tests.tiny_recipe import base_tokenizer, tiny_base, untrained_recipe
from tests.tiny_training import EXAMPLES, tiny_config, write_parts

SHORT = ["data.num_eval_questions=3", "run.eval_steps=2", "objective.length_buckets=1"]
SHORT += [f"stages.{number}.steps=2" for number in range(4)]
# The process has one precision, that of the first run in it.
SHORT += ["run.mixed_precision=no", "model.num_answer_prompt_tokens=4", "data.sampling.rewording_share=0"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_parts(tmp_path_factory.mktemp("parts"))
    model = untrained_recipe()
    model.add_knowledge(["Ann Lee lives in Oslo."])
    model.save_pretrained(directory / "retriever")
    other = tiny_base("gpt2", n_embd=48)
    other.save_pretrained(directory / "other")
    base_tokenizer().save_pretrained(directory / "other")
    return directory


@pytest.fixture(autouse=True)
def forget_precision() -> None:
    """Accelerate keeps the precision of a process, and what is measured may be another the next time."""
    AcceleratorState._reset_state(reset_partial_state=True)


def adapt(parts: Path, output: Path, *arguments: object, base: str = "other") -> Any:
    command = ["adapt", parts / base, "--retriever", parts / "retriever", "--output", output]
    command += ["--train-file", parts / "train.json", *arguments]
    for assignment in SHORT:
        command += ["--set", assignment]
    return CliRunner().invoke(app, [str(argument) for argument in command])


def test_a_base_of_another_width_gets_prompts_for_the_retriever_as_it_is(parts: Path, tmp_path: Path):
    result = adapt(parts, tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert "on held-out facts: reliability" in result.output and str(tmp_path / "new") in result.output
    weights = load_file(tmp_path / "new" / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"prompt_encoder", "answer_prompt_encoder"}
    given = RecipeForCausalLM.from_pretrained(parts / "retriever", base_model=False)
    made = RecipeForCausalLM.from_pretrained(tmp_path / "new")
    for name, weight in given.retriever.state_dict().items():
        torch.testing.assert_close(made.retriever.state_dict()[name], weight, atol=0, rtol=0)
    assert made.config.hidden_size == 48 and len(made.knowledge) == 0
    assert (tmp_path / "new" / "README.md").is_file()
    record = json.loads((tmp_path / "new" / "training.json").read_text())
    assert record["config"]["model"]["retriever"] == str(parts / "retriever")
    # Of 25 facts, five are held out, and no batch is larger than the rest.
    assert record["config"]["data"]["num_eval_examples"] == 5
    assert record["config"]["stages"][1]["contrastive_batch_size"] == 20
    made.add_knowledge([("Bo Ray lives in", "Rome")])
    assert made.knowledge[0 if 0 in made.knowledge else 1].statement == "Bo Ray lives in Rome"


def test_a_finished_checkpoint_is_not_overwritten_and_a_finished_run_resumes_to_the_same(parts: Path, tmp_path: Path):
    assert adapt(parts, tmp_path / "new").exit_code == 0
    weights = (tmp_path / "new" / "model.safetensors").read_bytes()
    again = adapt(parts, tmp_path / "new")
    assert again.exit_code == 2 and "directory without a checkpoint" in again.output
    assert adapt(parts, tmp_path / "new", "--resume").exit_code == 0
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == weights


def test_a_run_goes_on_in_the_precision_that_it_began_in(parts: Path, tmp_path: Path):
    other = "bf16" if faster_precision() == "no" else "no"
    result = adapt(parts, tmp_path / "new", "--set", f"run.mixed_precision='{other}'")
    assert result.exit_code == 0, result.output
    result = adapt(parts, tmp_path / "new", "--resume")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "new" / "training.json").read_text())
    assert record["config"]["run"]["mixed_precision"] == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "stages.1.learning_rate=0.1"], "stages.1.learning_rate must be 0 with a trained retriever"),
        (["--set", "model.checkpoint=there"], "model.retriever must be null with a checkpoint"),
        (["--set", "model.encoder_revision=main"], "encoder_revision must be null with a checkpoint or a retriever"),
        (["--retriever", "nowhere/at/all"], "retriever must be"),
        (["--set", "run.output_dir=elsewhere"], ", in the output directory, got 'elsewhere'"),
        (["--resume"], "does not exist, so there is nothing to resume"),
        (["--push-to-hub"], "run.hub_model_id must be a repository id"),
        (["--push-to-hub", "--hub-model-id", "a/b"], "model.retriever must be on the Hub with push_to_hub"),
    ],
)
def test_what_is_refused_leaves_nothing(parts: Path, tmp_path: Path, arguments: list[str], message: str):
    result = adapt(parts, tmp_path / "new", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


def test_stages_that_train_prompts_alone_ask_the_retriever_for_keys_only():
    stage = StageConfig(
        name="read out", steps=1, contrastive_batch_size=4, learning_rate=0.0, prompt_learning_rate=0.1
    )
    config = tiny_config(Path("p"), Path("o"), stages=[stage], retriever="r", relative_prompt_rates=True)
    sampler = FactSampler(EXAMPLES, config.data.sampling, seed=0)
    objective = RecipeObjective(untrained_recipe(), config, sampler)
    objective.start_stage(stage, None)
    losses = objective(sampler.draw(0, 4), stage, 0)
    assert set(losses) == {"read_out"}
    losses["read_out"].backward()
    trained = {name.split(".")[0] for name, p in objective.named_parameters() if p.grad is not None}
    assert trained == {"prompt_encoder"}


def test_rates_follow_the_scale_of_the_word_embeddings():
    config = tiny_config(Path("p"), Path("o"), relative_prompt_rates=True)
    model = untrained_recipe()
    with torch.no_grad():
        model.lm.get_input_embeddings().weight.normal_(0, 1.0)
    objective = RecipeObjective(model, config, FactSampler(EXAMPLES, config.data.sampling, seed=0))
    assert embedding_scale(model.lm) == 8.0
    factors = {id(p): group["factor"] for group in parameter_groups(objective) for p in group["params"]}
    assert factors[id(objective.prompt_encoder.output.weight)] == 8.0
    assert factors[id(objective.warm_start_prompt.offset)] == 8.0
    assert factors[id(objective.prompt_encoder.residual.weight)] == 1.0
