"""Trials: facts drawn from a data set, to be held together or one at a time, and questions about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...datasets import EditExample
from .protocols import Protocol
from .questions import KINDS, PORTABILITY, Question, questions_of_data

#: Makes further questions of facts asked about, each with its position among those held.
Probe = Callable[[Sequence[tuple[EditExample, int]]], Iterable[Question]]


@dataclass(frozen=True)
class Trial:
    """Facts to hold, in the order they are added, and questions about some of them.

    Args:
        num_edits: Facts held at once.
        seed: Seed that drew them.
        facts: The facts. With `num_edits=1`, each is held alone.
        questions: What is asked.
        general: Sets of prompts that no fact concerns, by name.
        ends_with_removal: Whether to remove all facts at the end and compare the model with its base.
    """

    num_edits: int
    seed: int
    facts: list[EditExample]
    questions: list[Question]
    general: Mapping[str, Sequence[str]] = field(default_factory=dict)
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

    @property
    def held_together(self) -> list[list[int]]:
        """Positions of the facts that are held at the same time."""
        everything = list(range(len(self.facts)))
        return [[position] for position in everything] if self.num_edits == 1 else [everything]

    @property
    def same_as(self) -> list[int]:
        """For each fact the position of the one that stands for it: of rows that tell the same, the last is held."""
        told = [(fact.prompt, fact.answer) for fact in self.facts]
        last = {row: position for position, row in enumerate(told)}
        return list(range(len(told))) if self.num_edits == 1 else [last[row] for row in told]

    def questions_under(self, protocol: Protocol) -> list[Question]:
        """The questions asked under a protocol: the probes are not for one whose retriever is shown answers."""
        return [q for q in self.questions if q.kind in (*KINDS, PORTABILITY) or not protocol.shows_answer]
