"""The knowledge base: add, remove, restore and look up facts (paper eq. 9)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import timestamps
from .checks import as_id, check_positive, checked_ids, checked_where, is_unicode
from .facts import Fact, NewFact, PastFact, parse_facts
from .persistence import Encode, Persistence
from .search.hits import Hits
from .search.key_index import nothing
from .search.vectors import check_vectors

if TYPE_CHECKING:  # torch takes seconds to import: it is, where a tensor is made.
    from torch import Tensor

OnConflict = Literal["replace", "keep", "error"]
T = TypeVar("T")


class KnowledgeBase(Persistence):
    """Facts with ids, filed under their keys. Any number of threads may use it at once.

    Every operation happens whole or not at all. All tensors returned are copies on the CPU. The constructor
    makes one in memory; `KnowledgeBase.open` keeps one in a file.

    Args:
        dim: Width of the keys, `knowledge_dim`.
        full_scan_threshold: Up to this many facts, a query is compared with every key. Beyond it, codes of the keys
            are searched if `recipe-hf[scale]` is installed (see [`search.code_index`]).

    Raises:
        ValueError: If an argument is not a positive integer.
    """

    # ------------------------------------------------------------------ changing

    def add(
        self,
        facts: Iterable[object],
        keys: Tensor,
        on_conflict: OnConflict = "replace",
        encoder_fingerprint: str | None = None,
        supersedes: Sequence[Sequence[NewFact]] = (),
    ) -> list[int]:
        """Adds facts, all or none, as if one after the other.

        Args:
            facts: What [`~recipe_hf.knowledge.facts.parse_facts`] takes, or what it gave.
            keys: `[n, dim]`, the key `r_k` of each fact's statement.
            on_conflict: What to do with a fact whose prompt (or statement, if it has no prompt) is that of a present
                fact, valid at the same time: `"replace"` moves the old fact to the history, `"keep"` leaves it and
                drops the new one, `"error"` refuses the whole batch.
            encoder_fingerprint: Names the weights that made `keys`. All keys must be of the same weights.
            supersedes: For each fact, others that it replaces as well, if they are still present: facts held, or given
                before it.

        Returns:
            The id of each fact; with `"keep"`, that of the fact that stayed.

        Raises:
            OSError: If the disk is full or fails, or the store is read only.
            ValueError: If an argument is not as described, or a prompt is there already under `"error"`.
        """
        if on_conflict not in ("replace", "keep", "error"):
            raise ValueError(f"on_conflict must be 'replace', 'keep' or 'error', got {on_conflict!r}.")
        new_facts = parse_facts(facts)
        with self._change() as now:
            vectors = check_vectors("keys", keys, self.dim, len(new_facts))
            held = (old.id for of_one in supersedes for old in of_one if isinstance(old, Fact))
            self._space.prefetch(held, (fact.about for fact in new_facts))
            state = self._space.state
            if encoder_fingerprint not in (None, state.encoder_fingerprint):
                if state.size:
                    raise ValueError(
                        f"encoder_fingerprint must be {state.encoder_fingerprint!r}, that of the keys already there, "
                        f"got {encoder_fingerprint!r}: re-encode those first (replace_keys)."
                    )
                self._rekey([], vectors[:0], encoder_fingerprint, now)
            self._space.fix_dim(vectors.shape[1])
            ids = []
            for position, (new, key) in enumerate(zip(new_facts, vectors, strict=True)):
                ids.append(self._add_one(new, key, on_conflict, now, f"facts[{position}]"))
                for old in supersedes[position] if supersedes else ():
                    given = zip(ids, new_facts[:position], strict=False)
                    old_id = old.id if isinstance(old, Fact) else [id_ for id_, fact in given if fact == old][-1]
                    if old_id in self:
                        self._end([self[old_id]], now, "replaced", ids[-1])
            return ids

    def _add_one(self, new: NewFact, key: NDArray[np.float32], on_conflict: OnConflict, now: str, where: str) -> int:
        state = self._space.state
        fact = Fact(**vars(new), id=state.next_id, created_at=now)
        conflicts = self._space.conflicts(fact)
        if conflicts and on_conflict == "error":
            raise ValueError(
                f"{where} must have a new prompt under on_conflict='error', got {new.subject[1]!r}, "
                f"which fact {conflicts[0].id} has."
            )
        if conflicts and on_conflict == "keep":
            return conflicts[0].id
        self._space.insert(fact, key)
        self._space.state = replace(state, size=state.size + 1, next_id=fact.id + 1)
        self._end(conflicts, now, "replaced", fact.id)
        return fact.id

    def remove(self, ids: int | Iterable[int]) -> None:
        """Removes facts, all or none; they stay in the history. Integers of NumPy and torch are ids too.

        Raises:
            KeyError: If an id is not that of a fact in the knowledge base.
            OSError: If the disk is full or fails, or the store is read only.
            ValueError: If `ids` is neither an id nor several.
        """
        chosen = checked_ids(ids, or_one=True)
        with self._change() as now:
            self._space.prefetch(chosen)
            facts = {fact.id: fact for fact in (self[i] for i in chosen)}
            self._end(list(facts.values()), now, "removed")

    def clear(self) -> None:
        """Removes all facts; they stay in the history, and their ids stay taken."""
        with self._change() as now:
            self._end(self._space.present(), now, "removed")

    def _end(self, facts: Sequence[Fact], now: str, reason: str, replaced_by: int | None = None) -> None:
        if not facts:
            return
        state = self._space.state
        for departure, fact in enumerate(facts, state.num_past):
            self._space.end(fact, departure, now, reason, replaced_by)
        self._space.state = replace(state, size=state.size - len(facts), num_past=state.num_past + len(facts))

    def restore(self, id: int, encode: Encode | None = None) -> int:
        """Brings a past fact back, as a new one that says the same; what took its place goes to the history.

        Args:
            id: The past fact's id, as in `history`.
            encode: Makes keys of statements (`model.encode_statements`), in case the fact's own is unknown or of other
                weights.

        Returns:
            Its new id.

        Raises:
            KeyError: If `id` is not that of a past fact.
            ValueError: If the key is needed and there is no `encode`.
        """
        with self._change() as now:
            number = as_id(id)
            past = None if number is None else self._space.get(number)
            if not isinstance(past, PastFact):
                raise KeyError(f"id must be that of a past fact of the knowledge base, got {id!r}.")
            key = self._space.key(past.id)
            if key is None:
                (key,) = self._encoded([past], encode)
            return self._add_one(parse_facts([past])[0], key, "replace", now, "id")

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
        with self._change() as now:
            present = self._space.ids().tolist()
            if ids is not None and checked_ids(ids) != present:
                raise ValueError("ids must be those of all present facts in order: facts came or went meanwhile.")
            self._rekey(present, check_vectors("keys", keys, self.dim, len(present)), encoder_fingerprint, now)

    def _rekey(self, ids: list[int], keys: NDArray[np.float32], fingerprint: str | None, now: str) -> None:
        self._space.replace_keys(ids, keys)
        self._space.state = replace(self._space.state, encoder_fingerprint=fingerprint, rekeyed_at=now)

    @contextmanager
    def _change(self) -> Iterator[str]:
        """Context of one change; yields its time, which is later than that of the change before."""
        with self._space.change():
            now = timestamps.now(after=self._space.state.changed_at)
            yield now
            if self._space.state.next_id:
                self._space.state = replace(self._space.state, changed_at=now)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Context in which several changes are one: safe when it ends, or, if it raises, never made.

        Other threads wait meanwhile, so encode before it. Nothing may be searched for in it.
        """
        with self._store.change():
            yield

    # ------------------------------------------------------------------ reading

    @property
    def encoder_fingerprint(self) -> str | None:
        """Names the encoder weights that made the keys; None if unknown."""
        with self._store.view():
            return self._space.state.encoder_fingerprint

    def __len__(self) -> int:
        with self._store.view():
            return self._space.state.size

    def __iter__(self) -> Iterator[Fact]:
        """The facts there are now, oldest first."""
        with self._store.view():
            return iter(self._space.present())

    def __contains__(self, id: object) -> bool:
        return self.get(id) is not None

    def __getitem__(self, id: int) -> Fact:
        fact = self.get(id)
        if fact is None:
            raise KeyError(f"id must be that of a fact in the knowledge base, got {id!r}.")
        return fact

    def get(self, id: object, default: T | None = None) -> Fact | T | None:
        """The fact with this id, or `default`."""
        fact = self.find(id)
        return default if fact is None or isinstance(fact, PastFact) else fact

    def find(self, id: object) -> Fact | None:
        """The fact with this id, a [`PastFact`] where it left; None if there never was one."""
        number = as_id(id)
        if number is None:
            return None
        with self._store.view():
            return self._space.get(number)

    def ids(self) -> list[int]:
        """Ids of the facts there are now, ascending."""
        with self._store.view():
            ids: list[int] = self._space.ids().tolist()
            return ids

    def conflicts(self, facts: Iterable[NewFact]) -> list[list[Fact]]:
        """For each new fact those that `add` would find in its way: present, and about the same prompt."""
        new = list(facts)
        with self._store.view():
            self._space.prefetch(about=(fact.about for fact in new))
            return [self._space.conflicts(fact) for fact in new]

    def __repr__(self) -> str:
        if not self._store.is_open:
            return f"KnowledgeBase(closed, {str(self._store.path)!r})"
        where = "" if self._store.path is None else f", {str(self._store.path)!r}"
        space = f", namespace={self._space.name!r}" if self._space.name else ""
        return f"KnowledgeBase({len(self)} facts, dim={self.dim}{where}{space})"

    def history(self, prompt: str | None = None) -> list[PastFact]:
        """The facts that were replaced or removed, in the order they left; with `prompt`, those about it only.

        `prompt` may also be the statement of a fact without a prompt. Prompts are compared as
        [`~recipe_hf.knowledge.facts.comparable`] says.

        Raises:
            ValueError: If `prompt` is not a string.
        """
        if prompt is not None and not is_unicode(prompt):
            raise ValueError(f"prompt must be a string, got {prompt!r}.")
        with self._store.view():
            return self._space.past(prompt)

    def keys(self, ids: Iterable[int]) -> Tensor:
        """Keys `[len(ids), dim]` of facts.

        Raises:
            KeyError: If an id is not that of a fact in the knowledge base.
            ValueError: If `ids` are not several ids.
        """
        import torch

        chosen = checked_ids(ids)
        with self._store.view():
            self._space.prefetch(chosen, with_keys=True)
            return torch.from_numpy(self._space.keys(self[i].id for i in chosen))

    def search(self, queries: Tensor, k: int = 1, where: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """The `k` keys with the largest dot product with each query, of facts that are valid now.

        Exact up to `full_scan_threshold` facts, or half as many once there have been more.

        Args:
            queries: `[b, dim]`, the representations `r_q`.
            k: How many.
            where: Values that the metadata of a fact must have, all of them, for it to be found.

        Returns:
            `ids` and `scores`, both `[b, k]`, as in [`Hits`]. Of equal best keys the oldest fact wins.

        Raises:
            ValueError: If an argument is not as described.
        """
        hits = self.lookup(queries, k, where)
        return hits.ids, hits.scores

    def lookup(
        self, queries: Tensor, k: int = 1, where: Mapping[str, Any] | None = None, *, valid_only: bool = True
    ) -> Hits:
        """Like `search`, but also returns the facts and keys found, all read in one step.

        With `valid_only=False`, facts that are not valid yet, or no longer, are found too.
        """
        import torch

        check_positive("k", k)
        with self._store.view():
            vectors = check_vectors("queries", queries, self.dim)
            ids, scores, keys = nothing(len(vectors), k, vectors.shape[1])
            where = None if where is None else checked_where(where)
            if len(vectors) and len(self):
                found = self._index.search(vectors, k, torch.get_num_threads(), where, valid_only)
                n = found[0].shape[1]
                ids[:, :n], scores[:, :n], keys[:, :n] = found
            facts_of = {id: self._space.get(id) for id in set(ids.flatten().tolist())}
            facts = [[facts_of[id] for id in row] for row in ids.tolist()]
        return Hits(torch.from_numpy(ids), torch.from_numpy(scores), torch.from_numpy(keys), facts)
