"""The knowledge base: facts, their keys, and exact search among them (paper eq. 9)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import CommitInfo
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor

from .download import download
from .facts import Fact, NewFact, PastFact, normalize_whitespace, parse_facts
from .key_index import KeyIndex
from .knowledge_files import read_file, read_manifest, write_files

FACTS_FILE = "knowledge.jsonl"
KEYS_FILE = "keys.safetensors"
OnConflict = Literal["replace", "keep", "error"]


@dataclass(frozen=True)
class Hits:
    """The best facts for each of `b` queries, read in one step.

    Attributes:
        ids: `[b, k]`, int64, best first; -1 where the knowledge base has fewer than `k` facts.
        scores: `[b, k]`, float32, dot products of query and key; -inf beside an id of -1.
        keys: `[b, k, dim]`, float32; 0 beside an id of -1.
        facts: `b` lists of `k` facts; None beside an id of -1.
    """

    ids: Tensor
    scores: Tensor
    keys: Tensor
    facts: list[list[Fact | None]]


class KnowledgeBase:
    """Facts with ids, filed under their keys, in memory. Any number of threads may use it at once.

    Every operation happens whole or not at all. All tensors given back are copies on the CPU.

    Args:
        dim: Width of the keys, `knowledge_dim`.

    Raises:
        ValueError: If `dim` is not a positive integer.
    """

    def __init__(self, dim: int) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim <= 0:
            raise ValueError(f"dim must be a positive integer, got {dim!r}.")
        self.dim = dim
        #: Names the encoder weights that made the keys; None if nobody said.
        self.encoder_fingerprint: str | None = None
        self._lock = threading.RLock()
        self._next_id = 0
        self._facts: dict[int, Fact] = {}
        self._past: list[PastFact] = []
        self._id_of: dict[tuple[str, str], int] = {}
        self._index = KeyIndex(dim)

    def add(
        self,
        facts: Iterable[Any],
        keys: Tensor,
        on_conflict: OnConflict = "replace",
        encoder_fingerprint: str | None = None,
    ) -> list[int]:
        """Adds facts, all or none, as if one after the other.

        Args:
            facts: What [`~recipe_hf.modeling.facts.parse_facts`] takes, or what it gave.
            keys: `[n, dim]`, the key `r_k` of each fact's statement.
            on_conflict: What to do with a fact whose prompt (or statement, for one without a prompt) is there already:
                `"replace"` moves the old fact to the history, `"keep"` leaves it and drops the new one, `"error"`
                refuses the whole batch.
            encoder_fingerprint: Names the weights that made `keys`. All keys must be of the same weights.

        Returns:
            For each fact its id, or with `"keep"` the id of the fact that stayed.

        Raises:
            ValueError: If an argument is not as described, or a prompt is there already under `"error"`.
        """
        if on_conflict not in ("replace", "keep", "error"):
            raise ValueError(f"on_conflict must be 'replace', 'keep' or 'error', got {on_conflict!r}.")
        new_facts = parse_facts(facts)
        vectors = self._check_vectors("keys", keys, len(new_facts))
        with self._lock:
            if self._facts and encoder_fingerprint not in (None, self.encoder_fingerprint):
                raise ValueError(
                    f"encoder_fingerprint must be {self.encoder_fingerprint!r}, that of the keys already there, "
                    f"got {encoder_fingerprint!r}: re-encode those first (replace_keys)."
                )
            added, ended, ids = self._plan(new_facts, on_conflict)
            self._next_id = max([self._next_id, *(i + 1 for i in ids)])
            self._index.add([fact.id for fact in added.values()], vectors[list(added)])
            self._end([fact for fact in ended if fact.id in self._facts])
            self._past += ended
            self._facts.update((fact.id, fact) for fact in added.values())
            self._id_of.update((fact.subject, fact.id) for fact in added.values())
            if encoder_fingerprint is not None:
                self.encoder_fingerprint = encoder_fingerprint
            return ids

    def _plan(
        self, new_facts: list[NewFact], on_conflict: OnConflict
    ) -> tuple[dict[int, Fact], list[PastFact], list[int]]:
        """The facts to add by their positions in the batch, the facts that end, and the ids to return."""
        now = _now()
        next_id = self._next_id
        position_of: dict[tuple[str, str], int] = {}
        added: dict[int, Fact] = {}
        ended: list[PastFact] = []
        ids: list[int] = []
        for position, new in enumerate(new_facts):
            subject = new.subject
            earlier = position_of.get(subject)
            current = self._facts.get(self._id_of.get(subject, -1)) if earlier is None else added[earlier]
            if current is not None:
                if on_conflict == "error":
                    raise ValueError(
                        f"facts[{position}] must have a new prompt under on_conflict='error', got {subject[1]!r}, "
                        f"which fact {current.id} has."
                    )
                if on_conflict == "keep":
                    ids.append(current.id)
                    continue
                ended.append(PastFact(**vars(current), ended_at=now, reason="replaced", replaced_by=next_id))
                if earlier is not None:
                    del added[earlier]
            added[position] = Fact(**vars(new), id=next_id, created_at=now)
            position_of[subject] = position
            ids.append(next_id)
            next_id += 1
        return added, ended, ids

    def remove(self, ids: int | Iterable[int]) -> None:
        """Removes facts, all or none; they stay in the history.

        Raises:
            KeyError: If an id is not that of a fact in the knowledge base.
        """
        with self._lock:
            facts = [self[i] for i in dict.fromkeys([ids] if isinstance(ids, int) else ids)]
            self._end(facts)
            now = _now()
            self._past += [PastFact(**vars(fact), ended_at=now, reason="removed") for fact in facts]

    def clear(self) -> None:
        """Removes all facts; they stay in the history, and their ids stay taken."""
        with self._lock:
            self.remove(list(self._facts))

    def _end(self, facts: Sequence[Fact]) -> None:
        self._index.remove([fact.id for fact in facts])
        for fact in facts:
            del self._facts[fact.id]
            del self._id_of[fact.subject]

    def replace_keys(self, keys: Tensor, encoder_fingerprint: str | None, ids: Sequence[int] | None = None) -> None:
        """Gives every fact a new key, after the weights that made the keys changed.

        Args:
            keys: `[len(self), dim]`, in the order of iteration.
            encoder_fingerprint: Names the weights that made `keys`.
            ids: Ids of the facts that were encoded, in order. Pass them where another thread may add or remove
                meanwhile: keys for any other facts than the present ones are then refused.

        Raises:
            ValueError: If `keys` are not as described, or `ids` are not those of the present facts.
        """
        with self._lock:
            if ids is not None and list(ids) != list(self._facts):
                raise ValueError("ids must be those of all present facts in order: facts came or went meanwhile.")
            self._index.keys[:] = self._check_vectors("keys", keys, len(self._facts))
            self.encoder_fingerprint = encoder_fingerprint

    def __len__(self) -> int:
        return len(self._facts)

    def __iter__(self) -> Iterator[Fact]:
        """The facts there are now, oldest first."""
        with self._lock:
            return iter(list(self._facts.values()))

    def __contains__(self, id: object) -> bool:
        return self.get(id) is not None

    def __getitem__(self, id: int) -> Fact:
        fact = self.get(id)
        if fact is None:
            raise KeyError(f"id must be that of a fact in the knowledge base, got {id!r}.")
        return fact

    def get(self, id: Any, default: Any = None) -> Any:
        """The fact with this id, or `default`."""
        return default if isinstance(id, bool) or not isinstance(id, int) else self._facts.get(id, default)

    def __repr__(self) -> str:
        return f"KnowledgeBase({len(self)} facts, dim={self.dim})"

    def history(self, prompt: str | None = None) -> list[PastFact]:
        """The facts that were replaced or removed, in the order they left; with `prompt`, those about it only.

        `prompt` may also be the statement of a fact without a prompt.
        """
        with self._lock:
            past = list(self._past)
        if prompt is None:
            return past
        return [fact for fact in past if fact.subject[1] == normalize_whitespace(prompt)]

    def keys(self, ids: Iterable[int]) -> Tensor:
        """Keys `[len(ids), dim]` of facts.

        Raises:
            KeyError: If an id is not that of a fact in the knowledge base.
        """
        with self._lock:
            return torch.from_numpy(self._index.get([self[i].id for i in ids]))

    def search(self, queries: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
        """Exact search for the `k` keys with the largest dot product with each query.

        Args:
            queries: `[b, dim]`, the representations `r_q`.
            k: How many.

        Returns:
            `ids` and `scores`, both `[b, k]`, as in [`Hits`]. Of equal best keys the oldest fact wins.

        Raises:
            ValueError: If `queries` or `k` are not as described.
        """
        hits = self.lookup(queries, k)
        return hits.ids, hits.scores

    def lookup(self, queries: Tensor, k: int = 1) -> Hits:
        """As `search`, with the facts and keys found, whatever other threads add or remove meanwhile."""
        if isinstance(k, bool) or not isinstance(k, int) or k <= 0:
            raise ValueError(f"k must be a positive integer, got {k!r}.")
        vectors = self._check_vectors("queries", queries)
        ids = np.full((len(vectors), k), -1, np.int64)
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        keys = np.zeros((len(vectors), k, self.dim), np.float32)
        with self._lock:
            if len(vectors) and self._facts:
                found_ids, found_scores = self._index.search(vectors, k, threads=torch.get_num_threads())
                found = found_ids.shape[1]
                ids[:, :found], scores[:, :found] = found_ids, found_scores
                keys[:, :found] = self._index.get(found_ids)
            facts = [[self._facts.get(i) for i in row] for row in ids.tolist()]
        return Hits(torch.from_numpy(ids), torch.from_numpy(scores), torch.from_numpy(keys), facts)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Saves facts, history and keys to a directory, in place of a knowledge base saved there before.

        Writes `knowledge.jsonl`, `keys.safetensors` and `manifest.json`. If it is interrupted at any moment, the
        directory loads as it was before or as it is after, never as a mixture.
        """
        with self._lock:
            records = [*self._facts.values(), *self._past]
            lines = "".join(json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in records)
            arrays: dict[str, NDArray] = {"ids": self._index.ids, "keys": self._index.keys}
            manifest = {
                "dim": self.dim,
                "next_id": self._next_id,
                "num_facts": len(self._facts),
                "encoder_fingerprint": self.encoder_fingerprint,
            }
            write_files(directory, {FACTS_FILE: lines.encode(), KEYS_FILE: save_arrays(arrays)}, manifest)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> KnowledgeBase:
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated, altered or of another format version.
        """
        manifest = read_manifest(directory)
        lines = read_file(directory, FACTS_FILE, manifest).split(b"\n")[:-1]
        content = read_file(directory, KEYS_FILE, manifest)
        try:
            return cls._restore(manifest, [json.loads(line) for line in lines], load_arrays(content))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{directory} holds no valid knowledge base: {error}") from error

    def push_to_hub(self, repo_id: str, **hub_kwargs: Any) -> CommitInfo:
        """Pushes facts and history, without a model, to a dataset repository that `datasets` can read.

        Args:
            repo_id: The repository, made if it does not exist.
            **hub_kwargs: `private`, `token`, `commit_message`, `revision` and `create_pr`, as in
                [`~recipe_hf.hub.push_checkpoint`].

        Raises:
            OSError: If the Hub refuses, or the connection breaks.
        """
        from ..hub import push_knowledge  # It fills the card, and so depends on this module.

        return push_knowledge(self, repo_id, **hub_kwargs)

    @classmethod
    def from_pretrained(cls, repo_id: str, *, repo_type: str = "dataset", **hub_kwargs: Any) -> KnowledgeBase:
        """Loads facts and history from the Hub. Give them to a model by `model.knowledge = ...`.

        Args:
            repo_id: The repository.
            repo_type: `"dataset"`, or `"model"` for the facts that a checkpoint there ships.
            **hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download`.

        Raises:
            OSError: If it cannot be found or read, or the connection breaks.
            ValueError: If a file is truncated, altered or of another format version.
        """
        return cls.load(download(repo_id, ["knowledge/*"], repo_type=repo_type, **hub_kwargs) / "knowledge")

    @classmethod
    def _restore(
        cls, manifest: dict[str, Any], records: list[dict[str, Any]], arrays: dict[str, NDArray]
    ) -> KnowledgeBase:
        base = cls(manifest["dim"])
        base.encoder_fingerprint = manifest["encoder_fingerprint"]
        base._next_id = manifest["next_id"]
        base._past = [PastFact(**record) for record in records if "reason" in record]
        facts = [Fact(**record) for record in records if "reason" not in record]
        base._facts = {fact.id: fact for fact in facts}
        base._id_of = {fact.subject: fact.id for fact in facts}
        taken = {record["id"] for record in records}
        if len(taken) < len(records) or len(base._id_of) < len(facts):
            raise ValueError("a fact is there twice.")
        if taken and not 0 <= min(taken) <= max(taken) < base._next_id:
            raise ValueError(f"ids must be from 0 to below {base._next_id}, got {min(taken)} to {max(taken)}.")
        ids = [fact.id for fact in facts]
        if ids != sorted(ids) or ids != arrays["ids"].tolist() or len(ids) != manifest["num_facts"]:
            raise ValueError(f"the {len(ids)} facts and the {len(arrays['ids'])} keys do not belong together.")
        base._index.add(ids, base._check_vectors("keys", torch.from_numpy(arrays["keys"]), len(ids)))
        return base

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = dict(vars(self), _facts=dict(self._facts), _past=list(self._past), _id_of=dict(self._id_of))
            state["_index"] = KeyIndex(self.dim)
            state["_index"].add(self._index.ids, self._index.keys)
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def _check_vectors(self, name: str, vectors: Tensor, count: int | None = None) -> NDArray[np.float32]:
        shape = f"[{'b' if count is None else count}, {self.dim}]"
        if not isinstance(vectors, Tensor) or not vectors.is_floating_point():
            got = vectors.dtype if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"{name} must be a floating point tensor of shape {shape}, got {got}.")
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or count not in (None, len(vectors)):
            raise ValueError(f"{name} must have the shape {shape}, got {list(vectors.shape)}.")
        array = vectors.detach().to("cpu", torch.float32).contiguous().numpy()
        bad = np.flatnonzero(~np.isfinite(array).all(1))
        if len(bad):
            raise ValueError(f"{name} must be finite, got NaN or infinity in row {bad[0]}.")
        return array


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
