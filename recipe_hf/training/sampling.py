"""Which facts a training step sees, and with which answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from ..datasets import EditExample
from ..knowledge.facts import compose_statement
from .config import SamplingConfig
from .wordings import OtherProperties, Wordings, template

T = TypeVar("T")

_DISTRACTING_STATEMENTS = 4


@dataclass(frozen=True)
class TrainingFact:
    """A fact as a step sees it.

    Args:
        number: Its place among the sampler's examples.
        example: The fact, with the one rephrasing and the one unrelated question that the step asks.
        answer: Its answer, which may be drawn anew, so that statement and target change together.
        distractor: Text that stands before its questions when the retriever reads them; mostly empty.
        in_chat: Whether the base is asked in its chat template.
    """

    number: int
    example: EditExample
    answer: str
    distractor: str = ""
    in_chat: bool = False


class FactSampler:
    """Draws the facts of each step from its number alone, so that a resumed run sees what an unbroken one would.

    Args:
        examples: Facts to draw from, without replacement within a step.
        shares: How often what is drawn.
        seed: Seed of all draws.
        probabilities: How likely each fact is to be drawn, as [`~recipe_hf.datasets.load_mixture`] says; all alike by
            default.
        unrelated_texts: Texts of any kind that ask for no fact.
    """

    def __init__(
        self,
        examples: Sequence[EditExample],
        shares: SamplingConfig,
        seed: int,
        probabilities: Sequence[float] | None = None,
        unrelated_texts: Sequence[str] = (),
    ) -> None:
        self.examples = list(examples)
        self.shares = shares
        self.seed = seed
        self.probabilities = None if probabilities is None else np.array(probabilities) / sum(probabilities)
        self._unrelated_texts = list(unrelated_texts)
        self._wordings = Wordings()
        self._other_properties = OtherProperties(self.examples)
        self._templates = [template(example.prompt, example.subject) for example in self.examples]
        self._by_template: dict[str, list[int]] = {}
        for number, found in enumerate(self._templates):
            self._by_template.setdefault(found, []).append(number)
        first: dict[object, int] = {}
        #: For each example the first that asks for the same: about the same subject, with the same answer so far.
        self.same_as = [
            first.setdefault((e.subject, e.ground_truth) if e.subject and e.ground_truth else number, number)
            for number, e in enumerate(self.examples)
        ]
        self._by_ground_truth: dict[str, list[int]] = {}
        for number, e in enumerate(self.examples):
            if e.subject and e.ground_truth:
                self._by_ground_truth.setdefault(e.ground_truth, []).append(number)
        self._answers = sorted({e.answer for e in examples} | {e.locality_answer for e in examples})
        self._subjects = sorted({e.subject for e in examples if e.subject})

    @property
    def answers(self) -> list[str]:
        """Every answer that a step may hold."""
        return [*self._answers, *self._subjects]

    def own_statement(self, number: int) -> str:
        """The statement of an example with the answer that the data give."""
        return compose_statement(self.examples[number].prompt, self.examples[number].answer)

    def asked_for(self, fact: TrainingFact) -> list[int]:
        """Numbers of the examples that the unrelated question of a fact in truth asks for, as its answer shows."""
        example = fact.example
        if example.unrelated_is_made_up:
            return []
        same_answer = self._by_ground_truth.get(example.locality_answer, [])
        return [number for number in same_answer if self.examples[number].subject in example.locality_prompt]

    def draw(self, step: int, size: int, answer_variants: int | None = None) -> list[TrainingFact]:
        """The `size` facts of a step. `answer_variants` bounds how many drawn answers a fact may have in all."""
        rng = np.random.default_rng([self.seed, step])
        numbers = rng.choice(len(self.examples), size=size, replace=False, p=self.probabilities).tolist()
        numbers = self._with_hard_negatives(rng, numbers)
        return [
            TrainingFact(
                n,
                self._example(rng, n),
                self._answer(rng, n, answer_variants),
                self._distractor(rng),
                in_chat=self.shares.chat_share > 0 and rng.random() < self.shares.chat_share,
            )
            for n in numbers
        ]

    def _example(self, rng: np.random.Generator, number: int) -> EditExample:
        example = self.examples[number]
        prompt = example.prompt
        rephrasings, unrelated = _one(rng, example.rephrasings), _one(rng, example.unrelated)
        if self.shares.rewording_share and rng.random() < self.shares.rewording_share:
            reworded = self._wordings.draw(rng, example)
            rephrasings = rephrasings if reworded is None else (reworded,)
        if self.shares.prompt_rewording_share and rng.random() < self.shares.prompt_rewording_share:
            prompt = self._wordings.draw(rng, example) or prompt
        made_up = example.unrelated_is_made_up
        kind = rng.random() if self.shares.other_property_share or self.shares.unrelated_text_share else 1.0
        if kind < self.shares.other_property_share:
            other = self._other_properties.draw(rng, example)
            if other is not None:
                unrelated, made_up = ((other, example.locality_answer),), True
        elif kind < self.shares.other_property_share + self.shares.unrelated_text_share:
            text = self._unrelated_texts[rng.integers(len(self._unrelated_texts))]
            unrelated, made_up = ((text, example.locality_answer),), True
        if (prompt, rephrasings, unrelated) == (example.prompt, example.rephrasings, example.unrelated):
            return example
        return replace(
            example, prompt=prompt, rephrasings=rephrasings, unrelated=unrelated, unrelated_is_made_up=made_up
        )

    def _distractor(self, rng: np.random.Generator) -> str:
        if not self.shares.distractor_share or rng.random() >= self.shares.distractor_share:
            return ""
        drawn = rng.integers(len(self.examples), size=rng.integers(1, _DISTRACTING_STATEMENTS, endpoint=True))
        facts = [self.examples[number] for number in drawn]
        return "".join(f"{compose_statement(fact.prompt, fact.answer)}. " for fact in facts)

    def _with_hard_negatives(self, rng: np.random.Generator, numbers: list[int]) -> list[int]:
        count = min(round(len(numbers) * self.shares.hard_negative_share), len(numbers) // 2)
        chosen = dict.fromkeys(numbers[: len(numbers) - count])
        for anchor in numbers[:count]:
            others = [n for n in self._by_template[self._templates[anchor]] if n not in chosen]
            if others:
                chosen[others[rng.integers(len(others))]] = None
        spare = (number for number in numbers if number not in chosen)
        return [*chosen, *spare][: len(numbers)]

    def _answer(self, rng: np.random.Generator, number: int, variants: int | None) -> str:
        if rng.random() >= self.shares.answer_resampling:
            return self.examples[number].answer
        if variants is not None:
            rng = np.random.default_rng([self.seed, number, int(rng.integers(variants))])
        if rng.random() < self.shares.subject_share:
            pool = self._subjects or self._answers
        elif rng.random() < self.shares.same_template_share:
            same = self._by_template[self._templates[number]]
            return self.examples[same[rng.integers(len(same))]].answer
        else:
            pool = self._answers
        return pool[rng.integers(len(pool))]


def _one(rng: np.random.Generator, items: tuple[T, ...]) -> tuple[T, ...]:
    """One of `items`, or none if there is none."""
    start = int(rng.integers(len(items))) if len(items) > 1 else 0
    return items[start : start + 1]
