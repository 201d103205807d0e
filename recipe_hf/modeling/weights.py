"""The retriever's weights: run without dropout, watched for changes, and named by a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .retriever import Retriever


@contextmanager
def deterministic(module: nn.Module) -> Iterator[None]:
    """Runs `module` without dropout and in its own precision, also in the midst of training."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        device = next(module.parameters()).device.type
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for part in training:
            part.training = True


def weight_versions(module: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a tensor of the module is written to or replaced, save through `.data`."""
    tensors = [*module.parameters(), *module.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def key_fingerprint(retriever: Retriever) -> str:
    """SHA-256 of the weights that make keys, rounded to float16: a 16-bit copy of the weights keeps its keys."""
    weights = retriever.state_dict()
    return _sha256({n: tensor for n, tensor in weights.items() if not n.startswith(("mlp_q.", "sentinel_embeds"))})


def retriever_fingerprint(retriever: Retriever) -> str:
    """SHA-256 of all its weights, rounded likewise: by it a checkpoint of prompts knows the retriever it goes with."""
    return _sha256(retriever.state_dict())


def _sha256(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()
