"""Checkpoints in parts: a retriever that serves every base, and prompt encoders of one base, which name it."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import can_be_hub_id
from .configuration import OF_ONE_BASE, RETRIEVER_NAME, RecipeConfig
from .loading import CONFIG_ARGUMENTS, checkpoint_directory, load_config
from .weights import retriever_fingerprint

#: What a checkpoint may hold of a model: all but its base, its retriever with the verifier, or its prompt encoders.
PARTS = ("all", "retriever", "prompts")
# Weights that are never in `model.safetensors`, and those that a part leaves out.
_KEPT_APART = ("lm.", "verifier.")
_LEFT_OUT = {"all": (), "retriever": ("prompt_encoder.", "answer_prompt_encoder."), "prompts": ("retriever.",)}


def check_parts(parts: str) -> None:
    """Checks the name of a part.

    Raises:
        ValueError: If there is none of this name.
    """
    if parts not in PARTS:
        raise ValueError(f"parts must be {', '.join(map(repr, PARTS[:-1]))} or {PARTS[-1]!r}, got {parts!r}.")


def weights_of(weights: Mapping[str, Tensor], parts: str) -> dict[str, Tensor]:
    """Those of a model's weights that a checkpoint of this part holds."""
    left_out = (*_KEPT_APART, *_LEFT_OUT[parts])
    return {name: tensor for name, tensor in weights.items() if not name.startswith(left_out)}


def config_of(config: RecipeConfig, parts: str, named: Mapping[str, Any]) -> RecipeConfig:
    """The config of a checkpoint of this part. Only that of prompt encoders names a retriever, as `named` says."""
    written = copy.deepcopy(config)
    written.update(dict(named) if parts == "prompts" else dict.fromkeys(RETRIEVER_NAME))
    if parts == "retriever":
        of_none = RecipeConfig()
        written.update({name: getattr(of_none, name) for name in OF_ONE_BASE} | {"prompt_form": "text"})
    return written


def is_directory_name(name: str) -> bool:
    """Whether a config names a directory rather than a repository."""
    return name.startswith(".") or os.path.isabs(name)


def name_beside(retriever: str | os.PathLike[str], directory: Path) -> str:
    """How a config in `directory` names a retriever: a directory by the way to it from there, all else as it is.

    Raises:
        ValueError: If it is that directory itself.
    """
    if not os.path.isdir(retriever):
        return str(retriever)
    way = Path(os.path.relpath(os.path.realpath(retriever), os.path.realpath(directory))).as_posix()
    if way == ".":
        raise ValueError(
            f"save_directory must not be the retriever's own for parts='prompts', got {str(directory)!r}."
        )
    return way if way.startswith("../") else f"./{way}"


def find_beside(name: str, directory: Path) -> str:
    """Where the retriever is that a config in `directory` names: a directory beside it, or a Hub id as it is.

    Raises:
        FileNotFoundError: If it is a directory that is not there.
    """
    beside = Path(os.path.normpath(directory.resolve() / name))
    if beside.is_dir():
        return str(beside)
    if is_directory_name(name):
        raise FileNotFoundError(f"there is no directory {str(beside)!r}")
    return name


def load_retriever(
    model_class: Any,
    retriever: str | os.PathLike[str],
    revision: str | None = None,
    hub: Mapping[str, Any] | None = None,
    verifier: bool = True,
    **fields: Any,
) -> Any:
    """The model of a checkpoint without its base and prompt encoders, under `fields` that say how facts are found.

    Args:
        model_class: Its class.
        retriever: Directory or Hub id of the checkpoint.
        revision: Its revision on the Hub.
        hub: How it is brought from there.
        verifier: Whether to load its verifier.
        **fields: Fields of a config; those that are of one base are left out.

    Raises:
        OSError: If it cannot be found.
        TypeError: If `retriever` is no path.
        ValueError: If it is damaged, is no RECIPE checkpoint, or has no retriever of its own.
    """
    if not isinstance(retriever, (str, os.PathLike)):
        raise TypeError(f"retriever must be a directory or a Hub id, got {type(retriever).__name__}.")
    directory = checkpoint_directory(retriever, argument="retriever", revision=revision, **(hub or {}))
    named = load_config(directory, argument="retriever").retriever_name_or_path
    if named is not None:
        raise ValueError(
            f"retriever must be a checkpoint that has one of its own, got {str(retriever)!r}, whose config names "
            f"{named!r}: give that."
        )
    chosen = {name: fields[name] for name in fields.keys() - OF_ONE_BASE}
    return model_class.from_pretrained(directory, base_model=False, verifier=verifier, **chosen, prompt_form="text")


