"""Text that a base writes by itself: contexts for prompts, and samples of what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ....modeling.frozen_base import input_device

#: Words that texts begin with, so that they differ: those of MEMIT's authors.
OPENINGS = ("The", "Therefore", "Because", "I", "You")


@torch.no_grad()
def write_texts(
    lm: Any, tokenizer: PreTrainedTokenizerBase, number: int, length: int, seed: int = 0, **sampling: Any
) -> list[list[int]]:
    """Samples text from a model, the same for the same seed.

    Args:
        lm: The model.
        tokenizer: Its tokenizer.
        number: How many texts; they begin with `OPENINGS` in turn.
        length: Tokens that are written after the opening.
        seed: Seed of the sampling. Random numbers drawn elsewhere are not touched.
        **sampling: Passed to `generate`, such as `top_k`.
    """
    device = input_device(lm)
    texts: list[list[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for i, opening in enumerate(OPENINGS[:number]):
            ids = tokenizer(opening, return_tensors="pt")["input_ids"].to(device)
            written = lm.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                num_return_sequences=len(range(i, number, len(OPENINGS))),
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=lm.generation_config.pad_token_id or 0,
                **sampling,
            )
            texts.extend(written.tolist())
    return texts


def write_contexts(lm: Any, tokenizer: PreTrainedTokenizerBase, lengths: Sequence[tuple[int, int]]) -> list[str]:
    """Short texts to put before a prompt, so that an edit does not depend on what stands there (`x_j` of ROME).

    Args:
        lm: The model.
        tokenizer: Its tokenizer.
        lengths: Pairs of a length in tokens and how many texts of it.

    Returns:
        The empty context, then the texts, each ended like a sentence.
    """
    texts = [
        text
        for length, number in lengths
        for text in tokenizer.batch_decode(
            write_texts(lm, tokenizer, number, length, top_k=5), skip_special_tokens=True
        )
    ]
    return ["", *(f"{text.strip()}. " for text in texts)]
