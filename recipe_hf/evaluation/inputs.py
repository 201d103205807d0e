"""The inputs of a run, as plain values: what its figures depend on, and by which runs are told apart.

Every command that goes on from an earlier output records its inputs with the figures, and compares them first
(see [`~recipe_hf.evaluation.records`]). What a name stands for counts, not the name: rows, files and weights are told
by digests of their contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

try:
    from accelerate.utils import align_module_device
    from psutil import Process, virtual_memory
except ImportError as error:
    raise ImportError(
        "Evaluation needs accelerate and psutil: install them with pip install 'recipe-hf[evaluate]'."
    ) from error

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

#: Of the records of results. It is raised whenever the same inputs give other figures, or fields that older records
#: cannot do without.
FORMAT = 2
#: Of those that changed apart: since 3, comparisons keep the outcomes that evaluations keep, and ask in their batches.
_FORMATS = {"compare": 3, "ablate": 3}
_SAMPLED_VALUES = 64
#: Fields of a configuration that say where it came from.
_ORIGINS = ("_name_or_path", "_model_name_or_path", "architectures", "gguf_file", "transformers_version")


def run_settings(command: str, **inputs: Any) -> dict[str, Any]:
    """The settings of a run: two runs with the same are the same run.

    Args:
        command: The command of `recipe-hf` whose run it is.
        **inputs: All else that its figures depend on, as plain values.
    """
    return {"command": command, "format": _FORMATS.get(command, FORMAT), **inputs}


def model_settings(model: RecipeForCausalLM) -> dict[str, Any]:
    """What the results of a model depend on: weights, configuration and tokenizers, its own and those of its base."""
    config, lm = model.config, model.lm
    base = [_plain(lm.config), _plain(lm.generation_config), _tokenizer_state(model.tokenizer)]
    if config.prompt_position != "before_bos":
        base.append(config.prompt_position)
    encoder = [_plain(config.encoder_config), _tokenizer_state(model.retriever.tokenizer)]
    verifier = None
    if model.verifier is not None:
        names = ("num_verified_facts", "verifier_margin", "verifier_gap", "supersede_threshold")
        settings = [getattr(config, name) for name in names]
        verifier = [weights_digest(model.verifier), *settings]
    form = {} if config.prompt_form == "continuous" else {"prompt_form": config.prompt_form}
    return {
        "base_model": config.base_model_name_or_path,
        "weights": weights_digest(model),
        "verifier": verifier,
        "encoder_config": digest(encoder),
        "similarity_scale": config.scale,
        "similarity_temperature": config.similarity_temperature,
        "top_k_facts": config.top_k_facts,
        **form,
        "dtype": str(model.dtype).removeprefix("torch."),
        "base_weights": base_digest(lm),
        "base_config": digest(base),
        "device": model.device.type,
        "versions": versions("torch", "transformers"),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages."""
    return {name: version(name) for name in packages}


def machine() -> str:
    """The machine, in words: threads of PyTorch, processor and memory. Times are of one machine."""
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        lines = cpu_info.read_text().splitlines()
        models = [line.partition(":")[2] for line in lines if line.startswith("model name")]
        name = models[0].strip() if models else name
    gigabytes = virtual_memory().total / 2**30
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{torch.get_num_threads()} threads on {os.cpu_count()} cores of {name}{device}, {gigabytes:.0f} GiB"


def memory_of_this_process() -> int:
    """Bytes that belong to this process alone."""
    return int(Process().memory_full_info().uss)


# ---------------------------------------------------------------------- digests


def describe_rows(rows: Sequence[Any]) -> str:
    """How many rows there are, and the SHA-256 of what they say."""
    return f"{len(rows)}, SHA-256 {digest([row if isinstance(row, str) else repr(row) for row in rows])}"


def describe_file(path: Path) -> str:
    """Size and SHA-256 of a file.

    Raises:
        OSError: If it cannot be read.
    """
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
        return f"{file.tell()} bytes, SHA-256 {sha256.hexdigest()[:16]}"


def digest(texts: Sequence[str]) -> str:
    """SHA-256 of texts, in short."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of the weights of a module; of a RECIPE model, those that are trained."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        sha256.update(name.encode() + values.numpy().tobytes())
    return sha256.hexdigest()[:16]


@torch.no_grad()
def base_digest(lm: nn.Module) -> str:
    """SHA-256 of some values of each weight of the base, which tells its quantisations, fine-tunes and adapters apart.

    Some quantised layers keep their weights in buffers, and offloaded ones elsewhere.
    """
    sha256 = hashlib.sha256()
    for prefix, module in lm.named_modules():
        with align_module_device(module):
            for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                values = tensor.detach().flatten()[:: 1 + tensor.numel() // _SAMPLED_VALUES]
                sha256.update(f"{prefix}.{name}".encode() + values.float().cpu().numpy().tobytes())
    return sha256.hexdigest()[:16]


def _plain(config: Any) -> str:
    """A configuration of transformers without where it came from."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): kept(item) for name, item in value.items() if name not in _ORIGINS}
        return value

    return json.dumps(kept(config.to_diff_dict()), sort_keys=True, default=str)


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    for name in ("padding", "truncation"):  # As the last call had them.
        state.pop(name, None)
    return json.dumps([state, tokenizer.chat_template], sort_keys=True)
