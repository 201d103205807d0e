from __future__ import annotations

import copy
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from recipe_hf import RecipeForCausalLM
from recipe_hf.evaluation.measuring.editing import evaluate_editing
from recipe_hf.training.config import LOSSES, StageConfig, TrainingConfig
from recipe_hf.training.trainer import Trainer, learning_rate_factor
from tests.tiny_training import EXAMPLES, STAGES, tiny_config, write_counterfact, write_parts

HEADS = STAGES[1]
STEPS_OF = {"warm start": [1, 2], "heads": [3, 4, 5], "encoder": [6, 7], "joint": [8, 9, 10]}


class Interrupted(Exception):
    pass


class RecordingTrainer(Trainer):
    """A trainer that remembers unrounded losses and the weights it kept as the best, and may be interrupted."""

    def __init__(self, config: TrainingConfig, stop_at: int | None = None) -> None:
        super().__init__(config)
        self.stop_at = stop_at
        self.losses: dict[int, dict[str, float]] = {}
        self.best_weights: dict[str, torch.Tensor] = {}

    def _train_step(self, stage: StageConfig, stage_step: int) -> dict[str, torch.Tensor]:
        if self.step == self.stop_at:
            raise Interrupted
        losses = super()._train_step(stage, stage_step)
        self.losses[self.step] = {name: loss.item() for name, loss in losses.items()}
        return losses

    def _evaluate(self) -> None:
        before = self.best_score
        super()._evaluate()
        if self.best_score > before:
            self.best_weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def read_log(config: TrainingConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.run.output_dir) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def finished(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> RecordingTrainer:
    """A run that went through all its stages unbroken."""
    trainer = RecordingTrainer(tiny_config(parts, tmp_path_factory.mktemp("unbroken"), save_steps=5))
    assert trainer.train() == trainer.output_dir / "best"
    return trainer


# ---------------------------------------------------------------------- a run


def test_every_step_logs_the_losses_of_its_stage(finished: RecordingTrainer):
    lines = [line for line in read_log(finished.config) if "stage" in line]
    steps: dict[str, list[int]] = {}
    for line in lines:
        steps.setdefault(line["stage"], []).append(line["step"])
        logged = {name: value for name, value in line.items() if name not in ("stage", "step", "seconds")}
        assert logged == pytest.approx(finished.losses[line["step"] - 1], abs=1e-4)
    assert steps == STEPS_OF
    of = {line["stage"]: set(line) - {"stage", "step", "seconds"} for line in lines}
    assert of["joint"] == set(LOSSES)
    assert of["warm start"] == {"reliability", "generality"}
    assert of["heads"] == of["encoder"] == set(LOSSES) - {"reliability", "generality", "locality", "continuation"}


def test_held_out_facts_are_evaluated_and_never_trained_on(finished: RecordingTrainer):
    lines = [line for line in read_log(finished.config) if "eval_reliability" in line]
    assert [line["step"] for line in lines] == [4, 8, 10]
    assert all(0 <= line[f"eval_{kind}"] <= 100 for line in lines for kind in ("generality", "locality"))
    assert finished.held_out == EXAMPLES[-6:]
    assert finished.sampler.examples == EXAMPLES[:-6]


def test_evaluation_may_hold_facts_of_the_training_part_too(parts: Path, tmp_path: Path):
    trainer = Trainer(tiny_config(parts, tmp_path, num_eval_training_facts=9))
    seen: list[int] = []
    add = trainer.model.add_knowledge
    trainer.model.add_knowledge = lambda facts: seen.append(len(facts)) or add(facts)
    trainer.output_dir.mkdir(exist_ok=True)
    trainer._evaluate()
    assert seen == [15] and not len(trainer.model.knowledge)


def test_best_checkpoint_loads_as_the_model_that_was_kept(finished: RecordingTrainer):
    best = finished.output_dir / "best"
    loaded = RecipeForCausalLM.from_pretrained(best)
    weights = loaded.state_dict()
    assert weights.keys() == finished.best_weights.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in finished.best_weights.items())
    assert not len(loaded.knowledge)

    kept = {name: tensor.clone() for name, tensor in finished.model.state_dict().items()}
    finished.model.load_state_dict(finished.best_weights)
    facts = [(e.prompt, e.answer) for e in EXAMPLES]
    questions = [e.rephrase_prompt for e in EXAMPLES] + [e.locality_prompt for e in EXAMPLES]
    assert loaded.add_knowledge(facts) == finished.model.add_knowledge(facts)
    for found, expected in zip(loaded.retrieve(questions), finished.model.retrieve(questions), strict=True):
        assert (found.id, found.fired) == (expected.id, expected.fired)
        assert found.score == pytest.approx(expected.score, rel=1e-5)
    finished.model.knowledge.clear()
    finished.model.load_state_dict(kept)


