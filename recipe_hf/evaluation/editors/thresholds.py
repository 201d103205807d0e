"""Thresholds of editors that have one, tuned on validation rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...datasets import EditExample


def questions_to_tune(
    facts: Sequence[EditExample], asked: Sequence[EditExample]
) -> tuple[list[str], list[int | None]]:
    """The prompts, rephrasings and unrelated questions of `asked`, and for each the position of its fact, if any."""
    position = {example.prompt: number for number, example in enumerate(facts)}
    own = [position[example.prompt] for example in asked]
    texts = [
        *(example.prompt for example in asked),
        *(example.rephrase_prompt for example in asked),
        *(example.locality_prompt for example in asked),
    ]
    return texts, [*own, *own, *(position.get(example.locality_prompt) for example in asked)]


def choose_threshold(scores: Tensor, is_right: Tensor) -> float:
    """The threshold with the most right decisions, where what scores above it is accepted.

    Args:
        scores: `[n]`.
        is_right: Whether each should be accepted, bool `[n]`.

    >>> choose_threshold(torch.tensor([0.9, 0.7, 0.5, 0.1]), torch.tensor([True, True, False, False]))
    0.6
    """
    ordered, order = scores.double().sort(descending=True)
    # Right if the best i are accepted, for i = 0 to n.
    right = torch.cat([torch.zeros(1), is_right[order].cumsum(0)]) + torch.cat(
        [(~is_right[order]).sum()[None], (~is_right[order]).sum() - (~is_right[order]).cumsum(0)]
    )
    edges = torch.cat([ordered[:1] + 1, (ordered[1:] + ordered[:-1]) / 2, ordered[-1:] - 1])
    return round(edges[int(right.argmax())].item(), 6)
