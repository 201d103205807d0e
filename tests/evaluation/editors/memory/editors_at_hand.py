"""Tiny models and facts for the editors that write to MLPs: real classes, byte tokens, two facts that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    MambaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    Qwen2MoeConfig,
)

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.editors.memory.moments import KeyText
from recipe_hf.evaluation.editors.memory.values import ValueSearch
from tests.tiny import CONFIGS, HIDDEN_SIZE, tiny_causal_lm
from tests.tiny_recipe import base_tokenizer, tiny_base, untrained_recipe

#: Steps and contexts for tests that do not ask how well a value was found.
SHORT: dict[str, Any] = {"search": ValueSearch(steps=4), "contexts": ((3, 2),)}

FACTS = [
    EditExample("The CEO of Acme is", "A", "Acme", unrelated=(("Dogs are", "x"),)),
    EditExample("The capital of Ruritania is", "S", "Ruritania", unrelated=(("Dogs are", "x"),)),
    EditExample("Zork was written by", "I", "Zork", unrelated=(("Dogs are", "x"),)),
]

_SIZES = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 160,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
#: Architectures beyond those of `tests.tiny`.
MORE: dict[str, Any] = {
    "phi": PhiConfig(**_SIZES),
    "olmo2": Olmo2Config(**_SIZES),
    "granite": GraniteConfig(**_SIZES, residual_multiplier=0.25),
    "opt": OPTConfig(**_SIZES, ffn_dim=64, word_embed_proj_dim=HIDDEN_SIZE),
    "mixtral": MixtralConfig(**_SIZES, num_key_value_heads=4, num_local_experts=2),
    "qwen2-moe": Qwen2MoeConfig(**_SIZES, num_experts=2),
    "mamba": MambaConfig(hidden_size=HIDDEN_SIZE, num_hidden_layers=2, vocab_size=160),
}


def causal_lm(architecture: str) -> Any:
    """A tiny random causal LM."""
    if architecture in CONFIGS:
        return tiny_causal_lm(architecture)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(MORE[architecture]).eval().requires_grad_(False)


def recipe(architecture: str = "llama", num_layers: int = 2) -> RecipeForCausalLM:
    """A RECIPE model around a tiny base with room for byte tokens."""
    name = "n_layer" if architecture.startswith("gpt2") else "num_hidden_layers"
    if architecture in CONFIGS:
        return untrained_recipe(base=tiny_base(architecture, **{name: num_layers}))
    sizes = MORE[architecture].to_dict() | {"vocab_size": len(base_tokenizer()), name: num_layers}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(type(MORE[architecture])(**sizes)).eval().requires_grad_(False)
    return untrained_recipe(base=lm)


def key_text(directory: Path, num_tokens: int = 400) -> KeyText:
    """A file of few tokens, and second moments beside it."""
    file = directory / "text.txt"
    file.write_text("Rivers run to the sea; 37 of them, it is said, ran dry in 1921 (or so). " * 9, encoding="utf-8")
    return KeyText(file, num_tokens, directory=directory)


def weights(lm: Any) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in lm.state_dict().items()}


def changed(before: dict[str, torch.Tensor], lm: Any) -> list[str]:
    """Names of the weights that differ."""
    return [name for name, tensor in lm.state_dict().items() if not torch.equal(tensor, before[name])]
