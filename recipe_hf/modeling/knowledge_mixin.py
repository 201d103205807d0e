"""`add_knowledge`, `remove_knowledge` and so on: facts, with keys that follow the weights."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ..knowledge import KnowledgeBase
from ..knowledge.exchange import read_facts_by_place
from ..knowledge.facts import NewFact, parse_facts
from .legibility import check_words
from .retrieval_mixin import RetrievalMixin
from .superseding import NUM_READ, EncodedFacts, NewFacts, find_superseded

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger(__name__)

#: What to do with a fact that another one is in the way of.
OnConflict = Literal["replace", "keep", "error", "supersede", "report"]


class KnowledgeMixin(RetrievalMixin):
    """The part of [`RecipeForCausalLM`] that takes facts in and lets them go: it needs the retriever, not the base."""

    def open_knowledge(
        self, path: str | os.PathLike[str], *, read_only: bool = False, namespace: str = ""
    ) -> KnowledgeBase:
        """Takes the facts from a file from now on, made if it is not there, and keeps every change in it.

        The facts that the model had are let go: `model.knowledge.copy_to(path)` would take them along.

        Args:
            path: The file, as in [`KnowledgeBase.open`].
            read_only: Whether to leave writing to another process.
            namespace: Which namespace of it.

        Returns:
            The knowledge base, which is `model.knowledge` too.

        Raises:
            BlockingIOError: If it is open for writing already; the message says where.
            OSError: If the file cannot be read or written.
            ValueError: If the file is damaged, or its keys are of another width.
        """
        self.knowledge = KnowledgeBase.open(path, self.config.knowledge_dim, read_only=read_only, namespace=namespace)
        return self.knowledge

    def add_knowledge(
        self,
        facts: Iterable[Any],
        on_conflict: OnConflict = "replace",
        truncation: bool = False,
        batch_size: int = 64,
        namespace: str | None = None,
    ) -> list[int]:
        """Adds facts, all or none. Weights do not change: an edit is one encoder pass.

        Args:
            facts: A list of statements, `(prompt, answer)` pairs, or dicts with `statement`, or `prompt` and `answer`,
                and optionally `metadata`, `valid_from` and `valid_until`; or a table with such columns (see
                [`~recipe_hf.knowledge.facts.parse_facts`]).
            on_conflict: What to do with a fact whose prompt is there already: `"replace"` it, `"keep"` it, or
                `"error"`. `"supersede"` replaces it too, and those whose place the new fact takes in other words ("Ann
                Lee runs Acme" that of "The CEO of Acme is Bo Roe"), as the verifier reads them; `"report"` keeps these
                and logs a warning that names them.
            truncation: Whether a statement longer than the encoder takes is cut rather than refused.
            batch_size: How many statements to encode at once.
            namespace: Whose facts they are (see [`KnowledgeBase.namespace`]); those of `knowledge` by default.

        Returns:
            The id of each fact.

        Raises:
            ValueError: If an argument is not as described, or an item is not a fact, is too long, consists of words
                that the encoder does not know, or is there already under `on_conflict="error"`; if the model has no
                verifier that tells what supersedes.
        """
        parsed = {f"facts[{position}]": fact for position, fact in enumerate(parse_facts(facts))}
        return self._add(parsed, on_conflict, truncation, batch_size, namespace=namespace)

    def _add(self, facts: dict[str, NewFact], *args: Any, namespace: str | None = None, **kwargs: Any) -> list[int]:
        """As `add_knowledge`, of facts by what to call them in an error."""
        knowledge = self._knowledge_of(namespace)
        encoded = self.encode_facts(facts, *args, knowledge=knowledge, **kwargs)
        ids = encoded.add_to(knowledge)
        for newer, older in zip(encoded.facts, encoded.reported, strict=True):
            for old in older:
                logger.warning(f"{newer.statement!r} answers what {old.statement!r} does: both are kept.")
        return ids

    @torch.inference_mode(False)
    def encode_facts(
        self,
        facts: dict[str, NewFact],
        on_conflict: OnConflict = "replace",
        truncation: bool = False,
        batch_size: int = 64,
        *,
        knowledge: KnowledgeBase,
    ) -> EncodedFacts:
        """Does all of `add_knowledge` that comes before the change: checks, keys, and what would be superseded.

        Args:
            facts: Checked facts, by what to call each in an error.
            on_conflict: As in `add_knowledge`.
            truncation: As in `add_knowledge`.
            batch_size: As in `add_knowledge`.
            knowledge: What they are to be added to.

        Raises:
            ValueError: As in `add_knowledge`.
        """
        if on_conflict not in get_args(OnConflict):
            *allowed, last = map(repr, get_args(OnConflict))
            raise ValueError(f"on_conflict must be {', '.join(allowed)} or {last}, got {on_conflict!r}.")
        if on_conflict in ("supersede", "report") and not self.tells_what_supersedes:
            raise ValueError(f"on_conflict={on_conflict!r} needs a checkpoint with a verifier trained on updates.")
        if not truncation:
            self._check_lengths(facts)
        check_words(self.retriever, facts)
        fingerprint = self._refresh(knowledge).fingerprint
        keys = self.encode_statements([fact.statement for fact in facts.values()], batch_size)
        new, none = list(facts.values()), [list[NewFact]() for _ in facts]
        found = none
        if on_conflict in ("supersede", "report"):
            found = self._superseded(knowledge, new, keys, batch_size)
        supersedes = found if on_conflict == "supersede" else none
        reported = found if on_conflict == "report" else none
        of_base = on_conflict if on_conflict in ("keep", "error") else "replace"
        return EncodedFacts(new, keys, of_base, fingerprint, supersedes, reported)

    @property
    def tells_what_supersedes(self) -> bool:
        """Whether there is a verifier that tells which facts a new one takes the place of."""
        return self.verifier is not None and self.config.supersede_threshold is not None

    def with_knowledge(self, knowledge: KnowledgeBase) -> Self:
        """The same model over other facts: it shares all weights, and this one keeps its facts."""
        other = copy.copy(self)
        other.knowledge = knowledge
        return other

    def _superseded(
        self, knowledge: KnowledgeBase, new: Sequence[NewFact], keys: Tensor, batch_size: int
    ) -> list[list[NewFact]]:
        assert self.verifier is not None
        encoded, thresholds = self._encode_queries(knowledge, [fact.statement for fact in new], batch_size)
        hits = knowledge.lookup(encoded, NUM_READ)
        found = NewFacts(new, keys, encoded, thresholds, hits.facts, hits.scores)
        return find_superseded(found, self.config, self.retriever, self.verifier)

    def import_knowledge(
        self, path: str | os.PathLike[str], on_conflict: OnConflict = "replace", **kwargs: Any
    ) -> list[int]:
        """Adds the facts of a file, all or none: JSON lines, or Parquet with `recipe-hf[parquet]`.

        Args:
            path: What `knowledge.export` writes, or what
                [`read_facts`][recipe_hf.knowledge.exchange.read_facts] describes.
            on_conflict: As in `add_knowledge`.
            **kwargs: Further arguments of `add_knowledge`.

        Returns:
            The id of each fact; ids in the file do not count.

        Raises:
            ImportError: If it is a Parquet file, and pyarrow is not installed.
            ValueError: If the file is not as described, or a fact is refused.
        """
        facts = read_facts_by_place(path)
        if not facts:
            raise ValueError(f"{path} must hold at least one fact, got none.")
        return self._add(facts, on_conflict, **kwargs)

    def remove_knowledge(self, ids: int | Iterable[int], namespace: str | None = None) -> None:
        """Removes facts, all or none; they stay in the readable history.

        Raises:
            KeyError: If an id is not that of a fact.
        """
        self._knowledge_of(namespace).remove(ids)
