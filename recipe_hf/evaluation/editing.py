"""Evaluation of edits: facts are drawn, held together or one at a time, and asked about under a protocol."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..datasets import EditExample
from ..teacher_forcing import tokenize_rows
from .answers import Answers, Request
from .calibration import calibration
from .general import GeneralPrompts
from .held import Held, hold
from .protocols import Protocol, find_protocol, opens_with
from .questions import KINDS, PORTABILITY, Outcome, Question, questions_of_data

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

__all__ = ["KINDS", "EditingReport", "Outcome", "Trial", "evaluate_editing", "run_trial"]

#: Makes further questions of facts asked about, each with its position among those held.
Probe = Callable[[Sequence[tuple[EditExample, int]]], Iterable[Question]]

_PROMPTS_AFTER_REMOVAL = 64


@dataclass(frozen=True)
class EditingReport:
    """Outcomes of one evaluation, and their averages in percent.

    Args:
        num_edits: Facts held at once; 1 for many separate edits.
        seed: Seed that drew them.
        outcomes: What happened to each question.
        protocol: Name of the protocol.
        equal_after_removal: Share of prompts to which the model answers, once all facts are removed, exactly as the
            base does; `None` if that was not asked, or facts were not held together.
        general: For each set of general prompts, how many there are and for which a fact was used.
        temperature: `similarity_temperature` of the model.
    """

    num_edits: int
    seed: int
    outcomes: list[Outcome]
    protocol: str = "strict"
    equal_after_removal: float | None = None
    general: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    @property
    def metrics(self) -> dict[str, float]:
        """Mean accuracy of each kind of question asked, and what the retriever did with it, in percent.

        `_fired`: any fact was used; `locality_fired_on_subject`: one was used whose subject the question names, where
        the data say of all facts used what they are about. For questions that a fact concerns, `_right_fact`: the
        right one was used; `_nearest`: the right one was the best, used or not (recall@1); `_given_right_fact`:
        accuracy where the right one was used. For others, `_fired_own`: the very fact that the question was made from
        was used. `portability_base` is the accuracy of the unedited base. `kind/detail` is the accuracy of a kind
        within a kind. `calibration_error` is explained in
        [`calibration`][recipe_hf.evaluation.calibration.calibration].
        `retention_first` and `retention_last` are the reliability of the tenth of the facts added first and last.
        """
        percent: dict[str, float] = {}
        for kind in dict.fromkeys(o.kind for o in self.outcomes):
            rows = [o for o in self.outcomes if o.kind == kind]
            percent[kind] = _percent(o.accuracy for o in rows)
            percent[f"{kind}_fired"] = _percent(o.retrieved_id is not None for o in rows)
            if rows[0].concerns:
                right = [o.accuracy for o in rows if o.is_right_fact]
                percent[f"{kind}_right_fact"] = 100 * len(right) / len(rows)
                percent[f"{kind}_nearest"] = _percent(o.nearest_id == o.fact_id for o in rows)
                percent[f"{kind}_given_right_fact"] = _percent(right) if right else 0.0
            else:
                percent[f"{kind}_fired_own"] = _percent(o.retrieved_id == o.fact_id for o in rows)
                if kind == "locality" and all(o.names_subject is not None for o in rows if o.retrieved_id is not None):
                    percent["locality_fired_on_subject"] = _percent(bool(o.names_subject) for o in rows)
            if all(o.base_accuracy is not None for o in rows):
                percent[f"{kind}_base"] = _percent(o.base_accuracy or 0.0 for o in rows)
            for detail in sorted({o.detail for o in rows} - {""}):
                percent[f"{kind}/{detail}"] = _percent(o.accuracy for o in rows if o.detail == detail)
        by_age = sorted((o for o in self.outcomes if o.kind == "reliability"), key=lambda o: o.fact_id or 0)
        if self.num_edits > 1 and (tenth := len(by_age) // 10):
            percent["retention_first"] = _percent(o.accuracy for o in by_age[:tenth])
            percent["retention_last"] = _percent(o.accuracy for o in by_age[-tenth:])
        if any(o.kind in KINDS for o in self.outcomes):
            percent["calibration_error"] = 100 * calibration(self.outcomes, self.temperature)["error"]
        if self.equal_after_removal is not None:
            percent["equal_after_removal"] = 100 * self.equal_after_removal
        for name, found in self.general.items():
            percent[f"general_fired/{name}"] = 100 * len(found["fired"]) / found["prompts"]
        return percent


def _percent(values: Iterable[float]) -> float:
    return 100 * mean(map(float, values))


@dataclass(frozen=True)
class Trial:
    """Facts to hold, in the order they are added, and questions about some of them.

    Args:
        num_edits: Facts held at once.
        seed: Seed that drew them.
        facts: The facts. With `num_edits=1`, each is held alone.
        questions: What is asked.
        as_statements: Whether facts are told as whole statements.
        general: Sets of prompts that no fact concerns, by name.
        ends_with_removal: Whether to remove all facts at the end and compare the model with its base.
    """

    num_edits: int
    seed: int
    facts: list[EditExample]
    questions: list[Question]
    as_statements: bool = False
    general: Mapping[str, GeneralPrompts] = field(default_factory=dict)
    ends_with_removal: bool = False

    @classmethod
    def draw(
        cls,
        examples: Sequence[EditExample],
        num_edits: int | None = None,
        seed: int = 0,
        num_questions: int | None = None,
        every: bool = False,
        beside: Sequence[EditExample] = (),
        probes: Iterable[Probe] = (),
        **kwargs: Any,
    ) -> Trial:
        """Draws facts by a seed; with the same seed, fewer facts are among more.

        Those asked about are drawn first, then all are added in a random order of their own.

        Raises:
            ValueError: If `num_edits` is not between 1 and the number of examples, or `num_questions` is below 1.
        """
        if num_questions is not None and num_questions < 1:
            raise ValueError(f"num_questions must be at least 1, got {num_questions}.")
        num_edits = len(examples) if num_edits is None else num_edits
        if not 1 <= num_edits <= len(examples):
            raise ValueError(f"num_edits must be between 1 and the {len(examples)} examples at hand, got {num_edits}.")
        rng = random.Random(seed)
        chosen = rng.sample(list(examples), len(examples))
        chosen = chosen[: num_questions if num_edits == 1 and not beside else num_edits]
        order = rng.sample(range(len(chosen)), len(chosen))
        position = {number: place for place, number in enumerate(order)}
        asked = [(example, position[number]) for number, example in enumerate(chosen[:num_questions])]
        questions = [*questions_of_data(asked, every), *(q for probe in probes for q in probe(asked))]
        return cls(num_edits + len(beside), seed, [chosen[i] for i in order] + list(beside), questions, **kwargs)

    def questions_under(self, protocol: Protocol) -> list[Question]:
        """The questions asked under a protocol: the probes are not for one whose retriever is shown answers."""
        return [q for q in self.questions if q.kind in (*KINDS, PORTABILITY) or not protocol.shows_answer]


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
    protocol: str = "strict",
) -> EditingReport:
    """Adds facts to an empty knowledge base, asks about them, and puts the model's own knowledge back.

    Args:
        model: The model. Its knowledge is the same afterwards.
        examples: Facts to choose from.
        num_edits: How many to hold at once, drawn by `seed`; all by default. 1 means many separate edits.
        seed: Seed of the draw.
        num_questions: How many of the facts to ask about; all by default.
        batch_size: Rows in one call of the base.
        progress: Whether to show a progress bar with the time left.
        portability: Whether to ask what follows from the facts too, and all unrelated questions whose kind the data
            name; otherwise one for each fact.
        as_statements: Whether facts are told as whole statements, so that their continuous prompts are made of these
            alone, as in the paper, also if the model makes prompts of answers.
        beside: Further facts to hold, which are not asked about.
        protocol: Name of the protocol, one of [`PROTOCOLS`].

    Raises:
        ValueError: If `num_edits` is not between 1 and the number of examples, `num_questions` is below 1, or the
            protocol is unknown.
        RuntimeError: If the model has no tokenizer.
    """
    find_protocol(protocol)
    trial = Trial.draw(
        examples, num_edits, seed, num_questions, every=portability, beside=beside, as_statements=as_statements
    )
    with tqdm(total=len(trial.questions), desc="questions", disable=not progress, unit="row") as bar:
        return run_trial(model, trial, [protocol], Answers(model, batch_size), bar)[0]


@torch.no_grad()
def run_trial(
    model: RecipeForCausalLM, trial: Trial, protocols: Sequence[str], answers: Answers, bar: tqdm | None = None
) -> list[EditingReport]:
    """Asks the questions of a trial under each protocol; the facts are encoded once.

    Args:
        model: The model.
        trial: The facts and questions.
        protocols: Names of the protocols.
        answers: Where what was asked before is kept.
        bar: Advances by the number of questions under each protocol.

    Raises:
        RuntimeError: If the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
    alone = trial.num_edits == 1
    with hold(model, trial.facts, trial.as_statements, alone) as held:
        general = {name: prompts.fired(held) for name, prompts in trial.general.items()}
        outcomes = {name: _outcomes(model, trial, find_protocol(name), held, answers, bar) for name in protocols}
        equal = None
        if trial.ends_with_removal and not alone:
            prompts = [question.text for question in trial.questions if question.kind == "reliability"]
            equal = held.share_equal_after_removal(prompts[:_PROMPTS_AFTER_REMOVAL], answers.batch_size)
    temperature = model.config.similarity_temperature
    return [
        EditingReport(trial.num_edits, trial.seed, found, name, equal, general, temperature)
        for name, found in outcomes.items()
    ]


