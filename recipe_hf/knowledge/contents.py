"""Everything a knowledge base holds, in memory: for copies, and for saving to a directory and loading it again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from .engine import Space
from .facts import Fact, PastFact
from .files import read_file, read_manifest, write_files
from .search.vectors import check_array

FACTS_FILE = "knowledge.jsonl"
KEYS_FILE = "keys.safetensors"


@dataclass
class Contents:
    """The facts of a knowledge base, present and past, and their keys.

    Attributes:
        dim: Width of the keys; None before there is one.
        next_id: The next fact's id.
        encoder_fingerprint: Names the weights that made the keys.
        facts: The present facts, oldest first.
        keys: Their keys, `[n, dim]`.
        past: The facts that left, in order.
        past_keys: The keys of those whose key is known, by id.
    """

    dim: int | None
    next_id: int
    encoder_fingerprint: str | None
    facts: list[Fact] = field(default_factory=list)
    keys: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    past: list[PastFact] = field(default_factory=list)
    past_keys: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def of(cls, space: Space) -> Contents:
        """The contents of a namespace."""
        state, facts, past = space.state, space.present(), space.past()
        past_keys = {fact.id: key for fact in past if (key := space.key(fact.id)) is not None}
        keys = space.keys(fact.id for fact in facts)
        return cls(space.store.dim, state.next_id, state.encoder_fingerprint, facts, keys, past, past_keys)

    def fill(self, space: Space) -> None:
        """Puts everything into an empty namespace."""
        if self.dim is not None:
            space.fix_dim(self.dim)
        for fact, key in zip(self.facts, self.keys, strict=True):
            space.insert(fact, key)
        for departure, past in enumerate(self.past):
            space.insert(past, self.past_keys.get(past.id), departure)
        times = [fact.created_at for fact in self.facts] + [past.ended_at for past in self.past]
        space.state = replace(
            space.state,
            size=len(self.facts),
            next_id=self.next_id,
            num_past=len(self.past),
            encoder_fingerprint=self.encoder_fingerprint,
            changed_at=max(times, default=""),
        )

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Writes the files in place of those that were there, all or none."""
        records = [*self.facts, *self.past]
        lines = "".join(json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in records)
        arrays: dict[str, NDArray[Any]] = {
            "ids": np.array([fact.id for fact in self.facts], np.int64),
            "keys": self.keys,
        }
        if self.past_keys:
            arrays["past_ids"] = np.array(list(self.past_keys), np.int64)
            arrays["past_keys"] = np.stack(list(self.past_keys.values()))
        manifest = {
            "dim": self.dim,
            "next_id": self.next_id,
            "num_facts": len(self.facts),
            "encoder_fingerprint": self.encoder_fingerprint,
        }
        write_files(directory, {FACTS_FILE: lines.encode(), KEYS_FILE: save_arrays(arrays)}, manifest)

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Contents:
        """Reads what `write` wrote.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is truncated, altered or of another format version.
        """
        manifest = read_manifest(directory)
        lines = read_file(directory, FACTS_FILE, manifest).split(b"\n")[:-1]
        content = read_file(directory, KEYS_FILE, manifest)
        try:
            return cls._checked(manifest, [json.loads(line) for line in lines], load_arrays(content))
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"{directory} holds no valid knowledge base: {error}") from error

    @classmethod
    def _checked(
        cls, manifest: dict[str, Any], records: list[dict[str, Any]], arrays: dict[str, NDArray[Any]]
    ) -> Contents:
        facts = [Fact(**record) for record in records if "reason" not in record]
        past = [PastFact(**record) for record in records if "reason" in record]
        ids, taken, next_id = [fact.id for fact in facts], {record["id"] for record in records}, manifest["next_id"]
        # Older versions held two facts about one prompt where it was spelled in two ways.
        by_prompt = groupby(sorted(facts, key=lambda fact: fact.about), key=lambda fact: fact.about)
        pairs = (pair for _, same in by_prompt for pair in combinations(same, 2))
        if len(taken) < len(records) or any(fact.conflicts_with(other) for fact, other in pairs):
            raise ValueError("a fact is there twice.")
        if taken and not 0 <= min(taken) <= max(taken) < next_id:
            raise ValueError(f"ids must be from 0 to below {next_id}, got {min(taken)} to {max(taken)}.")
        if ids != sorted(ids) or ids != arrays["ids"].tolist() or len(ids) != manifest["num_facts"]:
            raise ValueError(f"the {len(ids)} facts and the {len(arrays['ids'])} keys do not belong together.")
        past_ids = arrays.get("past_ids", np.empty(0, np.int64)).tolist()
        if not set(past_ids) <= taken - set(ids):
            raise ValueError("past_ids must be those of past facts.")
        dim = manifest["dim"]
        keys = np.empty((0, 0), np.float32)
        if ids or dim is not None:  # Nobody said yet how wide the keys are to be.
            keys = check_array("keys", arrays["keys"], dim, len(ids))
        past_keys: Any = []
        if past_ids:
            past_keys = check_array("past_keys", arrays["past_keys"], dim, len(past_ids))
        fingerprint = manifest["encoder_fingerprint"]
        return cls(dim, next_id, fingerprint, facts, keys, past, dict(zip(past_ids, past_keys, strict=True)))
