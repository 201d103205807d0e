"""Tests of loading, freezing and recognising the base."""

import logging
import os
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from recipe_hf import RecipeConfig
from recipe_hf.modeling.frozen_base import (
    base_name,
    base_revision,
    check_base,
    describe_base,
    fingerprint,
    load_base,
    load_tokenizer,
    split_gguf,
)
from tests.tiny import tiny_causal_lm
from tests.tiny_recipe import base_tokenizer, tiny_base


@pytest.fixture
def warnings(caplog):
    with caplog.at_level(logging.WARNING, "recipe_hf"):
        yield caplog


def config_of(lm):
    return RecipeConfig(base_model_name_or_path="org/base", **describe_base(lm))


def changed(lm, function):
    with torch.no_grad():
        weight = lm.get_input_embeddings().weight
        weight.copy_(function(weight))
    return lm


def test_a_base_is_loaded_frozen_from_a_directory(tmp_path):
    tiny_causal_lm().requires_grad_(True).train().save_pretrained(tmp_path)
    lm = load_base(tmp_path, dtype=torch.bfloat16)
    assert lm.dtype == torch.bfloat16
    assert not lm.training
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    assert base_name(lm) == str(tmp_path)


def test_a_loaded_base_is_frozen_in_place():
    lm = tiny_causal_lm().requires_grad_(True).train()
    assert load_base(lm) is lm
    assert not lm.training
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    assert base_name(lm) is None


def test_an_adapted_base_is_frozen_with_its_adapter():
    lm = load_base(get_peft_model(tiny_causal_lm(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")))
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    assert base_name(lm) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1)), "mamba"),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=9, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
            ),
            "t5",
        ),
        (
            lambda: get_peft_model(tiny_causal_lm(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
            "prompt tokens",
        ),
    ],
)
def test_a_base_that_cannot_be_prefixed_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        load_base(make())


@pytest.mark.parametrize("wrong", [None, 3, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(wrong):
    with pytest.raises(TypeError, match="base_model must be .* got"):
        load_base(wrong)


def test_loading_arguments_beside_a_loaded_base_are_refused():
    with pytest.raises(ValueError, match="device_map, dtype must not be given with a loaded base_model"):
        load_base(tiny_causal_lm(), dtype=torch.float16, device_map="auto")


def test_a_missing_gguf_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.gguf must be an existing GGUF file"):
        load_base(tmp_path / "nothing.gguf")
    (tmp_path / "there.GGUF").touch()
    assert split_gguf(tmp_path / "there.GGUF") == (str(tmp_path), {"gguf_file": "there.GGUF"})
    assert split_gguf("org/name") == ("org/name", {})


def test_the_fingerprint_is_the_same_for_the_same_weights_and_differs_for_others():
    assert fingerprint(tiny_causal_lm()) == fingerprint(tiny_causal_lm())
    assert fingerprint(tiny_causal_lm()) != fingerprint(tiny_causal_lm(seed=1))
    assert len(fingerprint(tiny_causal_lm())) == 64


def test_the_description_of_a_base():
    described = describe_base(tiny_base("gpt2"))
    assert (described["hidden_size"], described["max_position_embeddings"]) == (32, 512)
    assert described["vocab_size"] == len(base_tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_base_in_any_float_type_passes_in_silence(warnings, dtype):
    config = config_of(tiny_base())
    check_base(tiny_base().to(dtype), config)
    assert warnings.text == ""


def test_a_base_with_more_tokens_passes_in_silence(warnings):
    config = config_of(tiny_base())
    lm = tiny_base()
    lm.resize_token_embeddings(config.vocab_size + 61, mean_resizing=False)
    check_base(lm, config)
    assert warnings.text == ""


def test_the_same_base_in_another_quantisation_passes_with_a_warning(warnings):
    config = config_of(tiny_base())
    check_base(changed(tiny_base(), lambda weight: (weight * 12).round() / 12), config)
    assert "close to those of org/base, but not the same" in warnings.text


def test_another_base_of_the_same_size_is_refused():
    with pytest.raises(ValueError, match="base_model must be org/base.*base_fingerprint"):
        check_base(tiny_base(seed=1), config_of(tiny_base()))


@pytest.mark.parametrize("function", [torch.zeros_like, lambda weight: weight * torch.nan])
def test_a_base_without_real_embeddings_is_refused(function):
    with pytest.raises(ValueError, match="base_model must be org/base"):
        check_base(changed(tiny_base(), function), config_of(tiny_base()))


def test_a_base_of_another_width_is_refused():
    with pytest.raises(ValueError, match="width 32, as org/base has, got 64"):
        check_base(tiny_base(hidden_size=64), config_of(tiny_base()))


def test_a_base_with_fewer_tokens_is_refused():
    config = config_of(tiny_base())
    with pytest.raises(ValueError, match=f"at least {config.vocab_size} tokens, as org/base has, got 160"):
        check_base(tiny_causal_lm(), config)


def test_the_tokenizer_is_made_ready_for_batches(tmp_path):
    tokenizer = base_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = "right", None
    tokenizer.save_pretrained(tmp_path / "first")
    loaded = load_tokenizer(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    for ready in (loaded, load_tokenizer(tmp_path / "second")):
        assert (ready.padding_side, ready.pad_token) == ("left", "<|im_end|>")


def test_a_base_in_the_cache_of_the_hub_is_recorded_with_its_commit(tmp_path):
    commit = "0123456789" * 4
    repository = tmp_path / "models--org--tiny"
    tiny_causal_lm().save_pretrained(repository / "snapshots" / commit)
    os.makedirs(repository / "refs")
    (repository / "refs" / "main").write_text(commit)
    lm = load_base("org/tiny", cache_dir=tmp_path, local_files_only=True)
    assert base_name(lm) == "org/tiny"
    assert base_revision("org/tiny", None, tmp_path) == commit
    shutil.rmtree(repository)
    assert base_revision("org/tiny", "v1", tmp_path) == "v1"
    assert base_revision(str(tmp_path), None, None) is None
