"""Tiny random models of real classes, shared by all tests: float32, seeded, on the CPU, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB_SIZE = 160
HIDDEN_SIZE = 32
PAD_TOKEN_ID = 0

_GPT2_SIZES = {"n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 4, "n_positions": 128}
_LLAMA_SIZES = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED_SIZES = _LLAMA_SIZES | {"num_key_value_heads": 2, "head_dim": 8}
_ALTERNATING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _LLAMA_SIZES | {"num_key_value_heads": 2}),
    "gpt2": (GPT2Config, _GPT2_SIZES),
    "gptj": (GPTJConfig, _GPT2_SIZES | {"rotary_dim": 4}),
    "qwen2": (Qwen2Config, _LLAMA_SIZES | {"num_key_value_heads": 2}),
    "gpt-neox": (GPTNeoXConfig, _LLAMA_SIZES),
    "qwen2-sliding": (
        Qwen2Config,
        _LLAMA_SIZES
        | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    # Its embeddings are scaled by the module that gives them, not in its weight.
    "gemma3": (
        Gemma3TextConfig,
        _GROUPED_SIZES | {"query_pre_attn_scalar": 8, "sliding_window": 64},
    ),
    "gemma3-sliding": (Gemma3TextConfig, _GROUPED_SIZES | {"query_pre_attn_scalar": 8} | _ALTERNATING),
    # Both caps are low enough to bend what they cap.
    "gemma2": (
        Gemma2Config,
        _GROUPED_SIZES
        | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
        | _ALTERNATING,
    ),
    "mistral": (MistralConfig, _GROUPED_SIZES | {"sliding_window": 4}),
    "qwen3": (Qwen3Config, _GROUPED_SIZES | {"tie_word_embeddings": True}),
    "phi3": (Phi3Config, _LLAMA_SIZES | {"num_key_value_heads": 2, "sliding_window": 4}),
    "olmo2": (Olmo2Config, _LLAMA_SIZES | {"num_key_value_heads": 2}),
    # A mixture of experts, with attention sinks.
    "gpt-oss": (GptOssConfig, _GROUPED_SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2} | _ALTERNATING),
    "bloom": (BloomConfig, {"hidden_size": HIDDEN_SIZE, "n_layer": 2, "n_head": 4}),
}
ARCHITECTURES = ("llama", "gpt2", "gptj", "qwen2", "gpt-neox")
#: Those with other attention, embeddings, heads or layers: tried wherever a base is computed, but not in all detail.
FURTHER_ARCHITECTURES = ("gemma3-sliding", "gemma2", "mistral", "qwen3", "phi3", "olmo2", "gpt-oss")


def tiny_causal_lm(architecture: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A frozen random causal LM of `architecture` (a key of `CONFIGS`), the same for the same seed.

    Weights are large enough that outputs depend on every token. There is no end token unless `overrides` sets one.
    """
    config_class, sizes = CONFIGS[architecture]
    defaults = {
        "vocab_size": VOCAB_SIZE,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": PAD_TOKEN_ID,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config_class(**(defaults | sizes | overrides)))
    return lm.eval().requires_grad_(False)
