"""What would come of adding facts, tried on a copy of those that matter."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus
from itertools import chain
from typing import TYPE_CHECKING

import torch

from ..knowledge.facts import Fact, NewFact, parse_facts
from ..modeling.queries import as_chat
from .limits import check_size
from .problems import busy
from .schemas import FactsToPreview, Named, Outcome, Preview, PreviewedFact, PreviewedQuestion

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

# How many of the facts nearest to a question matter to it, beside those that would leave.
_NEAR = 64
_generating = threading.Lock()
# How many are tried at once: each waits in a thread of those that answer all other routes, too.
_trying = threading.BoundedSemaphore(8)


def preview(model: RecipeForCausalLM, namespace: str, given: FactsToPreview) -> Preview:
    """Tries what [`FactsToPreview`] says.

    Raises:
        KeyError: If `in_place_of` is not the id of a fact.
        Problem: If too many are being tried.
        ValueError: As in `add_knowledge`, where the facts could not be added.
    """
    if not _trying.acquire(blocking=False):
        raise busy("Other previews are being tried: try again later.", HTTPStatus.TOO_MANY_REQUESTS)
    try:
        return _preview(model, namespace, given)
    finally:
        _trying.release()


def _preview(model: RecipeForCausalLM, namespace: str, given: FactsToPreview) -> Preview:
    parsed = {f"facts[{position}]": fact for position, fact in enumerate(parse_facts(given.facts))}
    for place, fact in parsed.items():
        check_size(place, fact)
    knowledge, tells = model.knowledge.namespace(namespace), model.tells_what_supersedes
    encoded = model.encode_facts(parsed, "supersede" if tells else given.on_conflict, knowledge=knowledge)
    conflicts = knowledge.conflicts(encoded.facts)
    takes_place = given.on_conflict == "supersede"
    supersedes: list[list[NewFact]] = [[old for old in found if takes_place] for found in encoded.supersedes]
    if given.in_place_of is not None:
        supersedes[0].append(knowledge[given.in_place_of])
    may_leave: Iterable[NewFact] = (*chain.from_iterable(conflicts), *chain.from_iterable(supersedes))
    leaving = {old.id for old in may_leave if isinstance(old, Fact)}
    near = {
        fact.id
        for question in given.questions
        for fact, _ in model.nearest(question, _NEAR + len(leaving), namespace=namespace)
    }
    copy = knowledge.excerpt(leaving | near)
    tried = replace(
        encoded,
        on_conflict=given.on_conflict if given.on_conflict in ("keep", "error") else "replace",
        supersedes=supersedes,
    )
    held = set(copy.ids())
    new = set(tried.add_to(copy)) - held
    before = _outcomes(model.with_knowledge(knowledge), given, set())
    after = _outcomes(model.with_knowledge(copy), given, new)
    return Preview(
        facts=[
            PreviewedFact(
                statement=fact.statement,
                replaces=_named(conflicts[row]),
                supersedes=_named(encoded.supersedes[row]) if tells else None,
            )
            for row, fact in enumerate(encoded.facts)
        ],
        questions=[
            PreviewedQuestion(question=question, before=before[row], after=after[row])
            for row, question in enumerate(given.questions)
        ],
    )


def _named(facts: Sequence[NewFact]) -> list[Named]:
    return [Named(id=fact.id if isinstance(fact, Fact) else None, statement=fact.statement) for fact in facts]


def _outcomes(model: RecipeForCausalLM, given: FactsToPreview, new: set[int]) -> list[Outcome]:
    """What is used for each question, and the answer, with the facts of `model`."""
    if not given.questions:
        return []
    hits = model.retrieve(given.questions)
    answers = _answers(model, given.questions, given.max_tokens)
    return [Outcome.of(hit, hit.id in new, answer) for hit, answer in zip(hits, answers, strict=True)]


def _answers(model: RecipeForCausalLM, questions: list[str], max_tokens: int) -> list[str | None]:
    """Greedy answers; None for each where another process generates."""
    tokenizer = model.tokenizer
    if model.lm is None or tokenizer is None:
        return [None] * len(questions)
    is_chat = getattr(tokenizer, "chat_template", None)
    texts = [as_chat(tokenizer, question) if is_chat else question for question in questions]
    with _generating, torch.no_grad():
        # To pad in the call would change the tokenizer that other threads are reading with.
        ids = tokenizer(texts)["input_ids"]
        batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)
        output = model.generate(**batch, queries=questions, max_new_tokens=max_tokens, do_sample=False)
    new = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
