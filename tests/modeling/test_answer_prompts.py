"""Continuous prompts made of answers that are known apart from their prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipe_hf import RecipeConfig, RecipeForCausalLM
from tests.tiny_recipe import FACTS, GREEDY, MIXED, batch_of, tiny_base, tiny_recipe

WIDTH = 32


@torch.enable_grad()
def recipe(num_tokens: int, architecture: str = "llama") -> RecipeForCausalLM:
    model = tiny_recipe(architecture, num_answer_prompt_tokens=num_tokens)
    generator = torch.Generator().manual_seed(0)
    for weights in model.answer_prompt_encoder.parameters():
        torch.nn.init.normal_(weights, std=0.3, generator=generator)
    return model


@torch.no_grad()
def prompt_of_answer(model: RecipeForCausalLM, answer: str) -> Tensor:
    """The definition, token by token: as many as answer and line break have, the last for all that remain."""
    encoder, count = model.answer_prompt_encoder, model.config.num_answer_prompt_tokens
    ids = model.tokenizer(f" {answer}\n", add_special_tokens=False)["input_ids"]
    rows = []
    for i in range(min(count, len(ids))):
        carried = ids[i:] if i == count - 1 else ids[i : i + 1]
        embeds = model.lm.get_input_embeddings()(torch.tensor(carried))
        rows.append(encoder.offset[i] + encoder.weight[0].T @ embeds.mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 6, 40])
@torch.no_grad()
def test_prompts_of_answers_and_of_statements_side_by_side(num_tokens: int):
    model = recipe(num_tokens)
    keys = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    prompts, mask = model.continuous_prompts(keys, ["Ann Lee", None, "a", None])
    assert prompts.shape == (4, 3 + num_tokens, WIDTH)
    of_keys, offset = model.prompt_encoder(keys), model.answer_prompt_encoder.key_offset
    torch.testing.assert_close(prompts[::2, :3], of_keys[::2] + offset)
    torch.testing.assert_close(prompts[1::2, :3], of_keys[1::2])
    none = torch.empty(0, WIDTH)
    answers = [prompt_of_answer(model, "Ann Lee"), none, prompt_of_answer(model, "a"), none]
    for row, expected in enumerate(answers):
        count = 3 + len(expected)
        assert mask[row].tolist() == [True] * count + [False] * (3 + num_tokens - count)
        torch.testing.assert_close(prompts[row, 3:count], expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj", "qwen2", "gpt-neox", "gemma3"])
@torch.no_grad()
def test_a_batch_mixes_known_answers_statements_and_misses(architecture: str, side: str):
    model = recipe(5, architecture)
    told, statement = model.add_knowledge([FACTS[0], " ".join(FACTS[2])])
    of_keys = model.prompt_encoder(model.knowledge.keys([told, statement]))
    of_told = of_keys[0] + model.answer_prompt_encoder.key_offset
    prompts = [torch.cat([of_told, prompt_of_answer(model, FACTS[0][1])]), None, of_keys[1], None]
    batch = batch_of(model, MIXED, side)
    logits = model(**batch).logits
    generated = model.generate(**batch, **GREEDY)[:, batch.input_ids.shape[1] :]
    for row, (text, prompt) in enumerate(zip(MIXED, prompts, strict=True)):
        ids = model.tokenizer(text)["input_ids"]
        text_embeds = model.lm.get_input_embeddings()(torch.tensor(ids))
        embeds = (text_embeds if prompt is None else torch.cat([prompt, text_embeds]))[None]
        expected = model.lm(inputs_embeds=embeds).logits[0, -len(ids) :]
        torch.testing.assert_close(logits[row][batch.attention_mask[row].bool()], expected, atol=1e-4, rtol=1e-4)
        if side == "left":
            new = model.lm.generate(inputs_embeds=embeds, **GREEDY)[0]
            assert generated[row].tolist() == new.tolist()
    hits = model.retrieve(MIXED)
    assert [hit.id if hit.fired else None for hit in hits] == [told, None, statement, None]


def test_gradients_reach_the_answer_prompts_but_not_the_base():
    model = recipe(4)
    model.add_knowledge([FACTS[0]])
    batch = batch_of(model, MIXED[:1])
    model(**batch, labels=batch.input_ids, queries=MIXED[:1]).loss.backward()
    assert all(weights.grad.abs().max() > 0 for weights in model.answer_prompt_encoder.parameters())
    assert all(weights.grad is None for weights in model.lm.parameters())


def test_saved_and_loaded(tmp_path: Path):
    model = recipe(4)
    model.add_knowledge(FACTS)
    model.save_pretrained(tmp_path)
    loaded = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base())
    assert loaded.config.num_answer_prompt_tokens == 4
    batch = batch_of(model, MIXED)
    assert torch.equal(loaded.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY))


def test_a_checkpoint_without_them_gets_some_that_start_as_word_embeddings(tmp_path: Path):
    plain = tiny_recipe()
    assert plain.answer_prompt_encoder is None and not [n for n in plain.state_dict() if "answer" in n]
    plain.save_pretrained(tmp_path)
    model = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base(), num_answer_prompt_tokens=5)
    ids = model.tokenizer(" a\n", add_special_tokens=False)["input_ids"]
    prompts, mask = model.answer_prompts(["a"])
    torch.testing.assert_close(prompts[mask], model.lm.get_input_embeddings()(torch.tensor(ids)))
    assert mask.tolist() == [[True] * len(ids) + [False] * (5 - len(ids))] and len(ids) < 5
    with pytest.raises(RuntimeError, match="its num_answer_prompt_tokens is 0"):
        plain.answer_prompts(["a"])


@pytest.mark.parametrize("fields", [{}, {"num_answer_prompt_tokens": 3}])
def test_a_checkpoint_from_before_there_was_an_offset_of_keys(tmp_path: Path, fields: dict[str, int]):
    model = recipe(3)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["answer_prompt_encoder.key_offset"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "checksums.json").unlink()
    loaded = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base(), **fields).answer_prompt_encoder
    assert not loaded.key_offset.any()
    assert torch.equal(loaded.offset, model.answer_prompt_encoder.offset)
    assert torch.equal(loaded.weight, model.answer_prompt_encoder.weight)


def test_another_number_of_them_makes_them_new(tmp_path: Path):
    model = recipe(3)
    model.save_pretrained(tmp_path)
    loaded = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base(), num_answer_prompt_tokens=5)
    fresh = loaded.answer_prompt_encoder
    assert fresh.offset.shape == (5, WIDTH) and not fresh.offset.any() and not fresh.key_offset.any()
    assert torch.equal(fresh.weight[0], torch.eye(WIDTH))
    assert torch.equal(loaded.prompt_encoder.output.weight, model.prompt_encoder.output.weight)
    same = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base(), num_answer_prompt_tokens=3)
    assert torch.equal(same.answer_prompt_encoder.offset, model.answer_prompt_encoder.offset)


def test_sizes_other_than_theirs_must_fit(tmp_path: Path):
    recipe(3).save_pretrained(tmp_path)
    with pytest.raises((ValueError, RuntimeError)):
        RecipeForCausalLM.from_pretrained(
            tmp_path, base_model=tiny_base(), num_answer_prompt_tokens=5, num_sentinel_tokens=7
        )


def test_answers_need_the_tokenizer():
    model = recipe(3)
    model.add_knowledge([FACTS[0], " ".join(FACTS[2])])
    keys, model.tokenizer = model.knowledge.keys([0, 1]), None
    assert model.continuous_prompts(keys, [None, None])[0].shape == (2, 3, WIDTH)
    with pytest.raises(RuntimeError, match="set model.tokenizer"):
        model.continuous_prompts(keys, ["Ann Lee", None])


@pytest.mark.parametrize("value", [-1, 1.5, True, "3"])
def test_length_that_is_none(value: object):
    with pytest.raises(ValueError, match="num_answer_prompt_tokens must be a positive integer, got"):
        RecipeConfig(num_answer_prompt_tokens=value)
