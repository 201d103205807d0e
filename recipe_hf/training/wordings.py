"""Other ways to ask than those of a data set: in other words, and about another property of a fact's subject."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..datasets import EditExample

PROPERTIES = Path(__file__).parent / "properties"
_MIN_FACTS = 3
_ATTEMPTS = 8


def template(prompt: str, subject: str) -> str:
    """The prompt with `{}` in the place of its subject."""
    return prompt.replace(subject, "{}") if subject else prompt


@functools.cache
def load_properties() -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """The table of properties (properties/README.md): its groups of wordings, and the names of each kind."""
    groups = [group for path in sorted(PROPERTIES.glob("*.yaml")) for group in _load(path)]
    names: dict[str, list[str]] = {}
    for path in sorted((PROPERTIES / "names").glob("*.yaml")):
        for kind, found in _load(path).items():
            names[kind] = [*names.get(kind, ()), *found]
    return groups, names


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class Wordings:
    """Texts that ask for one property of a subject ("The mother tongue of X is", "What is X's first language?").

    A prompt of several properties ("The owner of X is", of a company or a dog) has no other words.
    """

    def __init__(self) -> None:
        groups, _ = load_properties()
        counts = Counter(prompt for group in groups for prompt in group["prompts"])
        self._wordings = {
            prompt: [*group["prompts"], *group["questions"], *group.get("rephrasings", ())]
            for group in groups
            for prompt in group["prompts"]
            if counts[prompt] == 1
        }

    def draw(self, rng: np.random.Generator, example: EditExample) -> str | None:
        """One of the texts that ask for what the prompt of a fact asks for; `None` if none is known."""
        wordings = self._wordings.get(template(example.prompt, example.subject))
        # Not by format: a subject may have braces.
        return str(rng.choice(wordings)).replace("{}", example.subject) if wordings else None


class OtherProperties:
    """Questions about a fact's subject that ask for something else, made of the questions about other subjects.

    Two prompts that are the same but for the subject ask for one property. Two properties differ if no answer to one
    of them, before or after an edit, is an answer to the other.

    Args:
        examples: The facts whose prompts and unrelated questions are put to use.
    """

    def __init__(self, examples: Sequence[EditExample]) -> None:
        self._answers: dict[str, set[str]] = {}
        counts: dict[str, int] = {}
        for example in examples:
            asked = [(example.prompt, {example.answer, example.ground_truth})]
            asked += [(question, {answer}) for question, answer in example.unrelated]
            for question, answers in asked:
                if example.subject and example.subject in question:
                    found = template(question, example.subject)
                    counts[found] = counts.get(found, 0) + 1
                    self._answers.setdefault(found, set()).update(answers - {""})
        self._common = [found for found, count in counts.items() if count >= _MIN_FACTS]

    def draw(self, rng: np.random.Generator, example: EditExample) -> str | None:
        """A question about the subject of `example` and another property; `None` if none was found."""
        own = self._answers.get(template(example.prompt, example.subject))
        if not own or not self._common:
            return None
        for number in rng.integers(len(self._common), size=_ATTEMPTS):
            found = self._common[number]
            if self._answers[found].isdisjoint(own):
                return found.replace("{}", example.subject)
        return None