def _outcomes(
    model: RecipeForCausalLM, trial: Trial, protocol: Protocol, held: Held, answers: Answers, bar: tqdm | None
) -> list[Outcome]:
    tokenizer: Any = model.tokenizer
    questions = trial.questions_under(protocol)
    rows = tokenize_rows(tokenizer, [q.text for q in questions], [q.answers[0] for q in questions])
    queries = [
        tokenizer.decode(row.prompt_ids + row.answer_ids[:-1], skip_special_tokens=True)
        if protocol.shows_answer
        else question.text
        if question.query is None
        else question.query
        for question, row in zip(questions, rows, strict=True)
    ]
    hits = held.retrieve(queries, [question.about for question in questions])
    used = [hit.id if hit.fired else None for hit in hits]
    unedited = [Request(protocol.forced, q.text, q.answers[0]) for q in questions]
    edited = [
        request._replace(told=(hit.statement, hit.answer)) if hit.fired else request
        for request, hit in zip(unedited, hits, strict=True)
    ]
    compared = [r for r, q in zip(unedited, questions, strict=True) if not q.concerns or q.kind == PORTABILITY]
    requests = dict.fromkeys(compared) | dict(zip(edited, used, strict=True))
    if bar is not None:
        bar.total += len(requests) - len(questions)  # What comes twice is asked once; some is asked of the base too.
    answers.ask(requests, held, bar)

    subjects = dict(zip(held.ids, (fact.subject for fact in trial.facts), strict=True))
    told = [(fact.prompt, fact.answer) for fact in trial.facts]
    held_as = dict(zip(told, held.ids, strict=True))  # Of rows that tell the same, the last is the one held.
    outcomes = []
    for question, row, hit, fact_id, base, request in zip(questions, rows, hits, used, unedited, edited, strict=True):
        right_id = question.about if held.alone else held_as[told[question.about]]
        said = answers[request]
        expected = row.answer_ids if question.concerns else answers[base]
        output = tokenizer.decode(said, skip_special_tokens=True).strip()
        base_accuracy = None
        if question.kind == PORTABILITY:
            base_output = tokenizer.decode(answers[base], skip_special_tokens=True).strip()
            base_accuracy = accuracy_of(protocol, question, answers[base], expected, base_output)
        subject = "" if fact_id is None else subjects[fact_id]
        outcomes.append(
            Outcome(
                kind=question.kind,
                query=question.text,
                answer=question.answers[0],
                retrieved_id=fact_id,
                is_right_fact=fact_id == (right_id if question.concerns else None),
                score=hit.score,
                threshold=hit.threshold,
                accuracy=accuracy_of(protocol, question, said, expected, output),
                detail=question.detail,
                fact_id=right_id,
                nearest_id=hit.id,
                concerns=question.concerns,
                output=output,
                expected=question.answers[0]
                if question.concerns
                else tokenizer.decode(expected, skip_special_tokens=True).strip(),
                names_subject=subject in question.text if subject else None,
                base_accuracy=base_accuracy,
                probability=hit.probability,
            )
        )
    return outcomes


def accuracy_of(
    protocol: Protocol, question: Question, said: Sequence[int], expected: Sequence[int], output: str
) -> float:
    """The accuracy of tokens said, 0 to 1, where `expected` were to be said; `output` is their text."""
    if protocol.forced:
        return sum(a == b for a, b in zip(said, expected, strict=True)) / len(expected)
    return float(opens_with(output, question.answers) if question.concerns else said == expected)
