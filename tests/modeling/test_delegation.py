"""What transformers' interface offers, on a model that computes with a base."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GenerationMixin, OPTConfig, PreTrainedModel

from recipe_hf import RecipeForCausalLM
from tests.tiny_recipe import FACTS, GREEDY, MIXED, PROMPTS, batch_of, edited_recipe, tiny_base, tiny_recipe

REFUSED = {
    "generate_batch": ([[1, 2]],),
    "init_continuous_batching": (),
    "continuous_batching_context_manager": (),
    "add_adapter": (LoraConfig(target_modules=["q_proj"]),),
    "load_adapter": ("org/adapter",),
    "set_input_embeddings": (torch.nn.Embedding(4, 4),),
    "set_output_embeddings": (torch.nn.Linear(4, 4),),
    "set_decoder": (torch.nn.Linear(4, 4),),
    "resize_position_embeddings": (8,),
}


@pytest.fixture
def model() -> RecipeForCausalLM:
    return edited_recipe()


@pytest.mark.parametrize(("name", "arguments"), REFUSED.items())
def test_what_cannot_be_had_is_refused_and_changes_nothing(model, name: str, arguments: tuple):
    batch = batch_of(model, MIXED)
    expected, parts = model.generate(**batch, **GREEDY), [*dict(model.named_modules())]
    with pytest.raises(NotImplementedError, match=f"RecipeForCausalLM has no {name}: .*; use .*model.lm's"):
        getattr(model, name)(*arguments)
    assert torch.equal(model.generate(**batch, **GREEDY), expected)
    assert [*dict(model.named_modules())] == parts
    assert model.lm.config._attn_implementation == "sdpa" and model.generation_config.eos_token_id is None


def test_every_entry_point_of_continuous_batching_is_refused():
    (mixin,) = [part for part in GenerationMixin.__mro__ if part.__name__ == "ContinuousMixin"]
    entries = {name for name, _ in inspect.getmembers(mixin, inspect.isfunction) if not name.startswith("_")}
    assert entries - {"destroy_cached_continuous_batching_manager"} <= set(REFUSED)


def test_questions_about_the_model_are_answered(model):
    assert model.get_decoder() is model.lm.get_decoder()
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert model.num_parameters(only_trainable=True) < model.num_parameters()
    assert model.get_memory_footprint() > model.lm.get_memory_footprint()
    batch = batch_of(model, MIXED)
    inputs = model.prepare_inputs_for_generation(batch.input_ids, attention_mask=batch.attention_mask)
    assert torch.equal(inputs["input_ids"], batch.input_ids)
    out = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_scores=True)
    scores = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    assert scores.shape == (4, 6) and (scores <= 0).all()


# ---------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("tied", [False, True])
def test_more_tokens(tied: bool, tmp_path: Path, caplog):
    model = edited_recipe(base=tiny_base(tie_word_embeddings=tied))
    model.config.base_model_name_or_path = "org/base"
    batch, size = batch_of(model, MIXED), model.config.vocab_size
    with torch.no_grad():
        expected = model(**batch).logits
    with caplog.at_level(logging.WARNING):
        embeddings = model.resize_token_embeddings(300)
    assert "The base has 300 tokens now, org/base has 259: checkpoints saved from now on name no base" in caplog.text
    assert embeddings is model.get_input_embeddings() and len(embeddings.weight) == 300
    assert model.config.vocab_size == model.lm.config.vocab_size == 300
    assert not any(parameter.requires_grad for parameter in model.lm.parameters())
    with torch.no_grad():
        found = model(**batch).logits
    assert found.shape[-1] == 300
    torch.testing.assert_close(found[..., :size], expected)
    model.save_pretrained(tmp_path)
    assert RecipeForCausalLM.from_pretrained(tmp_path, base_model=False).config.base_model_name_or_path is None
    with pytest.raises(ValueError, match="base_model must have at least 300 tokens"):
        RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base(tie_word_embeddings=tied))
    model.lm.save_pretrained(tmp_path / "base")
    loaded = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tmp_path / "base")
    assert torch.equal(loaded.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY))


def test_fewer_tokens_are_still_the_bases(model, tmp_path: Path, caplog):
    model.config.base_model_name_or_path = "org/base"
    expected = model.config.base_fingerprint
    model.resize_token_embeddings(None)
    assert (model.config.vocab_size, model.config.base_fingerprint) == (259, expected)
    model.resize_token_embeddings(258)
    assert (model.config.vocab_size, model.config.base_model_name_or_path) == (258, "org/base")
    model.save_pretrained(tmp_path)
    RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base())
    assert "base_model" not in caplog.text


def test_without_a_base_there_is_nothing_to_resize(model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    bare = RecipeForCausalLM.from_pretrained(tmp_path, base_model=False)
    with pytest.raises(RuntimeError, match="No base is attached"):
        bare.resize_token_embeddings(300)
    assert bare.config.vocab_size == 259


# ---------------------------------------------------------------------- activation checkpointing


def dropping_base() -> PreTrainedModel:
    """A base whose layers drop out activations in training mode by themselves."""
    config = OPTConfig(
        vocab_size=259,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=32,
        dropout=0.5,
        init_std=0.3,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def step(model: RecipeForCausalLM) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Loss, gradient, and how often the first layer of the base computes its attention."""
    batch = batch_of(model, MIXED)
    layer = next(part for name, part in model.lm.named_modules() if name.endswith("layers.0"))
    calls: list[int] = []
    handle = layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    model.zero_grad()
    loss = model(**batch, labels=batch.input_ids, queries=MIXED).loss
    loss.backward()
    handle.remove()
    assert not any(part.training for part in model.lm.modules())
    return loss.detach(), model.prompt_encoder.output.weight.grad.clone(), len(calls)


@pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"
)  # All releases have it by this name.
@pytest.mark.parametrize("base", [tiny_base, dropping_base])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activations_of_the_base_are_recomputed(base, reentrant: bool):
    model = tiny_recipe(base=base()).train()
    model.add_knowledge(FACTS)
    loss, gradient, calls = step(model)
    assert calls == 1 and model.supports_gradient_checkpointing and not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    found = step(model)
    assert torch.equal(found[0], loss) and found[2] == 2
    torch.testing.assert_close(found[1], gradient)
    batch = batch_of(model, PROMPTS)
    expected = edited_recipe(base=base()).generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY), expected)
    assert step(model.eval())[2] == 1
    model.train().gradient_checkpointing_disable()
    assert step(model)[2] == 1 and not model.is_gradient_checkpointing


def test_without_a_base_nothing_is_recomputed(model, tmp_path: Path):
    model.save_pretrained(tmp_path)
    bare = RecipeForCausalLM.from_pretrained(tmp_path, base_model=False)
    with pytest.raises(ValueError, match="RecipeForCausalLM does not support .* checkpointing"):
        bare.gradient_checkpointing_enable()
    assert not bare.is_gradient_checkpointing
