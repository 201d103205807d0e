"""Layers are found by structure, and what is no stack of attention and dense MLPs is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recipe_hf.evaluation.editors.memory.layers import SavedWeights, find_layers, hooked
from tests.evaluation.editors.memory.editors_at_hand import causal_lm, changed, weights

DOWN = {
    "llama": "mlp.down_proj",
    "qwen2": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out",
    "gpt-neox": "mlp.dense_4h_to_h",
    "gemma3": "mlp.down_proj",
    "bloom": "mlp.dense_4h_to_h",
    "phi": "mlp.fc2",
    "olmo2": "mlp.down_proj",
    "opt": "fc2",
    "granite": "mlp.down_proj",
}


@pytest.mark.parametrize("architecture", DOWN)
@torch.no_grad()
def test_the_last_map_of_each_mlp_is_found(architecture: str):
    lm = causal_lm(architecture)
    layers = find_layers(lm)
    assert [layer.number for layer in layers] == [0, 1]
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in layers:
        assert layer.down is layer.module.get_submodule(DOWN[architecture])
        assert lm.get_submodule(layer.name) is layer.module
        assert "attn" in (name := type(layer.attention).__name__.lower()) or "attention" in name
    handle = layers[1].down.register_forward_hook(lambda m, args, output: calls.append((args[0], output)))
    with hooked([handle]):
        lm(torch.tensor([[5, 6, 7]]))
    ((key, value),) = calls
    bias = getattr(layers[1].down, "bias", None)
    expected = key @ layers[1].weight().T + (0 if bias is None else bias)
    assert key.shape[-1] == layers[1].key_size
    assert torch.allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("mixtral", r"lm must have dense MLPs, got a mixture of experts: model\.layers\.0\.mlp\.experts"),
        ("qwen2-moe", r"lm must have dense MLPs, got a mixture of experts: model\.layers\.0\.mlp\."),
        (
            "mamba",
            r"Layer backbone\.layers\.0 must have one attention and one linear map .* \['mixer'\] and maps \[\]",
        ),
    ],
)
def test_other_models_are_refused_by_name(architecture: str, words: str):
    with pytest.raises(ValueError, match=words):
        find_layers(causal_lm(architecture))


def test_two_maps_that_could_be_meant():
    lm = causal_lm("llama")
    lm.model.layers[1].extra = nn.Linear(8, 32)
    with pytest.raises(ValueError, match=r"Layer model\.layers\.1 must have one .* maps \['mlp.down_proj', 'extra'\]"):
        find_layers(lm)


def test_a_quantised_weight():
    lm = causal_lm("llama")
    lm.model.layers[0].mlp.down_proj.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"must be floating-point numbers, got torch.int8 in model\.layers\.0\.mlp"):
        find_layers(lm)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_weights_are_restored_to_the_bit(architecture: str):
    lm = causal_lm(architecture).bfloat16()
    before, saved = weights(lm), SavedWeights()
    layers = find_layers(lm)
    update = torch.randn(layers[0].weight().shape)
    for _ in range(2):
        saved.keep(layers)
        layers[0].add(update)
    assert len(changed(before, lm)) == 1
    saved.restore()
    assert not changed(before, lm)
    saved.restore()
    assert not changed(before, lm)
