"""The hidden prefix: prompt tokens before each row's text or inside it, unseen by whoever calls `generate`.

A causal LM with the hook of [`install_prefix_hook`] generates, inside [`hidden_prefix`], as if prefix embeddings stood
before the text of each row, or behind its first tokens. Ids, lengths, logits processors, stopping criteria and
streamers see the text alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, StaticCache, modeling_utils
from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass(frozen=True, eq=False)
class _Prefix:
    """Prefix embeddings `[B, L, d]`, which of them are there, `[B, L]`, and the only model to prefix, if not all.

    `behind` `[B]` says behind how many tokens of its text each one stands; behind none by default.
    """

    embeds: Tensor
    mask: Tensor
    lm: nn.Module | None = None
    behind: Tensor | None = None

    def __post_init__(self) -> None:
        if self.embeds.dim() != 3 or self.mask.shape != self.embeds.shape[:2] or self.mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be bool [B, L] beside embeds [B, L, d], got {self.mask.dtype} {list(self.mask.shape)} "
                f"beside {list(self.embeds.shape)}."
            )
        if self.behind is not None and self.behind.shape != self.mask.shape[:1]:
            raise ValueError(f"behind must be [{len(self.mask)}], as embeds has rows, got {list(self.behind.shape)}.")


_active: ContextVar[_Prefix | None] = ContextVar("hidden_prefix", default=None)

# transformers before 5.21 takes the same columns of every row only.
_KEEPS_COLUMNS_BY_ROW = hasattr(modeling_utils, "slice_logits_to_keep")

#: What a forward calls its key-value cache, the newest name first.
CACHE_NAMES = ("cache", "past_key_values")


def install_prefix_hook(lm: PreTrainedModel) -> RemovableHandle | None:
    """Lets `lm`, a causal LM or one wrapped by PEFT, be prefixed by [`hidden_prefix`]. Again is no harm.

    Outside that context the hook does nothing.

    Returns:
        What removes the hook again; None if it was there already.

    Raises:
        ValueError: If `lm` is an encoder-decoder, or its forward takes no key-value cache (RWKV). Of others,
            [`check_prefix`][recipe_hf.modeling.prefix_check.check_prefix] tells whether they can really be prefixed.
    """
    lm = _unwrapped(lm)
    model_type = lm.config.model_type
    if lm.config.is_encoder_decoder:
        raise ValueError(f"lm must be a decoder-only causal LM, got the encoder-decoder {model_type!r}.")
    if not any(accepts(lm, name) for name in CACHE_NAMES):
        raise ValueError(
            f"lm must be a causal LM whose forward takes a key-value cache ({' or '.join(CACHE_NAMES)}), got "
            f"{type(lm).__name__} (model type {model_type!r})."
        )
    if _has_hook(lm):
        return None
    return lm.register_forward_pre_hook(_prefix_inputs, with_kwargs=True)


def _has_hook(module: nn.Module) -> bool:
    return _prefix_inputs in module._forward_pre_hooks.values()


def hidden_prefix(
    embeds: Tensor, mask: Tensor, lm: PreTrainedModel | None = None, behind: Tensor | None = None
) -> AbstractContextManager[None]:
    """Context in which `lm.generate` behaves as if each row's text were preceded by its prefix tokens.

    Rows of `generate` must be these `B`, in order; beams and `num_return_sequences` repeat them. Text may be padded on
    either side. Holds for the current thread alone. A prefix counts towards the context length of `lm`, not towards
    `max_length`; attentions, hidden states and the cache, if asked for, include its columns.

    Args:
        embeds: Prefix embeddings, `[B, L, d]`, `d` being the width of the input embeddings.
        mask: Which of them are there, bool `[B, L]`; a row of `False` has no prefix. If no row has one, `generate`
            runs untouched.
        lm: The only model to prefix, wrapped or not. By default all with the hook are, also an assistant model.
        behind: Behind how many tokens of its text each prefix stands, padding apart, `[B]`; by default behind none.

    Raises:
        ValueError: If the shapes do not fit; in `generate`, if the batch is not of `B` rows, the text is read in
            chunks too short for `behind`, or the cache holds text already. So does a later `generate` that is given a
            cache begun here.
    """
    only = None if lm is None else next(filter(_has_hook, lm.modules()), None)
    prefix = _Prefix(embeds, mask, only, behind)
    return _activate(prefix if mask.any() else None)


def prefixed_forward(
    lm: PreTrainedModel,
    embeds: Tensor,
    mask: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    logits_to_keep: int | Tensor = 0,
    behind: Tensor | None = None,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """One forward of `lm` over prefix and text, with logits for the text alone.

    Gradients reach `embeds`. Positions count the real tokens, so padding may be on either side.

    Args:
        lm: The causal LM; it needs no hook.
        embeds: Prefix embeddings, `[B, L, d]`.
        mask: Which of them are there, bool `[B, L]`.
        input_ids: Text, `[B, T]`.
        attention_mask: 1 where `input_ids` is text, 0 where it is padding, `[B, T]`; all text by default.
        logits_to_keep: Columns of `input_ids` to compute logits for: 0 for all, `n` for the last `n`, or a tensor of
            column indices, `[n]` or `[B, n]`. The LM head sees nothing else.
        behind: Behind how many tokens of its text each prefix stands, `[B]`; by default behind none. The logits of
            the last of these are those of the prefix's last token, which the next token of the text follows.
        **kwargs: Further arguments of `lm`. `use_cache` is `False` unless given.

    Returns:
        The output of `lm`, its `logits` being `[B, T, vocab]` or `[B, n, vocab]`.

    Raises:
        ValueError: If shapes do not fit.
    """
    prefix = _Prefix(embeds, mask, behind=behind)
    keep = _kept_columns(logits_to_keep, embeds.shape[1], input_ids.shape[1])
    text_mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
    text = lm.get_input_embeddings()(input_ids)
    # Columns after the first token stay where they are, so that logits stay aligned.
    text, real, order = _insert(prefix, text, text_mask, right=text_mask.cumsum(1) > 0)
    if behind is not None:
        keep = _followed_by_next(order, keep)
    inputs = {"use_cache": False} | kwargs | {"inputs_embeds": text, "attention_mask": real.long()}
    if accepts(lm, "position_ids"):
        inputs["position_ids"] = _positions(real)
    with _activate(None):
        return forward_keeping(lm, keep, **inputs)


def forward_keeping(lm: PreTrainedModel, logits_to_keep: int | Tensor, **inputs: Any) -> CausalLMOutputWithPast:
    """One forward of `lm` with the logits of some columns, also of others in each row.

    Args:
        lm: The causal LM.
        logits_to_keep: 0 for all columns, `n` for the last `n`, or column indices, `[n]` or `[B, n]`.
        **inputs: Arguments of `lm`.
    """
    if isinstance(logits_to_keep, int) and logits_to_keep == 0:
        return lm(**inputs, return_dict=True)
    if not isinstance(logits_to_keep, Tensor) or logits_to_keep.dim() < 2 or _KEEPS_COLUMNS_BY_ROW:
        return lm(**inputs, return_dict=True, logits_to_keep=logits_to_keep)
    text = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
    columns, places = (logits_to_keep % text.shape[1]).unique(return_inverse=True)
    outputs = lm(**inputs, return_dict=True, logits_to_keep=columns)
    outputs.logits = outputs.logits.take_along_dim(places.unsqueeze(-1), 1)
    return outputs


@contextmanager
def _activate(prefix: _Prefix | None) -> Iterator[None]:
    token = _active.set(prefix)
    try:
        yield
    finally:
        _active.reset(token)


def _unwrapped(lm: PreTrainedModel) -> PreTrainedModel:
    """The transformers model inside a PEFT one: the one whose forward `generate` calls."""
    return getattr(lm, "get_base_model", lambda: lm)()


def accepts(lm: PreTrainedModel, argument: str) -> bool:
    """Whether the forward of `lm`, or of the model that PEFT wraps in it, has an argument of this name."""
    return argument in inspect.signature(_unwrapped(lm).forward).parameters


def _kept_columns(logits_to_keep: int | Tensor, prefix_columns: int, columns: int) -> int | Tensor:
    """`logits_to_keep` of the text alone as one of prefix and text, which end in the same column."""
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() not in (1, 2) or logits_to_keep.dtype == torch.bool:
            raise ValueError(
                f"logits_to_keep must be an int or column indices [n] or [B, n], got {logits_to_keep.dtype} "
                f"{list(logits_to_keep.shape)}."
            )
        return logits_to_keep + torch.where(logits_to_keep < 0, columns, 0) + prefix_columns
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep must be at least 0, got {logits_to_keep}.")
    return min(logits_to_keep, columns) or columns


def _positions(real: Tensor) -> Tensor:
    return (real.cumsum(1) - 1).clamp_min(0)


def _followed_by_next(order: Tensor, keep: int | Tensor) -> Tensor:
    """Where the logits of columns stand, `[B, n]`: right before the column that followed each of them.

    Args:
        order: The columns in their new order, `[B, columns]`.
        keep: The last `n` columns, or column indices `[n]` or `[B, n]`.
    """
    places = order.argsort(1)
    before_next = pad(places[:, 1:], (0, 1), value=places.shape[1]) - 1
    if isinstance(keep, int):
        return before_next[:, -keep:]
    return before_next[:, keep] if keep.dim() == 1 else before_next.take_along_dim(keep.to(order.device), 1)


def _insert(prefix: _Prefix, text: Tensor, text_mask: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Puts the prefix right before the text, or behind its first tokens.

    Empty prefix slots, and the columns of text not in `right` `[B, T]`, go to the left of all others.

    Returns:
        Embeddings `[B, L + T, d]`, which of them are real, `[B, L + T]`, and which columns they were before, of the
        prefix followed by the text, `[B, L + T]`.
    """
    repeats = text.shape[0] // prefix.embeds.shape[0]
    if repeats * prefix.embeds.shape[0] != text.shape[0]:
        raise ValueError(
            f"input_ids must have as many rows as the prefix, {prefix.embeds.shape[0]}, or a multiple of that, "
            f"got {text.shape[0]}."
        )
    if prefix.embeds.shape[-1] != text.shape[-1]:
        raise ValueError(
            f"embeds must be as wide as the input embeddings of lm, {text.shape[-1]}, got {prefix.embeds.shape[-1]}."
        )
    embeds = prefix.embeds.to(text).repeat_interleave(repeats, 0)
    mask = prefix.mask.to(text.device).repeat_interleave(repeats, 0)
    rank = 2 * torch.cat([mask, right], 1).int()
    if prefix.behind is not None:
        behind = prefix.behind.to(text.device).repeat_interleave(repeats, 0).unsqueeze(1)
        if (behind > text_mask.sum(1, keepdim=True)).any():
            raise ValueError(
                f"a hidden prefix must stand behind at most as many tokens as the text has, or prefill_chunk_size, "
                f"got {behind.max()} for {text.shape[1]} columns."
            )
        rank[:, mask.shape[1] :] -= (text_mask & (text_mask.cumsum(1) <= behind)).int()
    order = rank.argsort(dim=1, stable=True)
    real = torch.cat([mask, text_mask], 1).gather(1, order)
    return torch.cat([embeds, text], 1).take_along_dim(order.unsqueeze(-1), 1), real, order


