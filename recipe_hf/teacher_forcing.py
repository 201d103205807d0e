"""Teacher forcing: what a language model predicts at each token of a given answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .modeling.frozen_base import embedding_width, input_device
from .modeling.places import prompt_places
from .modeling.prefix import prefixed_forward

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Row:
    """A prompt and its answer as token ids, and behind how many of them a continuous prompt stands."""

    prompt_ids: list[int]
    answer_ids: list[int]
    behind: int = 0

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def tokenize_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    prompt_position: str = "before_bos",
) -> list[Row]:
    """Tokenises prompts and the answers that continue them: after a space, or on a line that a chat template began.

    Args:
        tokenizer: The base's tokenizer.
        prompts: The prompts.
        answers: Their answers.
        prompt_position: Where continuous prompts stand, as in [`RecipeConfig`][recipe_hf.RecipeConfig].
    """
    prompt_ids = tokenizer(list(prompts))["input_ids"]
    texts = [a if p.endswith("\n") else f" {a}" for p, a in zip(prompts, answers, strict=True)]
    answer_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    behind = prompt_places(tokenizer, prompt_ids, prompt_position)
    places = [0] * len(prompt_ids) if behind is None else behind.tolist()
    return [Row(*row) for row in zip(prompt_ids, answer_ids, places, strict=True)]


def answer_logits(
    lm: PreTrainedModel,
    rows: Sequence[Row],
    prefix: Tensor | None = None,
    num_buckets: int = 1,
    prefix_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits at the answer tokens only, so that the LM head runs nowhere else.

    Args:
        lm: The language model.
        rows: Prompts and answers.
        prefix: Continuous prompts to put before every row, or behind its first tokens, `[batch, num_tokens, d_llm]`.
        num_buckets: Calls of the language model, each with rows of similar length, so that less is spent on padding.
        prefix_mask: Which tokens of `prefix` are there, `[batch, num_tokens]`; all by default.

    Returns:
        Logits `[batch, n, vocab]` and labels `[batch, n]`, where `n` is the length of the longest answer. Shorter
        answers stand at the right; the columns before them are labelled `IGNORE_INDEX`.
    """
    if prefix is None:
        prefix = torch.empty(len(rows), 0, embedding_width(lm), device=input_device(lm))
    if prefix_mask is None:
        prefix_mask = torch.ones(prefix.shape[:2], dtype=torch.bool, device=prefix.device)
    by_length = torch.tensor(sorted(range(len(rows)), key=lambda i: len(rows[i])))
    num_targets = max(len(row.answer_ids) for row in rows)
    logits, labels = [], []
    for bucket in by_length.tensor_split(min(num_buckets, len(rows))):
        chosen = [rows[i] for i in bucket.tolist()]
        scores, targets = _answer_logits(lm, chosen, prefix[bucket], prefix_mask[bucket])
        if scores.requires_grad:
            # The gradient of the padded scores is a view with gaps, for which the LM head would copy its weights.
            scores.register_hook(torch.Tensor.contiguous)
        missing = num_targets - targets.shape[1]
        logits.append(F.pad(scores, (0, 0, missing, 0)))
        labels.append(F.pad(targets, (missing, 0), value=IGNORE_INDEX))
    position = by_length.argsort().to(logits[0].device)
    return torch.cat(logits)[position], torch.cat(labels)[position]


def _answer_logits(
    lm: PreTrainedModel, rows: Sequence[Row], prefix: Tensor, prefix_mask: Tensor
) -> tuple[Tensor, Tensor]:
    device = input_device(lm)
    longest = max(map(len, rows)) - 1
    num_targets = max(len(row.answer_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full((len(rows), num_targets), IGNORE_INDEX)
    for i, row in enumerate(rows):
        text = (row.prompt_ids + row.answer_ids)[:-1]
        ids[i, longest - len(text) :] = torch.tensor(text)
        mask[i, longest - len(text) :] = 1
        labels[i, num_targets - len(row.answer_ids) :] = torch.tensor(row.answer_ids)
    ids, mask, labels = ids.to(device), mask.to(device), labels.to(device)
    # As indices, which give the LM head a copy without gaps: for a view with gaps, PyTorch copies its weights.
    kept = torch.arange(longest - num_targets, longest, device=device)
    behind = torch.tensor([row.behind for row in rows]) if any(row.behind for row in rows) else None
    outputs: Any = prefixed_forward(lm, prefix, prefix_mask, ids, mask, logits_to_keep=kept, behind=behind)
    return outputs.logits, labels
