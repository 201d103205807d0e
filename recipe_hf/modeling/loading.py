"""The files of a RECIPE checkpoint, and the encoder that a new one starts from."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from huggingface_hub.errors import RepositoryNotFoundError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..download import download
from .configuration import RecipeConfig
from .frozen_base import loading, split_gguf

#: Arguments that say how a part is brought from the Hub.
HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download")
#: Arguments that are fields of a config.
CONFIG_ARGUMENTS = set(inspect.signature(RecipeConfig.__init__).parameters) - {"self", "kwargs"}
_ARGUMENT = "pretrained_model_name_or_path"
ENCODER_DIRECTORY = "encoder"
KNOWLEDGE_DIRECTORY = "knowledge"
CHECKSUMS_FILE = "checksums.json"
#: What in a checkpoint is of its base.
FILES_OF_BASE = ("generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
_REMOTE_CODE_FILE = "modeling_recipe.py"
_REMOTE_CODE = '''"""The code of this checkpoint is the library recipe-hf."""

try:
    from recipe_hf import RecipeConfig, RecipeForCausalLM
except ImportError as error:
    raise ImportError("This checkpoint needs the library recipe-hf: pip install recipe-hf") from error

__all__ = ["RecipeConfig", "RecipeForCausalLM"]
'''
#: What `config.json` says to those who load a checkpoint without having imported recipe_hf.
AUTO_MAP = {"AutoConfig": "modeling_recipe.RecipeConfig", "AutoModelForCausalLM": "modeling_recipe.RecipeForCausalLM"}
_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]


def checkpoint_directory(
    name_or_path: str | os.PathLike[str], subfolder: str = "", argument: str = _ARGUMENT, **hub_kwargs: Any
) -> Path:
    """The directory of a checkpoint, downloaded from the Hub unless it is one already.

    Errors name it as `argument`.

    Raises:
        OSError: If it is neither, or cannot be read (see [`~recipe_hf.download.download`]).
    """
    directory = Path(name_or_path)
    if not directory.is_dir():
        try:
            directory = download(str(name_or_path), _FILES, **hub_kwargs)
        except RepositoryNotFoundError as error:
            error.append_to_message(f"\nNor is there a directory {str(name_or_path)!r}.")
            raise
        except (FileNotFoundError, ValueError) as error:
            raise FileNotFoundError(
                f"{argument} must be a directory or a Hub id, got {str(name_or_path)!r}: {error}"
            ) from error
    directory = directory / subfolder
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(f"{directory} holds no checkpoint: config.json is missing.")
    return directory


def load_config(name_or_path: str | os.PathLike[str], argument: str = _ARGUMENT, **fields: Any) -> RecipeConfig:
    """Loads the config of a checkpoint, which errors name as `argument`.

    Raises:
        ValueError: If it is that of another model.
    """
    model_type = RecipeConfig.get_config_dict(name_or_path)[0].get("model_type")
    if model_type != RecipeConfig.model_type:
        raise ValueError(
            f"{argument} must be a RECIPE checkpoint, got one of model type {model_type!r}. "
            f"A base LLM becomes one by from_base_pretrained."
        )
    return RecipeConfig.from_pretrained(name_or_path, **fields)


def load_encoder(
    encoder: str | os.PathLike[str] | nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a text encoder and its tokenizer.

    Args:
        encoder: Hub id, directory, path of a GGUF file, a transformers model (which may be wrapped by PEFT), or a
            `SentenceTransformer`.
        tokenizer: The encoder's tokenizer, by default that of its name.
        **kwargs: Passed to `from_pretrained` of both.

    Raises:
        OSError: If it cannot be found.
        TypeError: If it is neither a path nor a model.
        ValueError: If it is an encoder-decoder, or its tokenizer is not known.
    """
    sentence_transformers = sys.modules.get("sentence_transformers")
    source = ""
    gguf: dict[str, str] = {}
    model: Any = encoder
    if isinstance(encoder, (str, os.PathLike)):
        source, gguf = split_gguf(encoder)
        with loading(f"encoder={str(encoder)!r} cannot be loaded"):
            model = AutoModel.from_pretrained(source, **gguf, **kwargs)
    elif sentence_transformers is not None and isinstance(encoder, sentence_transformers.SentenceTransformer):
        model, tokenizer = model[0].auto_model, tokenizer or model.tokenizer
    elif isinstance(encoder, nn.Module) and hasattr(encoder, "config"):
        source = model.config.name_or_path
    else:
        raise TypeError(
            f"encoder must be a Hub id, a directory, a GGUF file, a transformers model or a SentenceTransformer, "
            f"got {type(encoder).__name__}."
        )
    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    if model.config.is_encoder_decoder:
        raise ValueError(f"encoder must be an encoder, got the encoder-decoder {model.config.model_type!r}.")
    if tokenizer is None and not source:
        raise ValueError("encoder_tokenizer must be given with a loaded encoder whose name says nothing of it.")
    return model, tokenizer or AutoTokenizer.from_pretrained(source, **gguf, **kwargs)


def prepare_encoder_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Makes a tokenizer give whole texts, and one that threads may share."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # The first call drops the truncation and padding set in tokenizer.json; later calls change nothing.
    tokenizer("", padding=False, truncation=False)
    return tokenizer


def copy_encoder_weights(encoder: PreTrainedModel, target: PreTrainedModel, needs_pooler: bool) -> None:
    """Copies the weights of a loaded encoder into `target`, built from its config.

    Raises:
        ValueError: If it is another model than `AutoModel` makes of its config, or lacks a pooler that is needed.
    """
    result = target.load_state_dict(encoder.base_model.state_dict(), strict=False)
    differing = result.unexpected_keys + [
        name for name in result.missing_keys if needs_pooler or not name.startswith("pooler.")
    ]
    if differing:
        raise ValueError(
            f"encoder must be the model that AutoModel makes of its config, {type(target).__name__}, got "
            f"{type(encoder).__name__}, whose weights differ: {', '.join(differing[:3])}."
        )


def write_remote_code(directory: Path) -> None:
    """Writes the module that `trust_remote_code` loads: it says what to install."""
    (directory / _REMOTE_CODE_FILE).write_text(_REMOTE_CODE)


def write_checksums(directory: Path) -> None:
    """Writes the SHA-256 sums of the weights in `directory` beside them."""
    sums = {path.name: _sha256(path) for path in sorted(directory.glob("*.safetensors"))}
    (directory / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n")


def verify_checksums(directory: Path) -> None:
    """Checks the weights in `directory` against the sums written with them, if there are any.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is not as it was written.
    """
    path = directory / CHECKSUMS_FILE
    if not path.is_file():
        return
    try:
        sums = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    for name, expected in sums.items():
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing from the checkpoint.")
        if _sha256(directory / name) != expected:
            raise ValueError(
                f"{directory / name} is damaged, truncated or altered: its SHA-256 sum is not the one in "
                f"{CHECKSUMS_FILE}. Bring the checkpoint again."
            )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
