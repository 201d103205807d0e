"""Publishing on the Hugging Face Hub: checkpoints, and facts alone. A push is one commit, or nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard
from huggingface_hub.utils import filter_repo_objects

from .cards.facts_card import COLUMNS, FACTS_TABLE, facts_card
from .cards.model_card import model_card, published_card
from .download import connection
from .errors import can_be_hub_id
from .knowledge import KnowledgeBase
from .modeling.configuration import RecipeConfig
from .modeling.loading import ENCODER_DIRECTORY, FILES_OF_BASE, KNOWLEDGE_DIRECTORY, load_config, verify_checksums
from .modeling.parts import is_directory_name

_CARD = "README.md"
_CONFIG = "config.json"
# What a push deletes where it brings no such file; a repository's other files stay.
_REPLACED = [f"{KNOWLEDGE_DIRECTORY}/*", "model*.safetensors", "verifier.safetensors"]


def push_checkpoint(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    include_knowledge: bool = True,
    retriever: str | None = None,
    retriever_revision: str | None = None,
    tags: list[str] | None = None,
    commit_message: str = "Upload a RECIPE checkpoint",
    **hub_kwargs: Any,
) -> CommitInfo:
    """Pushes a checkpoint directory, its facts and its card. The directory stays as it is.

    The card is the directory's `README.md`, else the repository's, else a new one; what it says of the facts shipped
    is brought up to date. Files that the Hub has already are not uploaded again.

    Args:
        directory: The checkpoint. Files and directories whose names begin with a dot are left out.
        repo_id: The repository, made if it does not exist.
        include_knowledge: Whether to push the facts. If not, those in the repository are deleted.
        retriever: For a checkpoint of prompts alone, the Hub id that it names its retriever by there, where the
            directory names another directory.
        retriever_revision: Branch, tag or commit of that.
        tags: Further tags for the card.
        commit_message: Message of the commit.
        **hub_kwargs: `private` (whether a new repository is), `token`, `revision` (the branch to push to, made if it
            does not exist) and `create_pr` (whether to open a pull request instead).

    Returns:
        The commit.

    Raises:
        OSError: If the Hub refuses (in the words of `huggingface_hub`) or, as a `ConnectionError`, if the connection
            breaks.
        ValueError: If `directory` holds no checkpoint, or a file of it is damaged, or the card is not valid; if it
            would name a directory as its retriever.
    """
    directory = Path(directory)
    config = load_config(directory)
    named = _retriever_on_hub(directory, config, retriever, retriever_revision)
    verify_checksums(directory)
    names = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file())
    files: dict[str, Path | bytes] = {
        name.as_posix(): directory / name
        for name in names
        if name.parts[0] != KNOWLEDGE_DIRECTORY and not any(part.startswith(".") for part in name.parts)
    }
    if named:
        config.update(named)
        fields = json.loads((directory / _CONFIG).read_text(encoding="utf-8")) | named
        files[_CONFIG] = (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
    knowledge = None
    if include_knowledge and (directory / KNOWLEDGE_DIRECTORY).is_dir():
        knowledge = KnowledgeBase.load(directory / KNOWLEDGE_DIRECTORY)
        files |= _knowledge_files(knowledge)

    def card(repo_id: str, current: str | None) -> str:
        text = (directory / _CARD).read_text(encoding="utf-8") if _CARD in files else current
        text = published_card(str(model_card(config)) if text is None else text, repo_id, knowledge)
        if not tags:
            return text
        tagged: Any = ModelCard(text)
        tagged.data.tags = list(dict.fromkeys([*(tagged.data.tags or []), *tags]))
        return str(tagged)

    deleted = list(_REPLACED)
    if config.is_of_no_base:
        deleted += FILES_OF_BASE
    if config.retriever_name_or_path is not None:
        deleted.append(f"{ENCODER_DIRECTORY}/*")
    return _push(repo_id, "model", files, card, commit_message, deleted, **hub_kwargs)


def _retriever_on_hub(
    directory: Path, config: RecipeConfig, retriever: str | None, revision: str | None
) -> dict[str, Any]:
    """The fields of a config that name a retriever otherwise on the Hub than in `directory`."""
    name = config.retriever_name_or_path
    if revision is not None and retriever is None:
        raise ValueError(f"retriever_revision must be None without a retriever, got {revision!r}.")
    if name is None and retriever is not None:
        raise ValueError(f"retriever must be None for a checkpoint that has its own, got {retriever!r}.")
    if name is not None and retriever is None and (is_directory_name(name) or (directory / name).is_dir()):
        raise ValueError(f"retriever must be a Hub id for a checkpoint whose config names the directory {name!r}.")
    if retriever is not None and (os.path.isdir(retriever) or not can_be_hub_id(retriever)):
        raise ValueError(f"retriever must be a Hub id for a checkpoint that goes to the Hub, got {retriever!r}.")
    return {} if retriever is None else {"retriever_name_or_path": retriever, "retriever_revision": revision}


def create_repository(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Makes a model repository, if it does not exist, and checks that it can be written to.

    Args:
        repo_id: The repository.
        private: Whether a new one is.
        token: Token of the Hub; `None` takes the one saved.

    Returns:
        The repository's name with its owner's.

    Raises:
        OSError: As in [`push_checkpoint`].
        ValueError: If `repo_id` cannot be the name of a repository.
    """
    api = HfApi(token=token)
    with connection(f"The check of {repo_id!r}", "Nothing was uploaded"):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
    return repo_id


