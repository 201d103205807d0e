"""The layers of a decoder-only model, found by structure: where keys are read, and values are added to the stream."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Layer:
    """One layer of a decoder.

    Args:
        number: Its number, from 0.
        name: Its name in the model.
        module: The layer, whose output is the residual stream.
        attention: Its attention.
        up: The first linear map of its MLP (of a gated one, the gate): its input is that of the MLP, `[d_llm]`.
        down: The linear map that ends its MLP: its input is a key `[d_key]`, its output a value `[d_llm]`.
    """

    number: int
    name: str
    module: nn.Module
    attention: nn.Module
    up: nn.Module
    down: nn.Module

    @property
    def key_size(self) -> int:
        """Width of a key."""
        return _shape(self.down)[1]

    def weight(self) -> Tensor:
        """The weight of the MLP's last map as `[d_llm, d_key]`, a view of the parameter in its own precision."""
        return _as_matrix(self.down, _parameter(self.down))

    @torch.no_grad()
    def add(self, update: Tensor) -> None:
        """Adds `update` `[d_llm, d_key]` to that weight."""
        weight = self.weight()
        weight.copy_(weight.float() + update.to(weight.device))


def find_layers(lm: PreTrainedModel) -> list[Layer]:
    """The layers of a decoder-only model with dense MLPs, whatever they are called.

    They are the list of as many modules as the configuration counts layers. In each, the attention is the part whose
    forward takes an `attention_mask`, and the MLP's last map the one linear map outside it that leads back to the
    width of the residual stream.

    Args:
        lm: The model.

    Raises:
        ValueError: If no such list, attention or map is there, if there are several, if the MLPs are mixtures of
            experts, or if a weight is quantised.
    """
    config = lm.config.get_text_config(decoder=True)
    number, width = config.num_hidden_layers, config.hidden_size
    # Of nested models, the decoder is met first under its own name.
    lists = [(n, m) for n, m in lm.named_modules() if isinstance(m, nn.ModuleList) and len(m) == number]
    with_attention = [(n, m) for n, m in lists if all(_attention(layer) for layer in m)]
    if len(with_attention) != 1:
        found = ", ".join(name for name, _ in with_attention or lists) or "none"
        raise ValueError(
            f"lm must have one list of {number} layers, as its configuration counts, each with a part whose forward "
            f"takes attention_mask; {type(lm).__name__} has {found}."
        )
    name, layers = with_attention[0]
    return [_layer(i, f"{name}.{i}", layer, width) for i, layer in enumerate(layers)]


def _attention(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in layer.named_children() if "attention_mask" in inspect.signature(m.forward).parameters]


def _layer(number: int, name: str, module: nn.Module, width: int) -> Layer:
    attention = _attention(module)
    outside = [
        (part, m)
        for part, m in module.named_modules()
        if not any(f"{part}.".startswith(f"{n}.") for n, _ in attention)
    ]
    experts = [part for part, _ in outside if "expert" in part.lower() or "moe" in part.lower()]
    if experts:
        raise ValueError(
            f"lm must have dense MLPs, got a mixture of experts: {name}.{experts[0]}. No single map holds its facts."
        )
    linear = [(part, m) for part, m in outside if isinstance(m, (nn.Linear, Conv1D))]
    maps = [(part, m) for part, m in linear if _shape(m)[0] == width]
    first = [m for part, m in linear if _shape(m)[1] == width and part != maps[0][0]] if maps else []
    if len(maps) != 1 or len(attention) != 1 or not first:
        raise ValueError(
            f"Layer {name} must have one attention and one linear map outside it to the width {width} of the residual "
            f"stream, the MLP's last, behind another; it has attention {[n for n, _ in attention]} and maps "
            f"{[n for n, _ in maps]}."
        )
    down = maps[0][1]
    if not _parameter(down).is_floating_point():
        raise ValueError(
            f"Weights that are edited must be floating-point numbers, got {_parameter(down).dtype} in "
            f"{name}.{maps[0][0]}: load the model without quantisation."
        )
    return Layer(number, name, module, attention[0][1], first[0], down)


def _parameter(linear: Any) -> Tensor:
    return linear.weight


def _as_matrix(linear: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a map as `[out, in]`; GPT-2's is stored the other way round."""
    return weight.T if isinstance(linear, Conv1D) else weight


def _shape(linear: Any) -> tuple[int, int]:
    """Width of the output and of the input. A quantised weight does not show it."""
    return (linear.nf, linear.nx) if isinstance(linear, Conv1D) else (linear.out_features, linear.in_features)


def hidden(output: Any) -> Tensor:
    """The hidden states of what a layer or attention gave, `[batch, seq, d_llm]`."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, states: Tensor) -> Any:
    """What a layer or attention gave, its hidden states replaced."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def by_row(states: Tensor, rows: int) -> Tensor:
    """What an MLP reads or gives for so many rows, as `[batch, seq, width]`: OPT joins rows to one."""
    return states if states.dim() == 3 else states.unflatten(0, (rows, -1))


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Removes hooks when it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class SavedWeights:
    """Weights of layers as they were before the first edit, to be restored to the last bit."""

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Layer, Tensor]] = {}

    def keep(self, layers: Sequence[Layer]) -> None:
        """Keeps the weights of layers, unless it holds earlier ones."""
        for layer in layers:
            if layer.number not in self._saved:
                self._saved[layer.number] = layer, layer.weight().detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Puts them back, and lets go of them."""
        for layer, weight in self._saved.values():
            layer.weight().copy_(weight)
        self._saved = {}
