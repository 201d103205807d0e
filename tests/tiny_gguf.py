"""A tiny random Llama as a GGUF file with a tokenizer of bytes, its matrices in blocks of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from tokenizers import pre_tokenizers

from tests.tiny_recipe import BASE_TOKENS, CHAT_TEMPLATE

WIDTH, HIDDEN, HEADS, LAYERS = 32, 64, 4, 2


def write_tiny_gguf(path: Path) -> Path:
    """Writes the file."""
    tokens = [*BASE_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "cd"]
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * len(BASE_TOKENS) + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)

    shapes = {"token_embd": (len(tokens), WIDTH)}
    for layer in range(LAYERS):
        block = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH)}
        block |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in (block | {"ffn_down": (WIDTH, HIDDEN)}).items()}
    for name, shape in shapes.items():
        weights = rng.normal(0, 0.3, shape).astype("f4")
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", quantize(weights, kind), raw_dtype=kind)
    for name in ["output_norm", *(f"blk.{n}.{kind}_norm" for n in range(LAYERS) for kind in ("attn", "ffn"))]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
