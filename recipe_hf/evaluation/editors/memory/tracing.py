"""Causal tracing: at which layer the MLPs recall a fact (ROME, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ....datasets import EditExample
from ....modeling.frozen_base import input_device
from .layers import Layer, by_row, hooked
from .values import find_lookups, subject_end

#: Noise on the subject's embeddings, in standard deviations of these (ROME, appendix B).
_NOISE = 3.0
#: Share of the layers whose MLPs are restored together: 10 of the 48 of GPT-2 XL (ROME, section 2.2).
_WINDOW = 10 / 48


def trace_layer(
    lm: Any,
    tokenizer: PreTrainedTokenizerBase,
    layers: Sequence[Layer],
    facts: Sequence[EditExample],
    samples: int = 4,
) -> tuple[int, list[float]]:
    """Finds the layer whose MLP, and those around it, recall facts at the last token of the subject.

    The subject's embeddings are corrupted by noise, and the outputs of a window of MLPs at its last token restored to
    what they are without. The indirect effect of a layer is by how much this raises the probability of what the base
    says (eq. 1), the mean over facts and noises; the layer with the highest is taken.

    Args:
        lm: The base.
        tokenizer: Its tokenizer.
        layers: Its layers.
        facts: Facts whose prompts name their subjects. What they make of these is not read.
        samples: Noises for each fact. The paper has 10.

    Returns:
        The layer's number, and the mean effect of each.

    Raises:
        ValueError: If no fact names its subject in its prompt.
    """
    traced = [fact for fact in facts if subject_end(fact) is not None]
    if not traced:
        raise ValueError(
            f"Causal tracing needs facts whose prompts name their subjects, got {len(facts)} without: give layer."
        )
    effects = torch.stack([indirect_effects(lm, tokenizer, layers, fact, samples) for fact in traced]).mean(0)
    # At the last layer there is none, as no token reads another behind it.
    return int(effects[: max(1, len(layers) - 1)].argmax()), [round(effect, 6) for effect in effects.tolist()]


@torch.no_grad()
def indirect_effects(
    lm: Any, tokenizer: PreTrainedTokenizerBase, layers: Sequence[Layer], fact: EditExample, samples: int = 4
) -> Tensor:
    """The indirect effect of each layer's MLP, with those around it, for one fact, `[num_layers]`."""
    end = subject_end(fact)
    (lookup,) = find_lookups(tokenizer, [fact.prompt], ["."], [end])
    (first,) = find_lookups(tokenizer, [fact.prompt], ["."], [None if end is None else end - len(fact.subject) + 1])
    subject = slice(first.place, lookup.place + 1)
    ids = torch.tensor([lookup.row.prompt_ids], device=input_device(lm))
    half = max(0, round(_WINDOW * len(layers) - 1) // 2)
    clean: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            clean[number] = by_row(output, 1)[0, lookup.place].clone()

        return hook

    with hooked([layer.down.register_forward_hook(keep(layer.number)) for layer in layers]):
        said = _next_token(lm, ids)[0]
    answer = int(said.argmax())

    noise = torch.randn(
        samples, subject.stop - subject.start, lm.get_input_embeddings()(ids).shape[-1],
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip

    def corrupt(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        scale = _NOISE * output[0, subject].float().std()
        output[:, subject] += (scale * noise.to(output.device)).to(output).repeat(len(output) // samples, 1, 1)
        return output

    def restore(number: int) -> Any:
        # Rows are in groups of `samples`: the first is corrupted only, those after restore one window each.
        near = [1 + other for other in range(len(layers)) if abs(other - number) <= half]

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            groups = by_row(output, samples * (1 + len(layers))).unflatten(0, (-1, samples)).clone()
            groups[near, :, lookup.place] = clean[number].to(output)
            return groups.view_as(output)

        return hook

    handles = [lm.get_input_embeddings().register_forward_hook(corrupt)]
    handles += [layer.down.register_forward_hook(restore(layer.number)) for layer in layers]
    with hooked(handles):
        probabilities = _next_token(lm, ids.expand(samples * (1 + len(layers)), -1))[:, answer]
    recalled = probabilities.unflatten(0, (-1, samples)).mean(1)
    return (recalled[1:] - recalled[0]).cpu()


def _next_token(lm: Any, ids: Tensor) -> Tensor:
    """Probabilities of the token after texts of one length, `[n, vocab]`."""
    return lm(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].float().softmax(-1)