def _text_mask(attention_mask: Any, tokens: Tensor, seen: int) -> Tensor:
    """Which of the `tokens` `[rows, columns, ...]` that follow `seen` cached ones are text, `[rows, columns]`.

    `attention_mask` is whatever `generate` prepared: `[rows, all columns so far]`, nothing, or for a static cache
    `[rows, 1, columns, cache length]`, perhaps in a dict by layer type. There, text is what sees itself.
    """
    rows, columns = tokens.shape[:2]
    if isinstance(attention_mask, dict):
        attention_mask = next((mask for mask in attention_mask.values() if mask is not None), None)
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        return attention_mask[:, -columns:].bool()
    if attention_mask is None or (seen and columns == 1):
        return torch.ones(rows, columns, dtype=torch.bool, device=tokens.device)
    if isinstance(attention_mask, Tensor) and not seen:
        itself = attention_mask[:, 0].diagonal(dim1=1, dim2=2)[:, :columns]
        return itself if itself.dtype == torch.bool else itself == 0
    raise ValueError(
        f"a static cache under a hidden prefix needs eager, sdpa or flash attention and no prefill_chunk_size, got an "
        f"attention_mask of type {type(attention_mask).__name__} for {columns} tokens after {seen}."
    )


def _with_room(cache: StaticCache, columns: int, lm: PreTrainedModel) -> StaticCache:
    """The empty static cache `generate` made, larger by `columns`. One that the user made is left as it is."""
    if getattr(cache, "_is_user_defined", False):
        return cache
    return StaticCache(lm.config, max_cache_len=cache.get_max_length() + columns, offloading=cache.offloading)


