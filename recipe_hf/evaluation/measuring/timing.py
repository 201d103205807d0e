"""How long edits and answers take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import torch

from ..asking.saying import write
from ..editors.editor import Editor, Prompt

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

TIMED_PROMPTS = 8
TIMED_TOKENS = 16


@contextmanager
def remembering(model: RecipeForCausalLM, queries: int) -> Iterator[None]:
    """Lets the model remember so many queries: none where it is timed, all where they are asked with other facts."""
    own, model.query_cache_size = model.query_cache_size, queries
    try:
        yield
    finally:
        model.query_cache_size = own


@contextmanager
def stopwatch(times: list[float]) -> Iterator[None]:
    """Adds to `times` how many milliseconds the block takes."""
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times.append(1000 * (time.perf_counter() - started))


@dataclass
class Times:
    """Milliseconds that an editor takes in a trial.

    Attributes:
        edits: Of each call of `edit`.
        answers: To look an edited fact's prompt up and write on by `TIMED_TOKENS` tokens, one prompt at a time.
    """

    edits: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)

    def time_answers(self, editor: Editor, prompts: Sequence[str]) -> None:
        """Times answers to the prompts, as long as there are not enough of them."""
        with remembering(editor.model, 0):  # An earlier editor may have asked.
            for prompt in prompts[: 1 + TIMED_PROMPTS - len(self.answers)]:
                with stopwatch(self.answers):
                    readings = editor.read([Prompt(prompt, editor.tokenizer(prompt)["input_ids"], prompt)])
                    write(editor, readings, [TIMED_TOKENS], min_new_tokens=TIMED_TOKENS)

    @property
    def answer(self) -> float:
        """The median of all answers but the first, which is to warm up."""
        return median(self.answers[1:] or self.answers)
