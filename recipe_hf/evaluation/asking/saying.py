"""What an edited language model says: the most likely tokens of a given answer, or greedy output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...modeling.frozen_base import input_device
from ...modeling.places import prompt_places
from ...modeling.prefix import hidden_prefix
from ...teacher_forcing import Row, answer_logits
from ..editors.editor import Editor, Prefix, Reading

#: Tokens generated beyond the length of the answer, for an article or another spelling of it.
EXTRA_TOKENS = 4


@torch.no_grad()
def predict(editor: Editor, readings: Sequence[Reading], answers: Sequence[list[int]]) -> list[list[int]]:
    """The most likely token at each position of each answer's tokens, all tokens before it being given."""
    # The order in which `answer_logits` puts them to the language model, which the editor may have to know.
    order = sorted(range(len(readings)), key=lambda i: len(readings[i].ids) + len(answers[i]))
    embeds, mask = _prefix(editor, [readings[i] for i in order]) or (None, None)
    places = _places(editor, [readings[i] for i in order], embeds)
    behind = [0] * len(order) if places is None else places.tolist()
    rows = [Row(readings[i].ids, answers[i], place) for i, place in zip(order, behind, strict=True)]
    with editor.answering(rows):
        logits, _ = answer_logits(editor.lm, rows, embeds, prefix_mask=mask)
    predicted = dict(zip(order, logits.argmax(-1).tolist(), strict=True))
    return [predicted[i][-len(answer) :] for i, answer in enumerate(answers)]


@torch.no_grad()
def write(editor: Editor, readings: Sequence[Reading], lengths: Sequence[int], **kwargs: Any) -> list[list[int]]:
    """Greedy output after each reading, at most as long as `lengths` says, without an end token.

    Further arguments are those of `generate`.
    """
    lm = editor.lm
    width = max(len(reading.ids) for reading in readings)
    ids = torch.zeros(len(readings), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, reading in enumerate(readings):
        ids[i, width - len(reading.ids) :] = torch.tensor(reading.ids)
        mask[i, width - len(reading.ids) :] = 1
    ends = lm.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    device = input_device(lm)
    prefix = _prefix(editor, readings)
    with (
        editor.answering([Row(reading.ids, []) for reading in readings]),
        nullcontext() if prefix is None else hidden_prefix(*prefix, behind=_places(editor, readings, prefix)),
    ):
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


@torch.no_grad()
def tokens_added(editor: Editor, prompts: Sequence[Sequence[int]], readings: Sequence[Reading]) -> list[int]:
    """How many tokens are read beyond those of each prompt."""
    prefix = _prefix(editor, readings)
    before = [0] * len(readings) if prefix is None else prefix[1].sum(1).tolist()
    return [len(r.ids) - len(p) + b for r, p, b in zip(readings, prompts, before, strict=True)]


def _places(editor: Editor, readings: Sequence[Reading], prefix: Any) -> Tensor | None:
    """Behind how many tokens of each reading a prefix stands, if there is one; None for before all."""
    if prefix is None:
        return None
    return prompt_places(editor.tokenizer, [r.ids for r in readings], editor.model.config.prompt_position)


def _prefix(editor: Editor, readings: Sequence[Reading]) -> Prefix | None:
    """A prefix for each reading, that of one told nothing being empty."""
    told = torch.tensor([reading.told is not None for reading in readings])
    prefix = editor.prefix([reading for reading in readings if reading.told is not None]) if told.any() else None
    if prefix is None or told.all():
        return prefix
    rows = (told.cumsum(0) - 1).clamp(min=0).to(prefix[1].device)
    return prefix[0][rows], prefix[1][rows] & told.to(prefix[1].device)[:, None]