def test_best_checkpoint_says_how_it_was_made(finished: RecordingTrainer):
    summary = json.loads((finished.output_dir / "best" / "training.json").read_text())
    scores = {
        line["step"]: sum(line[f"eval_{kind}"] for kind in ("reliability", "generality", "locality")) / 3
        for line in read_log(finished.config)
        if "eval_reliability" in line
    }
    assert scores[summary["step"]] == pytest.approx(max(scores.values()), abs=0.02)
    assert finished.best_score == pytest.approx(max(scores.values()), abs=0.02)
    assert summary["versions"]["torch"] == version("torch") and "recipe-hf" in summary["versions"]
    config = summary["config"]
    assert config["run"]["seed"] == 0 and [stage["name"] for stage in config["stages"]] == list(STEPS_OF)


def test_all_trained_parts_moved_and_the_base_did_not(finished: RecordingTrainer):
    fresh = Trainer(finished.config).model
    moved = {
        name
        for (name, before), after in zip(fresh.state_dict().items(), finished.model.state_dict().values(), strict=True)
        if not torch.equal(before, after)
    }
    for part in ("mlp_k", "mlp_q", "sentinel_embeds", "encoder.encoder.layer.0", "standardizer.mean"):
        assert any(name.startswith(f"retriever.{part}") for name in moved), part
    assert "prompt_encoder.output.weight" in moved
    for name, weight in fresh.lm.state_dict().items():
        assert torch.equal(weight, finished.model.lm.state_dict()[name])


def test_an_evaluation_is_of_the_weights_of_its_step(parts: Path, tmp_path: Path):
    trainer = Trainer(tiny_config(parts, tmp_path))
    trainer.objective.start_stage(STAGES[2], None)
    for step in range(3):
        trainer._train_step(STAGES[2], step)
        found = evaluate_editing(trainer.model, trainer.held_out)
        fresh = evaluate_editing(copy.deepcopy(trainer.model), trainer.held_out)
        for one, other in zip(found.outcomes, fresh.outcomes, strict=True):
            assert (one.score, one.threshold) == pytest.approx((other.score, other.threshold), rel=1e-5)


def test_worse_model_does_not_replace_the_best(finished: RecordingTrainer):
    weights = finished.output_dir / "best" / "model.safetensors"
    before, score, log = weights.read_bytes(), finished.best_score, (finished.output_dir / "metrics.jsonl").read_text()
    finished.best_score = 101.0
    finished._evaluate()
    assert weights.read_bytes() == before
    finished.best_score = score
    (finished.output_dir / "metrics.jsonl").write_text(log)


def test_finished_run_resumed_does_nothing(finished: RecordingTrainer):
    log = read_log(finished.config)
    again = RecordingTrainer(finished.config)
    assert again.train(resume=True) == finished.output_dir / "best"
    assert not again.losses and read_log(finished.config) == log


