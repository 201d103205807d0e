"""The frozen base LLM: loading it, freezing it, and recognising it again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import model_source, one_line
from .configuration import RecipeConfig
from .prefix import install_prefix_hook
from .prefix_check import check_prefix

logger = logging.getLogger(__name__)

FINGERPRINT_SIZE = 64
# Rounding to bfloat16 moves a value by at most 2^-9 of itself.
_ROUNDING = 0.005
_SAME_BASE_CORRELATION = 0.95
_DEFAULT_CONTEXT_LENGTH = 2048


def split_gguf(source: str | os.PathLike[str]) -> tuple[str, dict[str, str]]:
    """The arguments of `from_pretrained` for a Hub id, a directory, or the path of a GGUF file.

    Raises:
        FileNotFoundError: If `source` names a GGUF file that does not exist.
    """
    path = Path(source)
    if path.suffix.lower() != ".gguf":
        return str(source), {}
    if not path.is_file():
        raise FileNotFoundError(f"{source} must be an existing GGUF file.")
    return str(path.parent), {"gguf_file": path.name}


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Begins the error of whatever transformers stumbles over in files with `what`.

    Raises:
        OSError: If a file cannot be found or read.
        ValueError: If one is damaged, or holds something else.
    """
    try:
        yield
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raises bare exceptions, and a damaged config leads to any kind of them
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{what} ({type(error).__name__}: {one_line(error)}).") from error


def load_base(base_model: str | os.PathLike[str] | nn.Module, **kwargs: Any) -> PreTrainedModel:
    """Loads a base LLM, or takes a loaded one, and gives it back frozen and ready to be prefixed.

    Args:
        base_model: Hub id, directory, path of a GGUF file, or a causal LM, which may be wrapped by PEFT.
        **kwargs: Passed to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        OSError: If it cannot be found.
        TypeError: If it is neither a path nor a causal LM.
        ValueError: If its files are damaged, or it cannot be prefixed: an encoder-decoder, a model without a key-value
            cache, one with a PEFT adapter that prepends prompt tokens of its own, or one that a trial shows to write
            wrong text.
    """
    lm: Any = base_model
    if isinstance(base_model, (str, os.PathLike)):
        path, gguf = split_gguf(base_model)
        name = model_source("base_model", str(base_model))
        what = f"base_model={name!r} cannot be loaded"
        if not os.path.exists(name):
            what = (
                f"base_model must be a directory or a GGUF file that exists, or a Hub id that is there, got {name!r}"
            )
        with loading(what):
            lm = AutoModelForCausalLM.from_pretrained(path, **gguf, **kwargs)
    elif not isinstance(base_model, nn.Module) or not hasattr(base_model, "generate"):
        raise TypeError(
            f"base_model must be a Hub id, a directory, a GGUF file or a causal LM, got {type(base_model).__name__}."
        )
    elif kwargs:
        raise ValueError(
            f"{', '.join(sorted(kwargs))} must not be given with a loaded base_model: they say how to load one."
        )
    if isinstance(getattr(lm, "config", None), RecipeConfig):
        raise ValueError("base_model must be a plain causal LM, got a RECIPE model: take its .lm.")
    for name, adapter in (getattr(lm, "peft_config", None) or {}).items():
        if getattr(adapter, "is_prompt_learning", False):
            raise ValueError(
                f"base_model must not have an adapter that prepends its own prompt tokens, "
                f"got {adapter.peft_type} in adapter {name!r}."
            )
    hook = install_prefix_hook(lm)
    if hook is not None:
        try:
            check_prefix(lm, input_device(lm))
        except ValueError:
            hook.remove()
            raise
    return lm.requires_grad_(False).eval()