def push_knowledge(
    knowledge: KnowledgeBase, repo_id: str, *, commit_message: str = "Upload facts", **hub_kwargs: Any
) -> CommitInfo:
    """Pushes facts and their history, without a model, to a dataset repository that `datasets` can read.

    Args:
        knowledge: The facts.
        repo_id: The repository, made if it does not exist. A card that it has is kept.
        commit_message: Message of the commit.
        **hub_kwargs: As in [`push_checkpoint`].

    Returns:
        The commit.

    Raises:
        OSError: As in [`push_checkpoint`].
    """
    knowledge = knowledge.snapshot()  # Other threads may go on changing the original.
    rows = [{name: getattr(fact, name) for name in COLUMNS} for fact in knowledge]
    for row in rows:
        row["metadata"] = json.dumps(row["metadata"], ensure_ascii=False)
    table = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def card(repo_id: str, current: str | None) -> str:
        new: Any = facts_card(repo_id)
        if current is None:
            return str(new)
        kept: Any = DatasetCard(current)
        kept.data.configs, kept.data.dataset_info = new.data.configs, new.data.dataset_info
        return str(kept)

    files: dict[str, Path | bytes] = {FACTS_TABLE: table.encode(), **_knowledge_files(knowledge)}
    return _push(repo_id, "dataset", files, card, commit_message, **hub_kwargs)


def _knowledge_files(knowledge: KnowledgeBase) -> dict[str, Path | bytes]:
    with tempfile.TemporaryDirectory() as directory:
        knowledge.save(directory)
        return {f"{KNOWLEDGE_DIRECTORY}/{path.name}": path.read_bytes() for path in sorted(Path(directory).iterdir())}


def _push(
    repo_id: str,
    repo_type: str,
    files: dict[str, Path | bytes],
    card: Callable[[str, str | None], str],
    commit_message: str,
    deleted: Sequence[str] = _REPLACED,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Commits `files` and the card that `card` makes of the repository's name and its present card.

    What is there by the names in `deleted`, which may have wildcards, and not among `files`, is deleted.
    """
    api = HfApi(token=token)
    with connection(f"The upload to {repo_id!r}", "It is one commit, made whole or not at all"):
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
        current = None
        if _CARD in present:
            with tempfile.TemporaryDirectory() as directory:
                path = api.hf_hub_download(repo_id, _CARD, repo_type=repo_type, revision=revision, local_dir=directory)
                current = Path(path).read_text(encoding="utf-8")
        files = files | {_CARD: card(repo_id, current).encode()}
        replaced = [name for name in filter_repo_objects(present, allow_patterns=list(deleted)) if name not in files]
        return api.create_commit(
            repo_id,
            [
                *[CommitOperationDelete(name) for name in replaced],
                *[CommitOperationAdd(name, content) for name, content in files.items()],
            ],
            commit_message=commit_message,
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
        )