# ---------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    ("save_steps", "stop_at", "resumed_from"),
    [(1, 1, 1), (2, 3, 2), (3, 5, 3), (3, 8, 6), (9, 9, 9)],
    ids=["in the warm start", "between stages", "in heads", "in encoder", "in joint"],
)
def test_resumed_run_goes_on_as_an_unbroken_one(
    finished: RecordingTrainer, parts: Path, tmp_path: Path, save_steps: int, stop_at: int, resumed_from: int
):
    config = tiny_config(parts, tmp_path / "run", save_steps=save_steps)
    with pytest.raises(Interrupted):
        RecordingTrainer(config, stop_at).train()
    resumed = RecordingTrainer(config)
    resumed.train(resume=True)
    assert list(resumed.losses) == list(range(resumed_from, 10))
    for step, losses in resumed.losses.items():
        assert losses == pytest.approx(finished.losses[step], abs=1e-5, rel=1e-5), step
    assert resumed.best_score == pytest.approx(finished.best_score)
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, finished.model.state_dict()[name], atol=1e-4, rtol=1e-4)
    # Steps after the last checkpoint were logged twice, and stand there once.
    found, expected = read_log(config), read_log(finished.config)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    assert not (tmp_path / "run" / "checkpoint.old").exists() and not (tmp_path / "run" / "checkpoint.new").exists()


def test_run_without_a_key_memory_can_be_resumed(parts: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path, key_memory=0, stages=[HEADS])
    with pytest.raises(Interrupted):
        RecordingTrainer(config, stop_at=2).train()
    resumed = RecordingTrainer(config)
    resumed.train(resume=True)
    assert list(resumed.losses) == [2]


def test_torn_last_log_line_is_dropped(parts: Path, tmp_path: Path):
    config = tiny_config(parts, tmp_path, stages=[HEADS])
    with pytest.raises(Interrupted):
        RecordingTrainer(config, stop_at=1).train()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "sec')
    Trainer(config).train(resume=True)
    assert [line["step"] for line in read_log(config) if "stage" in line] == [1, 2, 3]


def test_earlier_run_is_not_overwritten(finished: RecordingTrainer):
    log = read_log(finished.config)
    with pytest.raises(FileExistsError, match="checkpoint holds an earlier run"):
        Trainer(finished.config).train()
    assert read_log(finished.config) == log


def test_run_stops_when_evaluations_bring_no_new_best(parts: Path, tmp_path: Path):
    changes: dict[str, Any] = {"eval_steps": 1, "early_stopping_patience": 2, "stages": STAGES[1:]}
    trainer = RecordingTrainer(tiny_config(parts, tmp_path, **changes))
    trainer.best_score = 101.0
    trainer.train()
    assert list(trainer.losses) == [0, 1]
    # Resumed, it is still a run that has stopped.
    resumed = RecordingTrainer(tiny_config(parts, tmp_path, **changes))
    resumed.train(resume=True)
    assert not resumed.losses and resumed.evaluations_since_best == 2


def test_two_accumulated_batches_make_one_step(parts: Path, tmp_path: Path):
    stage = STAGES[3].changed({"steps": 2, "contrastive_batch_size": 0})
    trainer = RecordingTrainer(
        tiny_config(parts, tmp_path, stages=[stage], gradient_accumulation_steps=2, max_grad_norm=1e9)
    )
    objective, batches = trainer.objective, [trainer.sampler.draw(number, 3) for number in (0, 1)]
    objective.start_stage(stage, None)
    losses = [objective(batch, stage, number) for number, batch in enumerate(batches)]
    (sum(sum(found.values()) for found in losses) / 2).backward()
    expected = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    trainer.optimizer.zero_grad()
    found = {}
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: found.update({n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None})
    )
    logged = trainer._train_step(stage, 0)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)
    for name, value in logged.items():
        assert value.item() == pytest.approx((losses[0][name] + losses[1][name]).item() / 2, rel=1e-4)


