"""A trial: an editor takes facts in, together or one at a time, is asked about them, and lets them go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ...datasets import EditExample
from ..asking.answers import Answers
from ..asking.protocols import find_protocol
from ..asking.trials import Trial
from ..editors.editor import Editor, Unedited
from ..editors.retrieval import recipe
from .asked import AskedQuestions, GeneralPrompts
from .metrics import EditingReport
from .timing import Times, stopwatch

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

__all__ = ["edited", "evaluate_editing", "run_trial"]

_PROMPTS_AFTER_REMOVAL = 64


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
    trial = Trial.draw(examples, num_edits, seed, num_questions, every=portability, beside=beside)
    with tqdm(total=len(trial.questions), desc="questions", disable=not progress, unit="row") as bar:
        return run_trial(recipe(model, as_statements), trial, [protocol], Answers(batch_size), bar)[0]


@contextmanager
def edited(editor: Editor, facts: Sequence[EditExample], times: Times | None = None) -> Iterator[None]:
    """Within it, an editor holds facts. How long it took to take them in goes to `times`."""
    size = editor.facts_at_once or max(1, len(facts))
    try:
        for start in range(0, max(1, len(facts)), size):
            with stopwatch([] if times is None else times.edits):
                editor.edit(facts[start : start + size])
        yield
    finally:
        editor.undo()


def run_trial(
    editor: Editor,
    trial: Trial,
    protocols: Sequence[str],
    answers: Answers,
    bar: tqdm | None = None,
    times: Times | None = None,
) -> list[EditingReport]:
    """Asks the questions of a trial under each protocol; the facts are edited in once.

    Args:
        editor: The editor. It has undone everything afterwards.
        trial: The facts and questions.
        protocols: Names of the protocols.
        answers: What the unedited language model said before, and under editors that leave it as it is.
        bar: Advances by the number of questions under each protocol.
        times: Takes what edits and answers took, if it is wanted.
    """
    asked = {name: AskedQuestions(editor, trial, name) for name in protocols}
    if editor.changes_model:
        for questions in asked.values():
            answers.ask(Unedited(editor.model), questions.of_base())
    general = {name: GeneralPrompts(editor, trial, texts) for name, texts in trial.general.items()}
    edits = [question for question in trial.questions if question.kind == "reliability"]
    equal = None
    for positions in trial.held_together:
        with edited(editor, [trial.facts[position] for position in positions], times):
            for texts in general.values():
                texts.look_up(positions)
            for questions in asked.values():
                questions.read(positions)
            if editor.changes_model:
                now = Answers(answers.batch_size)  # What it says while it holds these facts.
                for questions in asked.values():
                    questions.ask(now, positions, bar)
            if times is not None:
                held = set(positions)
                times.time_answers(editor, [q.text for q in edits if q.about in held])
            if trial.ends_with_removal and len(positions) > 1:
                prompts = [q.text for q in edits[:_PROMPTS_AFTER_REMOVAL]]
                equal = share_equal_after_removal(editor.model, prompts, answers.batch_size)
    if not editor.changes_model:
        for questions in asked.values():
            questions.ask(answers, range(len(trial.facts)), bar)
    temperature = editor.model.config.similarity_temperature
    fired = {name: found for name, texts in general.items() if (found := texts.fired) is not None}
    return [
        EditingReport(trial.num_edits, trial.seed, questions.outcomes(answers), name, equal, fired, temperature)
        for name, questions in asked.items()
    ]


@torch.no_grad()
def share_equal_after_removal(model: RecipeForCausalLM, prompts: Sequence[str], batch_size: int) -> float:
    """Removes all facts: the share of prompts whose logits are then, bit for bit, those of the base alone."""
    tokenizer: Any = model.tokenizer
    model.remove_knowledge([fact.id for fact in model.knowledge])
    equal = 0
    for start in range(0, len(prompts), batch_size):
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts[start : start + batch_size]]
        width = max(map(len, ids))
        batch = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
        kept: Any = {"input_ids": batch, "attention_mask": mask, "logits_to_keep": 1, "use_cache": False}
        equal += int((model(**kept).logits == model.lm(**kept).logits).flatten(1).all(1).sum())
    return equal / len(prompts)