def _prefix_of(lm: PreTrainedModel) -> _Prefix | None:
    prefix = _active.get()
    return prefix if prefix is None or prefix.lm in (None, lm) else None


def _prefix_inputs(lm: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The forward pre-hook: lets an input that no prefix concerns through at once."""
    begun = any(hasattr(kwargs.get(name), "_hidden_prefix") for name in CACHE_NAMES)
    if not torch.compiler.is_compiling() and _prefix_of(lm) is None and not begun:
        return None
    return _prefixed_inputs(lm, args, kwargs)


@torch.compiler.disable
def _prefixed_inputs(lm: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Turns the inputs of one step of `generate` into those of the prefixed text.

    `generate` gives every input by name. What gives ids by position is another call, such as the unconditional one of
    classifier-free guidance, and is let through.
    """
    prefix = _prefix_of(lm)
    name = next((name for name in CACHE_NAMES if kwargs.get(name) is not None), None)
    cache: Any = None if name is None else kwargs[name]
    mark: Any = getattr(cache, "_hidden_prefix", (None, None))
    begun_with, cached = mark
    if args or (prefix is None and begun_with is None):
        return None
    seen = 0 if cache is None else int(cache.get_seq_length())
    if seen and begun_with is not prefix:
        raise ValueError(
            f"the key-value cache ({name}) must be empty where a hidden prefix begins, and not be used after it ended."
        )
    if prefix is None:
        del cache._hidden_prefix  # it was emptied
        return None

    inputs = dict(kwargs)
    ids = inputs.get("input_ids")
    tokens = inputs["inputs_embeds"] if ids is None else ids
    real = _text_mask(inputs.get("attention_mask"), tokens, seen)
    if seen:
        real = torch.cat([cached[:, :seen], real], 1)
    else:
        text = tokens if ids is None else lm.get_input_embeddings()(ids)
        inputs["input_ids"] = None
        embeds, real, _ = _insert(prefix, text, real, right=real)
        unused = int((real.cumsum(1) == 0).all(0).sum())  # Columns on the left that are empty in every row.
        inputs["inputs_embeds"], real = embeds[:, unused:], real[:, unused:]
        if name is not None and isinstance(cache, StaticCache):
            inputs[name] = cache = _with_room(cache, prefix.embeds.shape[1], lm)
    if cache is not None:
        cache._hidden_prefix = (prefix, real)

    if "position_ids" in inputs or accepts(lm, "position_ids"):
        inputs["position_ids"] = _positions(real)[:, seen:].contiguous()
    if inputs.get("cache_position") is not None:
        inputs["cache_position"] = torch.arange(seen, real.shape[1], device=real.device)
    if isinstance(cache, StaticCache):
        # Of one shape at every step, or a compiled forward would be compiled again and again.
        real = pad(real, (0, max(0, cache.get_max_length() - real.shape[1])))
    inputs["attention_mask"] = real.long()
    return args, inputs