def test_each_part_is_clipped_by_its_own_norm(parts: Path, tmp_path: Path):
    trainer = Trainer(tiny_config(parts, tmp_path, max_grad_norm=0.5))
    for number, group in enumerate(trainer.optimizer.param_groups):
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 10.0**-number)
    trainer._clip_gradients()
    for number, group in enumerate(trainer.optimizer.param_groups):
        before = 10.0**-number * math.sqrt(sum(parameter.numel() for parameter in group["params"]))
        found = math.sqrt(sum(parameter.grad.square().sum().item() for parameter in group["params"]))
        assert found == pytest.approx(min(before, 0.5), rel=1e-3)


def test_a_stage_begins_with_no_averages_of_the_last(parts: Path, tmp_path: Path):
    trainer = RecordingTrainer(tiny_config(parts, tmp_path, stages=STAGES[1:3]))
    trainer.train()
    steps = {state["step"].item() for state in trainer.optimizer.state.values()}
    assert steps == {STAGES[2].steps}


def test_nothing_to_resume(parts: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="checkpoint does not exist"):
        Trainer(tiny_config(parts, tmp_path / "run")).train(resume=True)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- what goes wrong


def test_loss_that_is_not_finite_ends_the_run(parts: Path, tmp_path: Path):
    trainer = Trainer(tiny_config(parts, tmp_path, stages=[HEADS]))
    with torch.no_grad():
        trainer.model.retriever.mlp_q.input.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="loss is nan at step 0 of stage 'heads'"):
        trainer.train()
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "best").exists()


def test_too_few_rows_to_hold_out(parts: Path, tmp_path: Path):
    path = write_counterfact(tmp_path / "few.json", EXAMPLES[:6])
    with pytest.raises(ValueError, match=r"num_eval_examples must be below the 6 rows of .*few\.json, got 6"):
        Trainer(tiny_config(parts, tmp_path, train_file=str(path)))


def test_batch_larger_than_the_training_facts(parts: Path, tmp_path: Path):
    stages = [HEADS, HEADS.changed({"name": "large", "contrastive_batch_size": 20})]
    with pytest.raises(ValueError, match="number of processes, must be at most the 19 facts to train on, got 20"):
        Trainer(tiny_config(parts, tmp_path, stages=stages))


# ---------------------------------------------------------------------- rates and precision


def test_learning_rate_rises_then_falls_to_a_tenth():
    stage = StageConfig(name="s", steps=100, editing_batch_size=1, warmup_steps=20)
    rates = [learning_rate_factor(step, stage) for step in range(100)]
    assert rates[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert rates[20] == pytest.approx(1.0) and rates[60] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3) and rates[20:] == sorted(rates[20:], reverse=True)
    assert learning_rate_factor(0, StageConfig(name="s", steps=1, editing_batch_size=1, warmup_steps=0)) == 1.0
    constant = stage.changed({"lr_scheduler_type": "constant"})
    assert [learning_rate_factor(step, constant) for step in (9, 20, 99)] == [0.5, 1.0, 1.0]


def test_groups_follow_the_rates_of_the_stage(finished: RecordingTrainer):
    factor = learning_rate_factor(2, STAGES[3])
    rates = [group["lr"] / factor for group in finished.optimizer.param_groups]
    assert rates == pytest.approx([5e-4, 5e-4, 1e-3, 2e-3, 1e-4, 1e-4, 1e-4, 1e-5])


def test_bfloat16_run_learns_and_saves(parts: Path, tmp_path: Path):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        trainer = RecordingTrainer(tiny_config(parts, tmp_path, mixed_precision="bf16"))
        trainer.train()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(trainer.losses) == 10
    assert RecipeForCausalLM.from_pretrained(tmp_path / "best").retriever.sentinel_embeds.dtype == torch.float32


# ---------------------------------------------------------------------- from a checkpoint


