"""What a knowledge editor does to be measured: the contract between editors and the code that asks them.

An editor makes a language model say given facts. All are asked by the same code ([`~recipe_hf.evaluation.asking`]),
which alone calls the language model, teacher-forced or greedily. An editor either says what is to be read in place of
a prompt ([`Editor.read`]), or changes what the language model computes ([`Editor.edit`], `changes_model = True`), or
does both:

    class Mine(Editor):
        changes_model = True

        def edit(self, facts): ...
        def undo(self): ...

It gets its name for the command line in `registry.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ...datasets import EditExample
from ...teacher_forcing import Row

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: Embeddings to prefix each row's text with, `[B, l, d_llm]`, and which of them are there, bool `[B, l]`.
Prefix = tuple[Tensor, Tensor]


class Prompt(NamedTuple):
    """A prompt that is put to an edited model: its `text`, the `ids` of that, and the `query` that a retriever reads.

    The query is the text, unless the protocol shows the answer too, or a chat asks with its last message alone.
    """

    text: str
    ids: list[int]
    query: str


class Found(NamedTuple):
    """What an editor found for a prompt among the facts it holds.

    Args:
        used: Position of the fact that is used, counting all facts from the first one edited in; None if none is.
        nearest: Position of the best fact, used or not; None if nothing is held.
        score: How near it is.
        threshold: What `score` must exceed for the fact to be used, unless something else decides.
        probability: How likely it is the one asked for, by the editor's own estimate, if it has one.
    """

    used: int | None
    nearest: int | None
    score: float
    threshold: float
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What the language model reads for one prompt.

    Args:
        ids: The tokens of the prompt, with whatever is added to them.
        told: What a fact adds to the prompt, in plain values; None if nothing. Where an editor leaves the language
            model as it is, prompts of the same text that are told the same are answered alike, and asked once.
        found: What was found; None if the editor looks nothing up.
        payload: What `prefix` needs; of the editor alone.
    """

    ids: list[int]
    told: tuple[str | None, ...] | None = None
    found: Found | None = None
    payload: Any = field(default=None, repr=False)


class Editor(ABC):
    """A way to make a language model say given facts.

    The order of calls is `tune` (once, if there is something to choose), then any number of times `edit`, again and
    again, `read` with what is asked, and `undo`.

    Args:
        model: Brings the language model, `lm`, and its `tokenizer`; the rest of it is for editors of RECIPE.

    Attributes:
        settings: What readers of the figures must know: thresholds, steps, rates.
        changes_model: Whether the language model, called with the same tokens, answers otherwise after `edit`.
        facts_at_once: How many facts `edit` is given in a call, one call after the other; None for all in one.

    Raises:
        RuntimeError: If the model has no tokenizer of its base.
    """

    changes_model: bool = False
    facts_at_once: int | None = None

    def __init__(self, model: RecipeForCausalLM) -> None:
        if model.tokenizer is None:
            raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
        self.model = model
        self.lm: Any = model.lm
        self.tokenizer: Any = model.tokenizer
        self.settings: dict[str, Any] = {}

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:  # noqa: B027
        """Chooses thresholds and the like, or trains what is trained once, on rows kept for that.

        The language model is afterwards as it was. The time is not taken.

        Args:
            facts: Rows to hold, as many as will be edited in, or more.
            asked: Those among them that are asked about.
        """

    @abstractmethod
    def edit(self, facts: Sequence[EditExample]) -> None:
        """Takes facts in, together, on top of those of earlier calls. If it fails, `undo` is called all the same.

        Raises:
            ValueError: If a fact cannot be taken in; the message names it.
        """

    @abstractmethod
    def undo(self) -> None:
        """Lets go of all facts: weights, hooks and knowledge are, bit for bit, as before the first `edit`."""

    def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """What the language model reads for each prompt, in order: the prompt itself, unless something is added.

        Facts are held while it is asked. Where they do not change the model, `prefix` is asked after `undo` too.
        """
        return [Reading(prompt.ids) for prompt in prompts]

    def prefix(self, readings: Sequence[Reading]) -> Prefix | None:
        """What is put before each reading as embeddings, `[len(readings), l, d_llm]`, and their mask; None if nothing.

        Asked for readings that are told something. Gradients are off.
        """
        return None

    def answering(self, rows: Sequence[Row]) -> AbstractContextManager[Any]:
        """Context of one answer to a batch: one forward, or one `generate`.

        Args:
            rows: The tokens read, and those of the answer, in the order of the batch, which is padded on the left. A
                forward reads both, but the last token of the answer; `generate` begins with the former alone, and
                then `answer_ids` is empty. So the last token of a prompt is in column `-max(1, len(answer_ids))`.
        """
        return nullcontext()


class Unedited(Editor):
    """The base: what all others are measured against."""

    def edit(self, facts: Sequence[EditExample]) -> None:
        pass

    def undo(self) -> None:
        pass
