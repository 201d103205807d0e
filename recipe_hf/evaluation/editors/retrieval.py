"""Editors that find a fact for a prompt and tell it to the model: RECIPE, its ablations, and text in the context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ...datasets import EditExample
from ...modeling.text_prompts import as_text, text_places
from .editor import Editor, Prefix, Prompt, Reading
from .finders import Finder, SentinelFinder

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: What a prompt is told: the tokens that are then read, and what tells them and the prefix from others.
Told = tuple[list[int], tuple[str | None, ...]]


class Teller(ABC):
    """A way to tell a found fact: by what the language model reads, or by a prefix.

    Args:
        model: The model.
    """

    def __init__(self, model: RecipeForCausalLM) -> None:
        self.model = model
        self.tokenizer: Any = model.tokenizer

    @abstractmethod
    def tell(self, prompt: Prompt, statement: str, answer: str | None) -> Told:
        """Tells a prompt a fact: its statement, and its answer if that is known."""

    def prefix(self, readings: Sequence[Reading]) -> Prefix | None:
        """As that of an editor; the payload of a reading is the fact's key."""
        return None


class ByPrompts(Teller):
    """By prompts, as the model tells facts: continuous ones of statement and answer (eq. 7), or else hidden text."""

    with_answers = True

    def tell(self, prompt: Prompt, statement: str, answer: str | None) -> Told:
        told = (statement, answer if self.with_answers else None)
        if self.model.config.prompt_form == "continuous":
            return prompt.ids, told
        place = int(text_places(self.tokenizer, torch.tensor([prompt.ids]), None, [0]))
        text = self.tokenizer(as_text(statement), add_special_tokens=False)["input_ids"]
        return prompt.ids[:place] + text + prompt.ids[place:], told

    @torch.no_grad()
    def prefix(self, readings: Sequence[Reading]) -> Prefix | None:
        if self.model.config.prompt_form == "text":
            return None
        keys = torch.stack([reading.payload for reading in readings])
        return self.model.continuous_prompts(keys, [reading.told[1] for reading in readings if reading.told])


class ByStatementPrompts(ByPrompts):
    """By prompts of the statement alone, as in the paper."""

    with_answers = False


class InContext(Teller):
    """By the statement, as text, on a line before the prompt."""

    def tell(self, prompt: Prompt, statement: str, answer: str | None) -> Told:
        return self.tokenizer(f"{statement}.\n{prompt.text}")["input_ids"], ("in the context", statement, None)


class ByWordEmbeddings(Teller):
    """By the word embeddings of the statement in place of continuous prompts (ablation of the paper's Table 4)."""

    def tell(self, prompt: Prompt, statement: str, answer: str | None) -> Told:
        return prompt.ids, ("word embeddings", statement, None)

    @torch.no_grad()
    def prefix(self, readings: Sequence[Reading]) -> Prefix | None:
        texts = [f"{reading.told[1]}." for reading in readings if reading.told]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        rows = [torch.tensor(tokens, device=self.model.device) for tokens in ids]
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
        return self.model.get_input_embeddings()(pad_sequence(rows, batch_first=True)), mask


class RetrievalEditor(Editor):
    """Finds the fact that a prompt asks for, and tells it to the model, whose weights stay as they are.

    Args:
        model: The model.
        finder: What finds it.
        teller: How it is told.
    """

    def __init__(self, model: RecipeForCausalLM, finder: Finder, teller: Teller) -> None:
        super().__init__(model)
        self.finder = finder
        self.teller = teller

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        self.finder.tune(facts, asked)
        if self.finder.threshold is not None:
            self.settings["threshold"] = self.finder.threshold

    def edit(self, facts: Sequence[EditExample]) -> None:
        self.finder.hold(facts)

    def undo(self) -> None:
        self.finder.release()

    def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        hits = self.finder.find([prompt.query for prompt in prompts])
        used = sorted({hit.found.used for hit in hits if hit.found.used is not None})
        keys = dict(zip(used, self.finder.keys(used), strict=True)) if used else {}
        readings = []
        for prompt, (found, statement, answer) in zip(prompts, hits, strict=True):
            if found.used is None:
                readings.append(Reading(prompt.ids, found=found))
            else:
                ids, told = self.teller.tell(prompt, statement, answer)
                readings.append(Reading(ids, told, found, payload=keys[found.used]))
        return readings

    def prefix(self, readings: Sequence[Reading]) -> Prefix | None:
        return self.teller.prefix(readings)


def recipe(model: RecipeForCausalLM, as_statements: bool = False) -> RetrievalEditor:
    """RECIPE, as a model of it is used.

    Args:
        model: The model. Its knowledge is the same afterwards.
        as_statements: Whether facts are told as whole statements, so that their continuous prompts are made of these
            alone, as in the paper, also if the model makes prompts of answers.
    """
    return RetrievalEditor(model, SentinelFinder(model, as_statements), ByPrompts(model))
