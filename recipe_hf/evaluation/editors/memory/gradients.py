"""The gradient of a loss with respect to a matrix as a sum of products of vectors, one for each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ....teacher_forcing import IGNORE_INDEX, Row, answer_logits
from .layers import Layer, hooked

#: For each token, what a map reads, `[n, d_key]`, and the gradient of what it gives, `[n, d_llm]`.
Factors = tuple[Tensor, Tensor]


def answer_loss(lm: Any, rows: Sequence[Row]) -> Tensor:
    """Mean negative log-likelihood of the tokens of answers."""
    logits, labels = answer_logits(lm, rows)
    return F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX)


def divergence(logits: Tensor, before: Tensor, labels: Tensor) -> Tensor:
    """Mean divergence KL(before || now) of what is said at the tokens of answers, where `labels` are not negative.

    Args:
        logits: What a model says now, `[batch, n, vocab]`.
        before: What it, or another, said before.
        labels: The answers, `[batch, n]`.
    """
    now, then = (scores.float().log_softmax(-1) for scores in (logits, before))
    return F.kl_div(now, then, log_target=True, reduction="none").sum(-1)[labels >= 0].mean()


def gradient_factors(lm: Any, layers: Sequence[Layer], rows: Sequence[Row]) -> dict[int, Factors]:
    """Factors of the gradients of the last maps of MLPs, of the mean loss of answers.

    The gradient of a layer's map is the sum of the outer products of gradient and input over tokens (MEND, section
    3.1): for one token it has rank one. Tokens without a gradient, such as padding, are left out.

    Args:
        lm: The model. Its parameters need no gradient.
        layers: The layers.
        rows: Prompts and answers.
    """
    read: dict[int, Tensor] = {}
    probes: dict[int, Tensor] = {}

    def hook(layer: Layer) -> RemovableHandle:
        def probe(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            read[layer.number] = args[0].detach().flatten(0, -2).float()
            probes[layer.number] = torch.zeros_like(output, requires_grad=True)
            return output + probes[layer.number]

        return layer.down.register_forward_hook(probe)

    with torch.enable_grad(), hooked([hook(layer) for layer in layers]):
        loss = answer_loss(lm, rows)
    gradients = torch.autograd.grad(loss, list(probes.values()))
    factors = {}
    for number, gradient in zip(probes, gradients, strict=True):
        gradient = gradient.flatten(0, -2).float()
        counts = gradient.abs().sum(-1) > 0
        factors[number] = read[number][counts], gradient[counts]
    return factors


@contextmanager
def updated(layers: Sequence[Layer], updates: Mapping[int, Tensor]) -> Iterator[None]:
    """Within it, updates `[d_llm, d_key]` are added to the maps of layers, and gradients reach the updates."""

    def hook(layer: Layer) -> RemovableHandle:
        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            update = updates[layer.number]
            return output + (args[0].to(update) @ update.T).to(output)

        return layer.down.register_forward_hook(add)

    with hooked([hook(layer) for layer in layers]):
        yield
