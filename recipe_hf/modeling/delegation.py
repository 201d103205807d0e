"""transformers' model interface (embeddings, device, ...): answered by the base, or refused where it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration import RecipeConfig
from .frozen_base import fingerprint, input_device
from .retriever import Retriever

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger(__name__)


def _refused(name: str, reason: str) -> Callable[..., Any]:
    def refuse(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no {name}: {reason}.")

    refuse.__name__, refuse.__doc__ = name, f"Raises `NotImplementedError`: {reason}."
    return refuse


_BATCHING = "continuous batching cannot prefix facts; use generate, or model.lm's for the base without facts"
_ADAPTER = "an adapter belongs on the base, which a checkpoint only names; use model.lm's, and save it apart"
_PART = "the base is frozen, and a checkpoint only names it; use model.lm's, and save it apart"


class DelegatingPreTrainedModel(PreTrainedModel):
    """The part of [`RecipeForCausalLM`] that speaks for its base, `lm`, which is None before one is attached."""

    config: RecipeConfig
    lm: Any
    retriever: Retriever

    init_continuous_batching = _refused("init_continuous_batching", _BATCHING)
    continuous_batching_context_manager = _refused("continuous_batching_context_manager", _BATCHING)
    generate_batch = _refused("generate_batch", _BATCHING)
    add_adapter = _refused("add_adapter", _ADAPTER)
    load_adapter = _refused("load_adapter", _ADAPTER)
    set_input_embeddings = _refused("set_input_embeddings", _PART)
    set_output_embeddings = _refused("set_output_embeddings", _PART)
    set_decoder = _refused("set_decoder", _PART)
    resize_position_embeddings = _refused("resize_position_embeddings", _PART)

    def _attached(self) -> Any:
        if self.lm is None:
            raise RuntimeError("No base is attached, so there is nothing to run: use attach_base, or base_model=.")
        return self.lm

    def train(self, mode: bool = True) -> Self:
        """Sets training mode; the base stays in evaluation mode."""
        super().train(mode)
        if self.lm is not None:
            self.lm.eval()
        return self

    @property
    def generation_config(self) -> GenerationConfig:
        """The base's generation config, once there is a base."""
        return self._generation_config if self.lm is None else self.lm.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        if getattr(self, "lm", None) is None:
            self._generation_config = config
        else:
            self.lm.generation_config = config

    @property
    def device(self) -> torch.device:
        """The device that inputs belong on."""
        return self.retriever.device if self.lm is None else input_device(self.lm)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base; the recipe weights stay in float32."""
        return self.retriever.sentinel_embeds.dtype if self.lm is None else self.lm.dtype

    @property
    def max_text_length(self) -> int | None:
        """How many tokens of text and answer the base has positions for, beside facts; None if it names no limit."""
        positions = getattr(self._attached().config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            return None
        config = self.config
        of_a_fact = config.num_continuous_prompt_tokens + config.num_answer_prompt_tokens
        if config.prompt_form == "text":
            of_a_fact = self.retriever.max_length
        return positions - config.top_k_facts * of_a_fact

    @property
    def hf_device_map(self) -> dict[str, Any]:
        """Where `device_map` put the parts of the base."""
        return self.lm.hf_device_map

    def get_input_embeddings(self) -> nn.Module:
        """The base's input embeddings."""
        return self._attached().get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The base's LM head."""
        return self._attached().get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The base's decoder, which knows no facts."""
        return self._attached().get_decoder()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes the base's embeddings and LM head, as in `transformers`.

        The base is not part of a checkpoint. One with more tokens has to be saved apart, and given as `base_model=`
        to `from_pretrained`: a checkpoint saved from now on names no base.

        Raises:
            RuntimeError: If no base is attached.
        """
        lm, config = self._attached(), self.config
        before = lm.config.get_text_config().vocab_size
        embeddings = lm.resize_token_embeddings(*args, **kwargs)
        size = lm.config.get_text_config().vocab_size
        if size == before:
            return embeddings
        if size > config.vocab_size:
            logger.warning(
                f"The base has {size} tokens now, {config.base_model_name_or_path or 'as it was loaded'} has "
                f"{config.vocab_size}: checkpoints saved from now on name no base. Save this one too "
                f"(model.lm.save_pretrained), and give it as base_model= when they are loaded."
            )
            config.base_model_name_or_path = config.base_model_revision = None
        config.vocab_size, config.base_fingerprint = size, fingerprint(lm)
        return embeddings

    # ------------------------------------------------------------------ activation checkpointing

    @property
    def supports_gradient_checkpointing(self) -> bool:  # type: ignore[override]
        """Whether layers of the base can be recomputed in the backward pass."""
        return any(self._recomputable_layers())

    def _recomputable_layers(self) -> Iterator[GradientCheckpointingLayer]:
        layers = [] if getattr(self, "lm", None) is None else self.lm.modules()
        return (layer for layer in layers if isinstance(layer, GradientCheckpointingLayer))

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, *args: Any, **kwargs: Any
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, *args, **kwargs)
        for layer in self._recomputable_layers():
            recompute: Any = partial(_without_dropout, layer, gradient_checkpointing_func)
            layer._gradient_checkpointing_func = recompute

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Context of a forward of the base: its layers are recomputed only in training mode, which it is never in."""
        layers = [layer for layer in self._recomputable_layers() if self.training and layer.gradient_checkpointing]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False


def _without_dropout(layer: nn.Module, recompute: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    """Runs `recompute(forward, *args)` with `layer` in evaluation mode, then and in the backward pass."""

    def run(*args: Any) -> Any:
        was, layer.training = layer.training, False
        try:
            return forward(*args)
        finally:
            layer.training = was

    return recompute(run, *args)
