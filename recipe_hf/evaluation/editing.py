"""Reliability, generality, locality and portability of edits under the `strict` protocol.

`strict`: the retriever sees the prompt only. Reliability, generality and portability are the teacher-forced token
accuracy of the answer; locality is the share of answer positions where the most likely token is the unedited model's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..datasets import EditExample
from ..modeling.facts import compose_statement
from ..modeling.knowledge import KnowledgeBase
from ..teacher_forcing import IGNORE_INDEX, Row, answer_logits, tokenize_rows

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

KINDS = ("reliability", "generality", "locality")
PORTABILITY = "portability"


@dataclass(frozen=True)
class Outcome:
    """What happened to one question.

    Args:
        kind: `reliability`, `generality`, `locality` or `portability`.
        query: The question.
        answer: The expected answer.
        retrieved_id: Id of the fact whose prompt was used, or `None`.
        is_right_fact: Whether that is the fact asked for (locality: whether none was used).
        score: Similarity with the best fact.
        threshold: Similarity with the sentinel.
        accuracy: Share of right tokens, 0 to 1.
    """

    kind: str
    query: str
    answer: str
    retrieved_id: int | None
    is_right_fact: bool
    score: float
    threshold: float
    accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class EditingReport:
    """Outcomes of one evaluation, and their averages in percent."""

    num_edits: int
    seed: int
    outcomes: list[Outcome]

    @property
    def metrics(self) -> dict[str, float]:
        """Mean accuracy of each kind of question asked, and what the retriever did with it, in percent.

        `_right_fact`: the right fact was used. `_fired`: any was. `_given_right_fact`: accuracy where the right one
        was.
        """
        percent: dict[str, float] = {}
        for kind in dict.fromkeys(o.kind for o in self.outcomes):
            rows = [o for o in self.outcomes if o.kind == kind]
            percent[kind] = 100 * mean(o.accuracy for o in rows)
            percent[f"{kind}_fired"] = 100 * mean(o.retrieved_id is not None for o in rows)
            if kind != "locality":
                right = [o.accuracy for o in rows if o.is_right_fact]
                percent[f"{kind}_right_fact"] = 100 * len(right) / len(rows)
                percent[f"{kind}_given_right_fact"] = 100 * mean(right) if right else 0.0
        return percent


@torch.no_grad()
def evaluate_editing(
    model: RecipeForCausalLM,
    examples: Sequence[EditExample],
    num_edits: int | None = None,
    seed: int = 0,
    num_questions: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
    portability: bool = False,
    as_statements: bool = False,
    beside: Sequence[EditExample] = (),
) -> EditingReport:
    """Adds facts to an empty knowledge base, asks about them, and puts the model's own knowledge back.

    A fact without rephrasings is not asked for in other words, and one whose unrelated question was made up has none.

    Args:
        model: The model. Its knowledge is the same afterwards.
        examples: Facts to choose from.
        num_edits: How many to add at once, drawn by `seed`; all by default.
        seed: Seed of the draw.
        num_questions: How many of the added facts to ask about; all by default.
        batch_size: Rows in one call of the base.
        progress: Whether to show a progress bar with the time left.
        portability: Whether to ask what follows from the facts too; of several right answers, the first is expected.
        as_statements: Whether facts are told as whole statements, so that their continuous prompts are made of these
            alone, as in the paper, also if the model makes prompts of answers.
        beside: Further facts to add, which are not asked about.

    Raises:
        ValueError: If `num_edits` is not between 1 and the number of examples, or `num_questions` is below 1.
        RuntimeError: If the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
    if num_questions is not None and num_questions < 1:
        raise ValueError(f"num_questions must be at least 1, got {num_questions}.")
    num_edits = len(examples) if num_edits is None else num_edits
    if not 1 <= num_edits <= len(examples):
        raise ValueError(f"num_edits must be between 1 and the {len(examples)} examples at hand, got {num_edits}.")
    chosen = random.Random(seed).sample(list(examples), num_edits)
    with _empty_knowledge(model):
        facts: list[Any] = [(e.prompt, e.answer) for e in (*chosen, *beside)]
        ids = model.add_knowledge([compose_statement(*fact) for fact in facts] if as_statements else facts)
        asked = list(zip(chosen, ids, strict=False))[:num_questions]
        questions = list(_questions(asked, portability))
        queries = [query for _, query, _, _ in questions]
        retrievals = model.retrieve(queries)
        rows = tokenize_rows(model.tokenizer, queries, [answer for _, _, answer, _ in questions])
        kinds = [kind for kind, *_ in questions]
        used = [r.id if r.fired else None for r in retrievals]
        accuracies = _accuracies(model, kinds, rows, used, batch_size, progress)
    outcomes = [
        Outcome(
            kind=kind,
            query=query,
            answer=answer,
            retrieved_id=used_id,
            is_right_fact=used_id == expected,
            score=r.score,
            threshold=r.threshold,
            accuracy=accuracy,
        )
        for (kind, query, answer, expected), r, used_id, accuracy in zip(
            questions, retrievals, used, accuracies, strict=True
        )
    ]
    return EditingReport(num_edits + len(beside), seed, outcomes)


