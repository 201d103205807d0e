"""The word embeddings of a base, without the base."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ...modeling.frozen_base import loading


def load_embeddings(source: str | os.PathLike[str], **hub_kwargs: Any) -> PreTrainedModel:
    """A base whose word embeddings are there, and whose other weights are not: they stay on the meta device.

    Args:
        source: Hub id or directory of the base. Of its files, the one that holds the embeddings is read.
        **hub_kwargs: `revision`, `cache_dir`, `token`, `local_files_only`, `trust_remote_code`.

    Raises:
        OSError: If the base cannot be found, or has no safetensors.
        ValueError: If no tensor in them, or more than one, can be the word embeddings.
    """
    with loading(f"The word embeddings of base_model={str(source)!r} cannot be loaded"):
        config = AutoConfig.from_pretrained(source, **hub_kwargs)
        trusted = hub_kwargs.pop("trust_remote_code", False)
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        embeddings: Any = lm.get_input_embeddings()
        (name,) = [name for name, module in lm.named_modules() if module is embeddings]
        weight = _read(source, f"{name}.weight", embeddings.weight.shape, **hub_kwargs)
        # Buffers that no file holds, such as a scale, are what the model's own initialisation makes them.
        for part in embeddings.modules():
            for key, buffer in part.named_buffers(recurse=False):
                part.register_buffer(key, torch.empty_like(buffer, device="cpu"), persistent=False)
        lm._init_weights(embeddings)
        embeddings.weight = nn.Parameter(weight, requires_grad=False)
    return lm.eval()


def _read(source: str | os.PathLike[str], name: str, shape: torch.Size, **hub_kwargs: Any) -> Tensor:
    """The one tensor of a base that is called `name`, be it that what stands before the last module is another."""
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    ending = ".".join(name.split(".")[-2:])
    if index is None:
        path = cached_file(source, SAFE_WEIGHTS_NAME, **hub_kwargs)
        with safe_open(path, "pt") as file:
            names = _ending(file.keys(), ending)
    else:
        with open(index, encoding="utf-8") as lines:
            files = json.load(lines)["weight_map"]
        names = _ending(files, ending)
        path = cached_file(source, files[names[0]], **hub_kwargs) if names else None
    if len(names) != 1:
        raise ValueError(f"one tensor must be called {ending}, got {len(names)}")
    with safe_open(path, "pt") as file:
        tensor = file.get_tensor(names[0])
    if tensor.shape != shape:
        raise ValueError(f"{names[0]} must have the shape {list(shape)}, got {list(tensor.shape)}")
    return tensor


def _ending(names: Any, ending: str) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{ending}")]
