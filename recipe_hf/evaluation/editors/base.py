"""The interface of a knowledge editor, and the simplest one, which edits nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...datasets import EditExample
from ...modeling.places import prompt_places
from ...teacher_forcing import tokenize_rows
from ..saying import Prefix, predict_answers, write_on

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


@dataclass(frozen=True)
class Inputs:
    """What the language model reads in place of prompts.

    Args:
        texts: The text of each prompt, with whatever was added to it.
        prefix: Embeddings to prefix each text with, `[n, l, d_llm]`, and which of them are there, bool `[n, l]`.
        used: For each prompt, the position among the edited facts of the one it was found to ask for, if any.
    """

    texts: list[str]
    prefix: Prefix | None = None
    used: list[int | None] | None = None


class Editor(ABC):
    """A way to make a language model say given facts. To compare one more, implement `edit` and what differs.

    Args:
        model: Brings the language model, `lm`, and its `tokenizer`; the rest of it is for editors of RECIPE.
    """

    def __init__(self, model: RecipeForCausalLM) -> None:
        self.model = model
        self.lm: Any = model.lm
        self.tokenizer: Any = model.tokenizer
        #: What readers of the figures must know: thresholds, steps, rates.
        self.settings: dict[str, Any] = {}

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:  # noqa: B027
        """Chooses thresholds and the like, on `asked`, some of the `facts`: rows kept for that. Time is not taken."""

    @abstractmethod
    def edit(self, facts: Sequence[EditExample]) -> None:
        """Takes the facts in, all at once."""

    def undo(self) -> None:  # noqa: B027
        """Leaves the language model as it was."""

    def inputs(self, prompts: Sequence[str]) -> Inputs:
        """What the language model reads in place of `prompts`: these alone, if weights or activations are edited."""
        return Inputs(list(prompts))

    def predict(self, inputs: Inputs, answers: Sequence[str]) -> list[list[int]]:
        """The most likely token at each position of each answer, all tokens before it being given."""
        rows = tokenize_rows(self.tokenizer, inputs.texts, answers, self.model.config.prompt_position)
        return predict_answers(self.lm, rows, inputs.prefix)

    def write(self, inputs: Inputs, lengths: Sequence[int], **kwargs: Any) -> list[list[int]]:
        """Greedy output, at most as many tokens as `lengths` says."""
        ids = self.tokenizer(inputs.texts)["input_ids"]
        behind = prompt_places(self.tokenizer, ids, self.model.config.prompt_position)
        return write_on(self.lm, ids, lengths, inputs.prefix, behind, **kwargs)


class Unedited(Editor):
    """The base: what all others are measured against."""

    def edit(self, facts: Sequence[EditExample]) -> None:
        pass
