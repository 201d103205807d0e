"""What tells runs apart: everything that a model's figures depend on, and nothing that they do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from recipe_hf import RecipeForCausalLM
from recipe_hf.evaluation.inputs import describe_file, describe_rows, model_settings
from recipe_hf.evaluation.records import difference
from recipe_hf.modeling.verifier import Verifier
from tests.tiny_recipe import FACTS, GREEDY, PROMPTS, base_tokenizer, batch_of, tiny_base, tiny_recipe, verified_recipe


def add_adapter(model: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'recipe-hf[compare]'")
    peft.get_peft_model(model.lm, peft.LoraConfig(r=2, target_modules="all-linear"))


def scale_in_place(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(1.01)


def keep_weight_in_buffer(model: Any) -> None:
    """As quantised layers do."""
    layer = model.lm.model.layers[0].mlp.down_proj
    weight = layer.weight.detach() * 1.01
    del layer.weight
    layer.register_buffer("weight", weight)


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a trained weight": (lambda m: scale_in_place(m.retriever.sentinel_embeds), "weights"),
    "a weight of the base": (lambda m: scale_in_place(m.lm.model.layers[1].mlp.down_proj.weight), "base_weights"),
    "a weight in a buffer": (keep_weight_in_buffer, "base_weights"),
    "an adapter": (add_adapter, "base_weights"),
    "the precision": (lambda m: m.lm.to(torch.bfloat16), "dtype"),
    "positions": (lambda m: setattr(m.lm.config, "rope_parameters", {"rope_theta": 5.0}), "base_config"),
    "generation": (lambda m: setattr(m.lm.generation_config, "repetition_penalty", 1.2), "base_config"),
    "the chat template": (lambda m: setattr(m.tokenizer, "chat_template", "{{ messages }}"), "base_config"),
    "the vocabulary": (lambda m: m.tokenizer.add_tokens(["Acme"]), "base_config"),
    "the encoder": (lambda m: setattr(m.config.encoder_config, "layer_norm_eps", 1e-3), "encoder_config"),
    "the encoder's tokens": (lambda m: m.retriever.tokenizer.add_tokens(["Acme"]), "encoder_config"),
    "the scale": (lambda m: setattr(m.config, "similarity_scale", 1.0), "similarity_scale"),
    "the temperature": (lambda m: setattr(m.config, "similarity_temperature", 0.1), "similarity_temperature"),
    "a verifier": (lambda m: setattr(m, "verifier", Verifier(m.config)), "verifier"),
    "facts together": (lambda m: setattr(m.config, "top_k_facts", 2), "top_k_facts"),
}


@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES.keys())
def test_what_decides_figures_tells_models_apart(change: Callable[[Any], object], name: str):
    model = tiny_recipe()
    before = model_settings(model)
    change(model)
    found = difference(before, model_settings(model))
    assert found is not None and found.startswith(f"{name} was ")


@pytest.mark.parametrize("name", ["num_verified_facts", "verifier_margin", "verifier_gap"])
def test_how_a_verifier_is_set_tells_models_apart(name: str):
    model = verified_recipe()
    before = model_settings(model)
    setattr(model.config, name, 3)
    assert (difference(before, model_settings(model)) or "").startswith("verifier was ")


def test_use_and_place_do_not(tmp_path: Path):
    for name in ("one", "two"):
        tiny_base().save_pretrained(tmp_path / name / "base")
        base_tokenizer().save_pretrained(tmp_path / name / "base")
    tiny_recipe().save_pretrained(tmp_path / "one" / "recipe")
    shutil.copytree(tmp_path / "one" / "recipe", tmp_path / "two" / "recipe")
    one, two = (
        RecipeForCausalLM.from_pretrained(tmp_path / n / "recipe", base_model=tmp_path / n / "base")
        for n in ("one", "two")
    )
    before = model_settings(one)
    one.add_knowledge(FACTS)
    one.generate(**batch_of(one, PROMPTS, "right"), **GREEDY)
    one.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=20)
    assert model_settings(one) == before
    assert difference(before, model_settings(two)) is None


def test_offloaded_weights_count_too():
    settings = []
    for factor in (1.0, 1.0, 1.01):
        model = tiny_recipe()
        with torch.no_grad():
            model.lm.model.layers[1].mlp.down_proj.weight.mul_(factor)
        cpu_offload(model.lm)
        settings.append(model_settings(model)["base_weights"])
    assert settings[0] == settings[1] != settings[2]


def test_rows_and_files_are_told_by_what_they_hold(tmp_path: Path):
    assert describe_rows(["a", "b"]) != describe_rows(["a", "c"]) != describe_rows(["a"])
    for name, text in (("one", "a" * 3_000_000), ("two", "a" * 3_000_000), ("three", "a" * 2_999_999 + "b")):
        (tmp_path / name).write_text(text)
    one, two, three = (describe_file(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three and one.startswith("3000000 bytes, SHA-256 ")
