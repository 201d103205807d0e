"""Copies of a knowledge base: saved and loaded, snapshots, exports, and on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..publishing import publisher
from . import timestamps
from .checks import check_namespace
from .contents import Contents
from .exchange import write_facts
from .facts import Fact, PastFact
from .files import user_path
from .local import LocalEngine
from .opening import Opening
from .search.live_index import FULL_SCAN_THRESHOLD
from .search.vectors import check_vectors
from .sqlite.store import SqliteStore

if TYPE_CHECKING:
    from typing import Self

    from huggingface_hub import CommitInfo
    from torch import Tensor

Encode = Callable[[list[str]], "Tensor"]


class Persistence(Opening):
    """The part of [`KnowledgeBase`] that copies it, saves it and publishes it."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Saves this namespace (facts, history and keys) to a directory, in place of what was saved there before.

        Writes `knowledge.jsonl`, `keys.safetensors` and `manifest.json`. If it is interrupted at any moment, the
        directory loads as it was before or as it is after, never as a mixture.
        """
        self.contents().write(user_path(directory))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Loads what `save` wrote, into memory; `copy_to` then puts it into a file.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated, altered or of another format version.
        """
        return cls._holding(Contents.read(user_path(directory)))

    def copy_to(self, path: str | os.PathLike[str], namespace: str | None = None) -> Self:
        """Copies everything, with the same ids, times and keys, to a file, and opens it.

        Args:
            path: The file, as in `KnowledgeBase.open`.
            namespace: The namespace in the file to copy this one to, alone. By default all namespaces are copied, each
                to the one of its name.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If such a namespace there has or had facts, or its keys are of another width.
        """
        everything = self._everything() if namespace is None else {namespace: self.contents()}
        name, contents = next(iter(everything.items()))
        check_namespace(name)
        engine = LocalEngine(SqliteStore.open(path, contents.dim, read_only=False), self.full_scan_threshold)
        try:
            engine.fill(everything, path)
        except BaseException:
            engine.close()
            raise
        return self._of(engine, name, self.full_scan_threshold)

    def snapshot(self, at: str | date | None = None, encode: Encode | None = None) -> Self:
        """A copy of this namespace in memory, as things are now or as they were.

        Whatever the moment, a search in it finds what is valid at the present time.

        Args:
            at: A `datetime` or a string in ISO 8601, UTC where it names no time zone; now by default.
            encode: Makes keys of statements (`model.encode_statements`), for facts of then whose keys are of other
                weights.

        Raises:
            ValueError: If `at` is not a time, or keys are needed and there is no `encode`.
        """
        contents = self.contents()
        if at is not None:
            contents = self._as_of(contents, timestamps.to_timestamp(at, "at"), encode)
        return self._holding(contents, self.full_scan_threshold)

    def excerpt(self, ids: Iterable[int]) -> Self:
        """A copy in memory of some of the facts, with their ids, times and keys; what is added gets the same ids."""
        with self._store.view():
            state, chosen = self._space.state, sorted(set(ids) & set(self._space.ids().tolist()))
            facts = [fact for id in chosen if (fact := self._space.get(id)) is not None]
            keys = self._space.keys(chosen)
            contents = Contents(self._store.dim, state.next_id, state.encoder_fingerprint, facts, keys)
        return self._holding(contents, self.full_scan_threshold)

    def _as_of(self, contents: Contents, time: str, encode: Encode | None) -> Contents:
        key_of = {fact.id: key for fact, key in zip(contents.facts, contents.keys, strict=True)} | contents.past_keys
        known = [fact for fact in [*contents.facts, *contents.past] if fact.created_at <= time]
        past = [fact for fact in contents.past if fact.ended_at <= time]
        gone = {fact.id for fact in past}
        facts = [_as_present(fact) for fact in sorted(known, key=lambda fact: fact.id) if fact.id not in gone]
        unknown = [fact for fact in facts if fact.id not in key_of]
        key_of |= {fact.id: key for fact, key in zip(unknown, self._encoded(unknown, encode), strict=True)}
        return Contents(
            contents.dim,
            max((fact.id + 1 for fact in known), default=0),
            contents.encoder_fingerprint,
            facts,
            np.stack([key_of[fact.id] for fact in facts]) if facts else contents.keys[:0],
            past,
            {fact.id: key_of[fact.id] for fact in past if fact.id in key_of},
        )

    def _encoded(self, facts: Sequence[Fact], encode: Encode | None) -> NDArray[np.float32]:
        """Keys `[n, dim]` of past facts that have none."""
        if not facts:
            return np.empty((0, self._store.dim or 0), np.float32)
        if encode is None:
            raise ValueError(
                f"encode must be given (model.encode_statements): the key of fact {facts[0].id} was made by other "
                f"weights, or is not known."
            )
        return check_vectors("encode(...)", encode([fact.statement for fact in facts]), self._store.dim, len(facts))

    def export(self, path: str | os.PathLike[str], *, include_history: bool = False) -> None:
        """Writes the facts, without keys, to a file that other programs read, in place of one that was there.

        `model.import_knowledge` reads it again.

        Args:
            path: A `.jsonl` or a `.parquet` file; the latter needs `recipe-hf[parquet]`.
            include_history: Whether to write past facts too, which have a `reason`.

        Raises:
            ImportError: If it is a Parquet file, and pyarrow is not installed.
            ValueError: If it is a file of another kind.
        """
        contents = self.contents()
        write_facts(path, [*contents.facts, *(contents.past if include_history else [])])

    def push_to_hub(self, repo_id: str, **hub_kwargs: Any) -> CommitInfo:
        """Pushes facts and history, without a model, to a dataset repository that `datasets` can read.

        Args:
            repo_id: The repository, made if it does not exist.
            **hub_kwargs: `private`, `token`, `commit_message`, `revision` and `create_pr`, as in
                [`~recipe_hf.hub.push_checkpoint`].

        Raises:
            OSError: If the Hub refuses, or the connection breaks.
        """
        return publisher().push_knowledge(self, repo_id, **hub_kwargs)

    @classmethod
    def from_pretrained(cls, repo_id: str, *, repo_type: str = "dataset", **hub_kwargs: Any) -> Self:
        """Loads facts and history from the Hub. Give them to a model by `model.knowledge = ...`.

        Args:
            repo_id: The repository.
            repo_type: `"dataset"`, or `"model"` for the facts that a checkpoint there ships.
            **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`.

        Raises:
            OSError: If it cannot be found or read, or the connection breaks.
            ValueError: If a file is truncated, altered or of another format version.
        """
        from ..download import download

        return cls.load(download(repo_id, ["knowledge/*"], repo_type=repo_type, **hub_kwargs) / "knowledge")

    # ------------------------------------------------------------------ copies

    def contents(self) -> Contents:
        """Everything that this namespace holds, as of one moment."""
        with self._store.view():
            return Contents.of(self._space)

    def _everything(self) -> dict[str, Contents]:
        """The contents of all namespaces, this one first, even if it is empty."""
        with self._store.view():
            names = dict.fromkeys([self._space.name, *self.namespaces()])
            return {name: self.namespace(name).contents() for name in names}

    @classmethod
    def _holding(cls, contents: Contents, full_scan_threshold: int = FULL_SCAN_THRESHOLD) -> Self:
        """A knowledge base in memory."""
        return cls._holding_all({"": contents}, full_scan_threshold)

    @classmethod
    def _holding_all(cls, everything: Mapping[str, Contents], full_scan_threshold: int) -> Self:
        """The first of several namespaces in memory."""
        name, contents = next(iter(everything.items()))
        engine = LocalEngine(SqliteStore.memory(contents.dim), full_scan_threshold)
        engine.fill(everything)
        return cls._of(engine, name, full_scan_threshold)

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[dict[str, Contents], int]]:
        """Copies, including pickled ones, live in memory, with all namespaces."""
        return type(self)._holding_all, (self._everything(), self.full_scan_threshold)

    def __deepcopy__(self, memo: object) -> Self:
        return self._holding_all(self._everything(), self.full_scan_threshold)


def _as_present(fact: Fact) -> Fact:
    if not isinstance(fact, PastFact):
        return fact
    return Fact(
        **{name: value for name, value in vars(fact).items() if name not in ("ended_at", "reason", "replaced_by")}
    )
