"""One fact of a knowledge editing data set, with the questions that test an edit of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EditExample:
    """One fact to edit in, with questions that it must reach and questions that it must leave alone.

    Args:
        prompt: Text that the answer continues.
        answer: What the edited model must answer, without leading space.
        subject: What the fact is about; empty if the data do not say.
        rephrasings: Other ways to ask for the same fact (generality); empty if the data have none.
        unrelated: Pairs of an unrelated question and its answer, which must not change (locality).
        portability: For each kind of inference, pairs of a question that follows from the fact and the answers that
            are all right.
        ground_truth: The answer before the edit; empty if the data do not say.
        unrelated_is_made_up: Whether `unrelated` was taken from another fact, as the data have none for this one.
        unrelated_kinds: The kind of each pair in `unrelated`, where the data name it; otherwise empty.
    """

    prompt: str
    answer: str
    subject: str = ""
    rephrasings: tuple[str, ...] = ()
    unrelated: tuple[tuple[str, str], ...] = ()
    portability: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = field(default_factory=dict, hash=False)
    ground_truth: str = ""
    unrelated_is_made_up: bool = False
    unrelated_kinds: tuple[str, ...] = ()

    @property
    def rephrase_prompt(self) -> str:
        """The first rephrasing, or the prompt itself if there is none."""
        return self.rephrasings[0] if self.rephrasings else self.prompt

    @property
    def locality_prompt(self) -> str:
        """The first unrelated question. An example that was loaded from a file always has one."""
        return self.unrelated[0][0]

    @property
    def locality_answer(self) -> str:
        """The answer to the first unrelated question."""
        return self.unrelated[0][1]


def split_half(examples: Sequence[EditExample], seed: int = 0) -> tuple[list[EditExample], list[EditExample]]:
    """Splits examples at random into a training half and a held-out half, both in the order of `examples`.

    The training half lacks what the held-out half asks too: of rows with the same prompt in both, it loses its own.

    >>> training, held_out = split_half([EditExample(f"The home of S{i} is", "Oslo") for i in range(6)])
    >>> [example.prompt for example in held_out]
    ['The home of S1 is', 'The home of S2 is', 'The home of S4 is']
    """
    numbers = range(len(examples))
    chosen = set(random.Random(seed).sample(numbers, len(examples) // 2))
    held_out = [examples[i] for i in numbers if i not in chosen]
    prompts = {example.prompt for example in held_out}
    return [examples[i] for i in numbers if i in chosen and examples[i].prompt not in prompts], held_out