def test_prompts_of_known_answers_are_trained_onto_a_checkpoint(
    parts: Path, finished: RecordingTrainer, tmp_path: Path
):
    best = finished.output_dir / "best"
    stage = StageConfig(
        name="known answers", steps=3, prompts="known_answer", editing_batch_size=4, learning_rate=0.01, warmup_steps=0
    )
    changes = {"checkpoint": str(best), "num_answer_prompt_tokens": 4, "knowledge_dim": 1024, "temperature": 0.5}
    trainer = RecordingTrainer(tiny_config(parts, tmp_path / "run", stages=[stage], eval_steps=2, **changes))
    trainer.train()
    assert set(trainer.losses[2]) == {"reliability", "generality", "locality", "continuation"}
    assert [line["step"] for line in read_log(trainer.config) if "eval_reliability" in line] == [2, 3]

    before, after = (
        RecipeForCausalLM.from_pretrained(best),
        RecipeForCausalLM.from_pretrained(tmp_path / "run" / "best"),
    )
    weights = after.state_dict()
    assert all(torch.equal(weights.pop(name), tensor) for name, tensor in before.state_dict().items())
    assert sorted(weights) == [f"answer_prompt_encoder.{name}" for name in ("key_offset", "offset", "weight")]
    assert weights["answer_prompt_encoder.offset"].abs().amax(1).min() > 0.001
    assert after.config.num_answer_prompt_tokens == 4 and after.config.knowledge_dim == 64
    assert after.config.similarity_temperature == before.config.similarity_temperature == 1


def test_the_rest_of_a_checkpoint_trains_on_without_a_warm_start(
    parts: Path, finished: RecordingTrainer, tmp_path: Path
):
    best = finished.output_dir / "best"
    stage = StageConfig(
        name="heads", steps=3, contrastive_batch_size=6, learning_rate=1e-9, loss_weights={"read_out": 0.0}
    )
    changes = {"checkpoint": str(best), "temperature": 0.5}
    trainer = RecordingTrainer(tiny_config(parts, tmp_path / "run", stages=[stage], **changes))
    trainer.train()
    assert RecipeForCausalLM.from_pretrained(tmp_path / "run" / "best").config.similarity_temperature == 0.5
    record = json.loads((tmp_path / "run" / "best" / "training.json").read_text())
    first = json.loads((best / "training.json").read_text())
    assert [run["config"] for run in record["earlier_runs"]] == [first["config"]]
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert (
        f"Run 1 of 2: to step {first['step']} of the stages warm start (2), heads (3), encoder (2), joint (3)" in card
    )
    assert "Run 2 of 2: to step 3 of the stages heads (3)" in card
    weights = trainer.model.state_dict()
    for name, tensor in RecipeForCausalLM.from_pretrained(best).state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=0.0)


def test_mining_run_on_a_checkpoint_resumes_as_an_unbroken_one(
    parts: Path, finished: RecordingTrainer, tmp_path: Path
):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "The weather is fine."}\n')
    stage = StageConfig(
        name="retrieval",
        steps=5,
        contrastive_batch_size=6,
        mined_negatives=2,
        learning_rate=1e-3,
        encoder_learning_rate=1e-3,
    )
    values: dict[str, Any] = {
        "checkpoint": str(finished.output_dir / "best"),
        "mining_steps": 2,
        "other_property_share": 0.3,
        "unrelated_text_share": 0.3,
        "unrelated_texts_file": str(texts),
        "save_steps": 3,
    }
    whole = RecordingTrainer(tiny_config(parts, tmp_path / "whole", stages=[stage], **values))
    whole.train()
    config = tiny_config(parts, tmp_path / "broken", stages=[stage], **values)
    with pytest.raises(Interrupted):
        RecordingTrainer(config, stop_at=3).train()
    resumed = RecordingTrainer(config)
    resumed.train(resume=True)
    assert list(resumed.losses) == [3, 4]
    for step, losses in resumed.losses.items():
        assert losses == pytest.approx(whole.losses[step], abs=1e-5, rel=1e-5), step
