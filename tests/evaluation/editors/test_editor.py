"""What the contract asks of every editor that has a name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from recipe_hf.evaluation.asking.answers import Answers
from recipe_hf.evaluation.asking.trials import Trial
from recipe_hf.evaluation.editors import EDITORS, Editor, EditorOptions, Reading
from recipe_hf.evaluation.editors.finetuning import Budget
from recipe_hf.evaluation.editors.memory.values import ValueSearch
from recipe_hf.evaluation.measuring.editing import edited, run_trial
from recipe_hf.teacher_forcing import Row
from tests.tiny_evaluation import EXAMPLES, prompts_of, said_by, write_sentence_model
from tests.tiny_recipe import PROMPTS, UNRELATED, tiny_recipe

NAMES = list(EDITORS)
#: What editors that search or train take many steps for, cut short.
SHORT = {"search": ValueSearch(steps=2), "steps": 2, "_contexts": [""]}
ANSWERS = [example.answer for example in EXAMPLES] + ["a"] * len(UNRELATED)


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))


def sentence_model(name: str) -> str:
    if name not in ("context-minilm", "r-rome", "lte"):
        return "none"
    return str(write_sentence_model(Path(constants.HF_HOME), 0))


def made(name: str) -> Editor:
    model = tiny_recipe()
    model.add_knowledge(["Zork is a game."])
    file = Path(constants.HF_HOME) / "text.txt"
    file.write_text("Rivers run to the sea. " * 20, encoding="utf-8")
    options = EditorOptions(Budget(epochs=2), sentence_model(name), learning_rate=0.01, key_text=str(file))
    editor = EDITORS[name].make(model, options)
    for attribute in vars(editor).keys() & SHORT.keys():
        setattr(editor, attribute, SHORT[attribute])
    if EDITORS[name].is_tuned:
        editor.tune(EXAMPLES, EXAMPLES)
    return editor


def state(editor: Editor) -> list[Any]:
    """All that an edit may change: weights and whether they are trained, hooks, modules, and knowledge."""
    model = editor.model
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    weights = {
        name: (tensor.tolist(), tensor.requires_grad) for name, tensor in model.lm.state_dict(keep_vars=True).items()
    }
    return [[name for name, _ in model.named_modules()], hooks, weights, id(model.knowledge), list(model.knowledge)]


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_undone_after_edits_one_by_one(name: str):
    editor = made(name)
    before, said = state(editor), said_by(editor, [*PROMPTS, *UNRELATED], ANSWERS) if name in ("ft", "lora") else None
    editor.facts_at_once = 2
    with edited(editor, EXAMPLES):
        assert len(editor.read(prompts_of(editor, PROMPTS))) == 4
    assert state(editor) == before
    editor.undo()
    assert state(editor) == before
    assert said is None or said_by(editor, [*PROMPTS, *UNRELATED], ANSWERS) == said


@pytest.mark.parametrize("name", NAMES)
def test_what_is_undone_after_an_edit_that_fails(name: str, monkeypatch: pytest.MonkeyPatch):
    editor = made(name)
    before = state(editor)
    with pytest.raises(KeyboardInterrupt), edited(editor, EXAMPLES):
        raise KeyboardInterrupt
    assert state(editor) == before


@pytest.mark.parametrize("name", NAMES)
def test_only_an_editor_that_says_so_changes_the_model(name: str):
    editor = made(name)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return editor.lm(torch.tensor([editor.tokenizer(PROMPTS[0])["input_ids"]])).logits

    before = logits()
    with edited(editor, EXAMPLES), editor.answering([Row(editor.tokenizer(PROMPTS[0])["input_ids"], [])]):
        changed = not torch.equal(logits(), before)
    assert changed <= editor.changes_model
    assert torch.equal(logits(), before)


class Shouting(Editor):
    """Reads every prompt twice; what is read is not a fact."""

    def edit(self, facts):
        self.held = [*getattr(self, "held", []), len(facts)]

    def undo(self):
        self.gone, self.held = self.held, []

    def read(self, prompts):
        return [Reading(prompt.ids * 2, ("twice",)) for prompt in prompts]


def test_facts_come_in_the_order_and_number_that_an_editor_takes():
    editor = Shouting(tiny_recipe())
    editor.facts_at_once = 3
    (report,) = run_trial(editor, Trial.draw(EXAMPLES), ["strict"], Answers(3))
    assert editor.gone == [3, 1] and editor.held == []
    assert all(outcome.tokens_added == len(outcome.query) for outcome in report.outcomes)
    assert {outcome.is_right_fact for outcome in report.outcomes} == {None}
    assert set(report.metrics) == {"reliability", "generality", "locality"}
    twice = [replace(example, prompt=example.prompt * 2) for example in EXAMPLES]
    base = EDITORS["base"].make(editor.model, EditorOptions())
    (asked,) = run_trial(base, Trial.draw(twice), ["strict"], Answers(3))
    outputs = {outcome.query: outcome.output for outcome in asked.outcomes if outcome.kind == "reliability"}
    assert all(outputs[o.query * 2] == o.output for o in report.outcomes if o.kind == "reliability")
