"""Changes of facts: each is one transaction, with its line in the audit and the receipt of its request."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch

from ..knowledge import KnowledgeBase
from ..knowledge.exchange import read_lines
from ..knowledge.facts import Fact, NewFact, PastFact, parse_fact, parse_facts
from ..modeling.knowledge_mixin import OnConflict
from ..modeling.superseding import EncodedFacts
from .access import Principal
from .audit import Audit, Change, Recording
from .limits import MAX_FACTS, check_size
from .problems import Problem
from .receipts import Claim, Receipt, Receipts

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

# How many facts of a file are encoded, and added, at once.
_BATCH = 256


@dataclass
class Made:
    """What a change made.

    Attributes:
        ids: For each fact given the id it has, or that of the fact that stayed.
        superseded: The facts that left, and which took their place.
        reported: Facts that stay, and the new ones that answer what they do.
        last: The last fact that came.
    """

    ids: list[int] = field(default_factory=list)
    superseded: list[dict[str, Any]] = field(default_factory=list)
    reported: list[dict[str, Any]] = field(default_factory=list)
    last: Fact | None = None

    @property
    def answer(self) -> dict[str, Any]:
        """What is answered."""
        return {"ids": self.ids, "superseded": self.superseded, "reported": self.reported}


class Changes:
    """Makes changes for clients.

    Args:
        model: Whose `knowledge` is changed.
        audit: Where each change is written down.
        receipts: Where the answers to requests with idempotency keys are kept.
    """

    def __init__(self, model: RecipeForCausalLM, audit: Audit, receipts: Receipts) -> None:
        self._model = model
        self._audit = audit
        self.receipts = receipts

    def knowledge(self, namespace: str) -> KnowledgeBase:
        """The facts of a namespace."""
        return self._model.knowledge.namespace(namespace)

    def add(
        self, who: Principal, namespace: str, facts: Sequence[Any], on_conflict: OnConflict, claim: Claim | None
    ) -> Made:
        """Adds facts, all or none, as [`add_knowledge`][recipe_hf.RecipeForCausalLM.add_knowledge] does."""
        parsed = {f"facts[{position}]": fact for position, fact in enumerate(parse_facts(facts))}
        for place, fact in parsed.items():
            check_size(place, fact)
        encoded = self._model.encode_facts(parsed, on_conflict, knowledge=self.knowledge(namespace))

        def make(knowledge: KnowledgeBase, made: Made, recording: Recording) -> None:
            _add(knowledge, encoded, made, recording)

        return self._make(who, namespace, claim, make)

    def replace(self, who: Principal, namespace: str, id: int, fact: Any, claim: Claim | None) -> Made:
        """Puts a new fact in the place of another; the new one gets an id of its own."""
        parsed = parse_fact(fact, "fact")
        check_size("fact", parsed)
        encoded = self._model.encode_facts({"fact": parsed}, knowledge=self.knowledge(namespace))

        def make(knowledge: KnowledgeBase, made: Made, recording: Recording) -> None:
            old = knowledge.find(id)
            if isinstance(old, PastFact):
                became = "was removed" if old.replaced_by is None else f"was replaced by fact {old.replaced_by}"
                raise Problem(HTTPStatus.CONFLICT, f"Fact {id} {became} meanwhile.")
            old = knowledge[id]
            _add(knowledge, replace(encoded, supersedes=[[old]]), made, recording)

        return self._make(who, namespace, claim, make)

    def remove(self, who: Principal, namespace: str, id: int) -> None:
        """Removes a fact."""

        def make(knowledge: KnowledgeBase, made: Made, recording: Recording) -> None:
            fact = knowledge[id]
            knowledge.remove(id)
            recording.write([Change("remove", fact, None)])

        self._make(who, namespace, None, make)

    def restore(self, who: Principal, namespace: str, id: int, claim: Claim | None) -> Made:
        """Brings a past fact back, as a new one."""

        def make(knowledge: KnowledgeBase, made: Made, recording: Recording) -> None:
            past = knowledge.find(id)
            conflicts = knowledge.conflicts(parse_facts([past])) if isinstance(past, PastFact) else [[]]
            made.ids = [knowledge.restore(id, self._model.encode_statements)]
            _tell(knowledge, made, recording, made.ids, conflicts[0], "restore")

        return self._make(who, namespace, claim, make)

    def add_file(
        self, who: Principal, namespace: str, file: TextIO, on_conflict: OnConflict, claim: Claim | None
    ) -> Made:
        """Adds the facts of JSON lines, all or none, however many, in little memory.

        All are checked and encoded first, and their keys put on disk; then they are added in one transaction.
        """
        with tempfile.TemporaryFile() as keys:
            batches = list(self._encode(file, on_conflict, self.knowledge(namespace), keys))
            if not batches:
                raise ValueError("The file must hold at least one fact, got none.")

            def make(knowledge: KnowledgeBase, made: Made, recording: Recording) -> None:
                file.seek(0)
                keys.seek(0)
                facts = read_lines(file)
                for encoded, size in batches:
                    # One by one where a conflict is an error, which is to name its line.
                    step = 1 if on_conflict == "error" else size
                    for _ in range(0, size, step):
                        chosen = dict(islice(facts, step))
                        if on_conflict == "error":
                            _refuse_conflicts(knowledge, chosen)
                        width = encoded.keys.shape[1]
                        rows = np.frombuffer(keys.read(4 * step * width), np.float32).reshape(step, width)
                        new = encoded.facts or list(chosen.values())
                        _add(knowledge, replace(encoded, facts=new, keys=torch.tensor(rows)), made, recording)

            return self._make(who, namespace, claim, make)

    def _encode(
        self, file: TextIO, on_conflict: OnConflict, knowledge: KnowledgeBase, keys: Any
    ) -> Iterator[tuple[EncodedFacts, int]]:
        """Batches and their sizes. Their keys go to a file, and their facts are let go where nothing names them."""
        facts, looks = read_lines(file), on_conflict in ("supersede", "report")
        while batch := dict(islice(facts, MAX_FACTS if looks else _BATCH)):
            for place, fact in batch.items():
                check_size(place, fact)
            if looks and next(facts, None) is not None:
                raise ValueError(f"A file must hold at most {MAX_FACTS} facts for on_conflict={on_conflict!r}.")
            encoded = self._model.encode_facts(batch, on_conflict, knowledge=knowledge)
            keys.write(encoded.keys.numpy().astype(np.float32).tobytes())
            if looks:
                yield replace(encoded, keys=encoded.keys[:0]), len(batch)
            else:
                yield replace(encoded, facts=(), keys=encoded.keys[:0].clone(), supersedes=(), reported=()), len(batch)

    def _make(
        self,
        who: Principal,
        namespace: str,
        claim: Claim | None,
        make: Callable[[KnowledgeBase, Made, Recording], None],
    ) -> Made:
        made, knowledge = Made(), self.knowledge(namespace)
        with self._audit.record(who, namespace) as recording, knowledge.transaction():
            make(knowledge, made, recording)
            if claim is not None:
                last = (None, None) if made.last is None else (made.last.id, made.last.created_at)
                claim.write(Receipt(made.answer, namespace, *last))
        return made

    def was_made(self, receipt: Receipt) -> bool:
        """Whether the change of a receipt came to be: no other fact has both this id and this time."""
        fact = self.knowledge(receipt.namespace).find(receipt.id)
        return receipt.id is None or (fact is not None and fact.created_at == receipt.created_at)


def _refuse_conflicts(knowledge: KnowledgeBase, facts: dict[str, NewFact]) -> None:
    for (place, fact), conflicts in zip(facts.items(), knowledge.conflicts(facts.values()), strict=True):
        if conflicts:
            raise ValueError(
                f"{place} must have a new prompt under on_conflict='error', got {fact.subject[1]!r}, which fact "
                f"{conflicts[0].id} has."
            )


def _add(knowledge: KnowledgeBase, encoded: EncodedFacts, made: Made, recording: Recording) -> None:
    """Adds facts, and tells what became of them and of others."""
    conflicts = [old for found in knowledge.conflicts(encoded.facts) for old in found]
    superseded = [old for found in encoded.supersedes for old in found if isinstance(old, Fact)]
    ids = encoded.add_to(knowledge)
    made.ids += ids
    id_of = {id(fact): id_ for fact, id_ in zip(encoded.facts, ids, strict=True)}
    made.reported += [
        {"id": old.id if isinstance(old, Fact) else id_of[id(old)], "statement": old.statement, "by": by}
        for by, older in zip(ids, encoded.reported, strict=False)
        for old in older
    ]
    _tell(knowledge, made, recording, ids, [*conflicts, *superseded], "add")


def _tell(
    knowledge: KnowledgeBase,
    made: Made,
    recording: Recording,
    ids: Sequence[int],
    others: Sequence[Fact],
    action: Any,
) -> None:
    """Notes which facts came and which left, of those that may have."""
    were = {old.id for old in others}
    new = [fact for id_ in dict.fromkeys(ids) if id_ not in were and (fact := knowledge.find(id_)) is not None]
    came = {fact.id for fact in new}
    maybe_past = [*(knowledge.find(id_) for id_ in sorted(were)), *new]
    left = [past for past in maybe_past if isinstance(past, PastFact) and past.replaced_by in came]
    made.superseded += [{"id": past.id, "statement": past.statement, "replaced_by": past.replaced_by} for past in left]
    made.last = new[-1] if new else made.last
    after = {fact.id: fact for fact in new}
    changes = [Change(action, None, fact) for fact in new]
    changes += [Change("replace", past, after[past.replaced_by]) for past in left if past.replaced_by is not None]
    if changes:
        recording.write(changes)