def _questions(
    asked: Sequence[tuple[EditExample, int]], portability: bool
) -> Iterator[tuple[str, str, str, int | None]]:
    """Kind, question, expected answer and the id of the right fact."""
    for example, fact_id in asked:
        yield "reliability", example.prompt, example.answer, fact_id
    for example, fact_id in asked:
        if example.rephrasings:
            yield "generality", example.rephrase_prompt, example.answer, fact_id
    for example, _ in asked:
        if not example.unrelated_is_made_up:
            yield "locality", example.locality_prompt, example.locality_answer, None
    if portability:
        for example, fact_id in asked:
            for question, answers in chain.from_iterable(example.portability.values()):
                yield PORTABILITY, question, answers[0], fact_id


@contextmanager
def _empty_knowledge(model: RecipeForCausalLM) -> Iterator[None]:
    own = model.knowledge
    model.knowledge = KnowledgeBase(model.config.knowledge_dim)
    try:
        yield
    finally:
        model.knowledge = own


def _accuracies(
    model: RecipeForCausalLM,
    kinds: Sequence[str],
    rows: Sequence[Row],
    fact_ids: Sequence[int | None],
    batch_size: int,
    progress: bool,
) -> list[float]:
    """Accuracy of each row. A locality row whose gate does not fire is the base's own answer: 1 without a call."""
    accuracies = [1.0] * len(rows)
    asked = [i for i in range(len(rows)) if kinds[i] != "locality" or fact_ids[i] is not None]
    groups = ([i for i in asked if fact_ids[i] is None], [i for i in asked if fact_ids[i] is not None])
    with tqdm(total=len(asked), desc="questions", disable=not progress, unit="row") as bar:
        for group in groups:
            group.sort(key=lambda i: len(rows[i]))
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                for i, accuracy in zip(batch, _batch_accuracy(model, kinds, rows, fact_ids, batch), strict=True):
                    accuracies[i] = accuracy
                bar.update(len(batch))
    return accuracies


def _batch_accuracy(
    model: RecipeForCausalLM,
    kinds: Sequence[str],
    rows: Sequence[Row],
    fact_ids: Sequence[int | None],
    batch: Sequence[int],
) -> list[float]:
    chosen = [rows[i] for i in batch]
    ids = [fact_id for i in batch if (fact_id := fact_ids[i]) is not None]
    prefix, mask = None, None
    if ids:
        prefix, mask = model.continuous_prompts(model.knowledge.keys(ids), [model.knowledge[i].answer for i in ids])
    logits, labels = answer_logits(model.lm, chosen, prefix, prefix_mask=mask)
    predicted = logits.argmax(-1)
    local = [n for n, i in enumerate(batch) if kinds[i] == "locality"]
    expected = labels.clone()
    if local:
        base_logits, base_labels = answer_logits(model.lm, [chosen[n] for n in local])
        width = base_labels.shape[1]
        expected[local, -width:] = base_logits.argmax(-1)
    kept = labels != IGNORE_INDEX
    return (((predicted == expected) & kept).sum(1) / kept.sum(1)).tolist()