def named_retriever(
    model_class: Any,
    directory: Path,
    config: RecipeConfig,
    retriever: str | os.PathLike[str] | None,
    hub: Mapping[str, Any],
    **options: Any,
) -> Any:
    """The model whose retriever a checkpoint names, after which `config` finds facts; None if it has its own.

    Args:
        model_class: Its class.
        directory: The checkpoint.
        config: Its config.
        retriever: The retriever that was given instead, if any.
        hub: How a checkpoint is brought from the Hub.
        **options: Further arguments of [`load_retriever`].

    Raises:
        OSError: If the retriever cannot be found.
        ValueError: If its weights are not those recorded, or one is given where none is named.
    """
    name, expected = config.retriever_name_or_path, config.retriever_fingerprint
    if name is None:
        if retriever is not None:
            raise ValueError(f"retriever must be None for a checkpoint that has its own, got {str(retriever)!r}.")
        return None
    own = load_config(directory)
    # What an Auto class is given arrives inside the config.
    given = {field: getattr(config, field) for field in CONFIG_ARGUMENTS}
    given = {field: value for field, value in given.items() if value != getattr(own, field)} | options
    revision = given.get("retriever_revision") if retriever else config.retriever_revision
    try:
        source = str(retriever or find_beside(name, directory))
        trained = load_retriever(model_class, source, revision, hub, **given)
    except OSError as error:
        if retriever:
            raise
        raise OSError(
            f"The retriever of this checkpoint, retriever_name_or_path={name!r}, could not be loaded ({error}). "
            f"Give it as retriever=: the directory or Hub id of a checkpoint with the same weights."
        ) from error
    found = retriever_fingerprint(trained.retriever)
    if found != expected:
        raise ValueError(
            f"retriever must be the one that this checkpoint's prompts go with, {name!r} with weights of SHA-256 "
            f"{expected}, got {source!r}{f' at revision {revision!r}' if revision else ''}, whose weights are others, "
            f"of SHA-256 {found}."
        )
    found_by = copy.deepcopy(trained.config)  # What becomes of the config must not reach the loaded encoder's own.
    config.update({field: getattr(found_by, field) for field in CONFIG_ARGUMENTS - OF_ONE_BASE})
    if is_directory_name(name):
        config.retriever_name_or_path = source
    return trained


def name_of_retriever(
    model: Any,
    directory: Path,
    retriever: str | os.PathLike[str] | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """The fields of a config by which a checkpoint of prompt encoders in `directory` names the retriever they go with.

    Args:
        model: The model to be saved.
        directory: Where to.
        retriever: The directory or Hub id of a checkpoint that holds the model's retriever; by default the one it
            was taken from.
        revision: Its revision on the Hub; by default the one that the model's was taken from.

    Raises:
        FileNotFoundError: If `retriever` is neither a directory nor can be a Hub id.
        ValueError: If the model has no prompt encoder, or no retriever is named, or one with other weights.
    """
    config, fingerprint = model.config, retriever_fingerprint(model.retriever)
    if model.prompt_encoder is None:
        raise ValueError("parts must be 'all' or 'retriever' for a model whose prompt_form is 'text', got 'prompts'.")
    expected, name = fingerprint, None if retriever is None else str(retriever)
    if name is None:
        name, revision = config.retriever_name_or_path, revision or config.retriever_revision
        expected = config.retriever_fingerprint or fingerprint
    elif (name, fingerprint) == (config.retriever_name_or_path, config.retriever_fingerprint):
        revision = revision or config.retriever_revision
    if name is None:
        raise ValueError("retriever must be the directory or Hub id of a checkpoint with this model's, got None.")
    if os.path.isdir(name):
        expected, revision = retriever_fingerprint(load_retriever(type(model), name).retriever), None
    elif is_directory_name(name) or not can_be_hub_id(name):
        raise FileNotFoundError(f"retriever must be a directory that exists, or a Hub id, got {name!r}.")
    if expected != fingerprint:
        raise ValueError(
            f"retriever must be a checkpoint with the weights of this model's, got {name!r}, whose weights are "
            f"others: save the model's with parts='retriever', and name that."
        )
    return dict(zip(RETRIEVER_NAME, (name_beside(name, directory), revision, fingerprint), strict=True))
