"""Training the prompt encoder with trainers of other libraries."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from recipe_hf import RecipeForCausalLM
from tests.tiny_recipe import FACTS, GREEDY, MIXED, PROMPTS, UNRELATED, batch_of, edited_recipe


@pytest.fixture
def model() -> RecipeForCausalLM:
    return edited_recipe()


def rows(model: RecipeForCausalLM, pairs: list[tuple[str, str]], masked: bool = True) -> Dataset:
    """Token ids of prompt and answer, with labels for the answer alone, or for all."""
    made = []
    for prompt, answer in pairs:
        ids, answer_ids = (model.tokenizer(text)["input_ids"] for text in (prompt, f" {answer}"))
        labels = [-100] * len(ids) if masked else ids
        made.append({"input_ids": ids + answer_ids, "labels": labels + answer_ids})
    return Dataset.from_list(made)


def trainer(model: RecipeForCausalLM, directory: Path, data: Dataset, **options: object) -> Trainer:
    arguments = {
        "output_dir": str(directory),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(**arguments | options),
        data_collator=DataCollatorForSeq2Seq(model.tokenizer),
        train_dataset=data,
        eval_dataset=data,
    )


@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1}, {"gradient_checkpointing": True}])
def test_the_prompt_encoder_is_trained(model, tmp_path: Path, options: dict):
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    ran = trainer(model, tmp_path, rows(model, FACTS), **options)
    assert ran.train().training_loss > 0
    changed = {
        name.split(".")[0] for name, weights in model.state_dict().items() if not torch.equal(weights, before[name])
    }
    assert changed == {"prompt_encoder"}
    assert ran.evaluate()["eval_loss"] > 0
    assert ran.predict(rows(model, FACTS)).predictions.shape[-1] == model.config.vocab_size
    ran.save_model(str(tmp_path / "saved"))
    saved = RecipeForCausalLM.from_pretrained(tmp_path / "saved", base_model=model.lm)
    batch = batch_of(model, MIXED)
    assert torch.equal(saved.generate(**batch, **GREEDY), model.eval().generate(**batch, **GREEDY))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({}, True),
        ({}, False),
        ({"label_smoothing_factor": 0.1}, False),
        ({"gradient_checkpointing": True}, True),
    ],
)
def test_batches_in_which_no_fact_fires_change_nothing(model, tmp_path: Path, options: dict, facts: bool):
    if not facts:
        model.knowledge.clear()
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    data = rows(model, [(prompt, "four") for prompt in UNRELATED])
    assert trainer(model, tmp_path, data, **options).train().training_loss > 0
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())


def test_labels_that_begin_with_the_text_leave_no_query_which_is_said(model, tmp_path: Path, caplog):
    data = rows(model, FACTS, masked=False)
    with caplog.at_level(logging.WARNING):
        trainer(model, tmp_path, data).train()
    assert caplog.text.count("No row of a batch has a query, so nothing is learned from it") == 1


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_in_which_nothing_fires_has_a_gradient_of_zero(model, training: bool):
    model.train(training)
    batch = batch_of(model, UNRELATED)
    out = model(**batch, labels=batch.input_ids, queries=UNRELATED)
    expected = model.lm(**batch, labels=batch.input_ids)
    assert torch.equal(out.loss, expected.loss) and torch.equal(out.logits, expected.logits)
    out.loss.backward()
    assert all(not parameter.grad.any() for parameter in model.prompt_encoder.parameters())
    assert all(parameter.grad is None for parameter in model.lm.parameters())


def test_trl_which_keeps_the_labels_to_itself_is_refused(model, tmp_path: Path):
    trl = pytest.importorskip("trl")
    batch = batch_of(model, MIXED)
    expected, weights = model.generate(**batch, **GREEDY), model.prompt_encoder.output.weight.clone()
    data = Dataset.from_list([{"prompt": prompt, "completion": f" {answer}"} for prompt, answer in FACTS])
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, bf16=False, eos_token="<|im_end|>"
    )
    sft = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=model.tokenizer)
    with pytest.raises(AttributeError, match="SFTTrainer, hides the labels.*Use transformers.Trainer"):
        sft.train()
    assert torch.equal(model.prompt_encoder.output.weight, weights)
    assert torch.equal(model.eval().generate(**batch, **GREEDY), expected)
    assert model(**batch, labels=batch.input_ids, queries=PROMPTS).loss > 0
