"""Predictions of a language model: the most likely tokens of a given answer, or greedy output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..modeling.base import input_device
from ..modeling.prefix import hidden_prefix
from ..teacher_forcing import Row, answer_logits

#: Tokens generated beyond the length of the answer, for an article or another spelling of it.
EXTRA_TOKENS = 4

#: Embeddings to prefix each row's text with, `[B, l, d_llm]`, and which of them are there, bool `[B, l]`.
Prefix = tuple[Tensor, Tensor]


@torch.no_grad()
def predict_answers(lm: Any, rows: Sequence[Row], prefix: Prefix | None = None) -> list[list[int]]:
    """The most likely token at each position of each row's answer, all tokens before it being given."""
    embeds, mask = prefix or (None, None)
    logits, _ = answer_logits(lm, rows, embeds, prefix_mask=mask)
    predicted = logits.argmax(-1).tolist()
    return [tokens[-len(row.answer_ids) :] for tokens, row in zip(predicted, rows, strict=True)]


@torch.no_grad()
def write_on(
    lm: Any,
    prompts: Sequence[list[int]],
    lengths: Sequence[int],
    prefix: Prefix | None = None,
    behind: Tensor | None = None,
    **kwargs: Any,
) -> list[list[int]]:
    """Greedy output after each prompt's tokens, at most as long as `lengths` says, without an end token.

    A prefix stands `behind` so many of these tokens, `[B]`; by default before all.
    """
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    ends = lm.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    device = input_device(lm)
    with nullcontext() if prefix is None else hidden_prefix(*prefix, behind=behind):
        output = lm.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max(lengths),
            do_sample=False,
            num_beams=1,
            pad_token_id=lm.generation_config.pad_token_id or next(iter(sorted(ends)), 0),
            **kwargs,
        )
    said = []
    for tokens, length in zip(output[:, width:].tolist(), lengths, strict=True):
        end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        said.append(tokens[: min(end, length)])
    return said