def load_tokenizer(source: str | os.PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """Loads a base's tokenizer from a Hub id, a directory or a GGUF file, ready for batches: padded on the left."""
    path, gguf = split_gguf(source)
    with loading(f"The tokenizer of {str(source)!r} cannot be loaded"):
        return prepare_tokenizer(AutoTokenizer.from_pretrained(path, **gguf, **kwargs))


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Sets what batched generation needs: padding on the left, with the end-of-text token if there is no other."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # The latter is what is saved.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def base_name(lm: PreTrainedModel) -> str | None:
    """What a loaded base was loaded from: a Hub id, a directory or the path of a GGUF file.

    None where that would not bring it back: a model made from a config, or one with a PEFT adapter.
    """
    name = getattr(lm.config, "_name_or_path", None)
    if not name or getattr(lm, "peft_config", None):
        return None
    gguf_file = getattr(getattr(lm.config, "quantization_config", None), "gguf_file", None)
    return str(Path(name) / gguf_file) if gguf_file else name


def base_revision(name: str, revision: str | None, cache_dir: str | None) -> str | None:
    """The commit of the base in the Hub's cache; `revision` itself if `name` is not there."""
    if os.path.exists(name):
        return None
    cached = try_to_load_from_cache(name, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else revision


def describe_base(lm: PreTrainedModel) -> dict[str, Any]:
    """What a `RecipeConfig` records of a base."""
    config = lm.config.get_text_config()
    return {
        "hidden_size": embedding_width(lm),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT_LENGTH,
        "base_fingerprint": fingerprint(lm),
    }


def fingerprint(lm: PreTrainedModel, vocab_size: int | None = None) -> list[float]:
    """Samples 64 values of the input embeddings, at fixed places, rounded to 6 digits.

    Args:
        lm: The base.
        vocab_size: Draw from the embeddings of this many first tokens, by default of all.
    """
    generator = torch.Generator().manual_seed(0)
    size = vocab_size or lm.config.get_text_config().vocab_size
    tokens = torch.randint(size, (FINGERPRINT_SIZE,), generator=generator)
    places = torch.rand(FINGERPRINT_SIZE, generator=generator)
    embeds = _embed(lm, tokens)
    columns = (places * embeds.shape[-1]).long()
    return [float(f"{value:.6g}") for value in embeds[torch.arange(FINGERPRINT_SIZE), columns].tolist()]


def check_base(lm: PreTrainedModel, config: RecipeConfig) -> None:
    """Checks that `lm` is the base that `config` was made for.

    The same weights rounded to 16 bits pass; other quantisations and light fine-tunes pass with a warning.

    Raises:
        ValueError: If it is another model.
    """
    expected = config.base_model_name_or_path or "the base this checkpoint was trained with"
    width = embedding_width(lm)
    if width != config.hidden_size:
        raise ValueError(
            f"base_model must have input embeddings of width {config.hidden_size}, as {expected} has, got {width}."
        )
    vocab_size = lm.config.get_text_config().vocab_size
    if vocab_size < config.vocab_size:
        raise ValueError(
            f"base_model must have at least {config.vocab_size} tokens, as {expected} has, got {vocab_size}."
        )
    if config.base_fingerprint is None:
        return
    recorded = torch.tensor(config.base_fingerprint)
    found = torch.tensor(fingerprint(lm, config.vocab_size))
    if found.shape == recorded.shape:
        if ((found - recorded).abs() <= _ROUNDING * recorded.abs() + 1e-6).all():
            return
        correlation = torch.corrcoef(torch.stack([recorded, found]))[0, 1].item()
        if correlation > _SAME_BASE_CORRELATION:
            logger.warning(
                f"base_model has input embeddings close to those of {expected}, but not the same (correlation "
                f"{correlation:.4f}): another quantisation or a fine-tune of it. Edits may be less reliable."
            )
            return
    raise ValueError(
        f"base_model must be {expected}, whose input embeddings are recorded in base_fingerprint; "
        f"got a model with others."
    )


def input_device(lm: PreTrainedModel) -> torch.device:
    """The device that inputs of `lm` belong on, also where its weights are offloaded."""
    embeddings = lm.get_input_embeddings()
    device = next(chain(embeddings.parameters(), embeddings.buffers())).device
    if device.type != "meta":
        return device
    return torch.device(getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None) or "cpu")


def embedding_width(lm: PreTrainedModel) -> int:
    """Width of the input embeddings, `d_llm`, whatever their weights are stored as."""
    return _embed(lm, torch.tensor([0])).shape[-1]


@torch.no_grad()
def _embed(lm: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Input embeddings `[n, hidden_size]` of tokens, whatever the weights are stored as."""
    return lm.get_input_embeddings()(tokens.to(input_device(lm))).float().cpu()
