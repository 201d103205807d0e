"""Editors that train: what they learn, and that nothing of it stays."""

from __future__ import annotations

import builtins

import pytest
import torch

from recipe_hf.evaluation.editors import EDITORS, EditorOptions
from recipe_hf.evaluation.editors.editor import Editor
from recipe_hf.evaluation.editors.finetuning import Budget, FineTuning, LoRA
from recipe_hf.teacher_forcing import tokenize_rows
from tests.tiny_evaluation import EXAMPLES, said_by, written_by
from tests.tiny_recipe import PROMPTS, UNRELATED, tiny_recipe

ANSWERS = [example.answer for example in EXAMPLES]


def accuracy(editor: Editor) -> float:
    rows = tokenize_rows(editor.tokenizer, PROMPTS, ANSWERS)
    said = said_by(editor, PROMPTS, ANSWERS)
    pairs = [
        (a, b) for row, tokens in zip(rows, said, strict=True) for a, b in zip(row.answer_ids, tokens, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("kind", [FineTuning, LoRA])
def test_facts_are_learned_and_forgotten(kind: type[FineTuning]):
    model = tiny_recipe()
    editor = kind(model, Budget(epochs=60), learning_rate=0.003 if kind is FineTuning else 0.02)
    before = {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}
    said = said_by(editor, UNRELATED, ["a", "b", "c", "d", "e"])
    untrained = accuracy(editor)
    editor.edit(EXAMPLES)
    assert accuracy(editor) > max(0.9, untrained)
    assert editor.settings["epochs"] == 60 and editor.settings["last loss"] < 1
    assert written_by(editor, PROMPTS[:1], [3]) == [
        tokenize_rows(model.tokenizer, [""], ANSWERS[:1])[0].answer_ids[:3]
    ]
    editor.undo()
    after = model.lm.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in model.lm.parameters())
    assert said_by(editor, UNRELATED, ["a", "b", "c", "d", "e"]) == said


def test_lora_trains_the_adapter_alone():
    editor = LoRA(tiny_recipe(), Budget(epochs=1), rank=2)
    editor.edit(EXAMPLES[:1])
    trained = editor.settings["trained parameters"]
    assert 0 < trained < sum(p.numel() for p in editor.lm.parameters()) / 2
    editor.undo()


def test_no_epoch_is_begun_after_the_time(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("recipe_hf.evaluation.editors.finetuning.time.monotonic", lambda: next(clock))
    editor = FineTuning(tiny_recipe(), Budget(epochs=50, seconds=25))
    editor.edit(EXAMPLES[:1])
    assert (editor.settings["epochs"], editor.settings["of at most"]) == (2, 50)
    editor.undo()


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("seconds", -1.0)])
def test_a_budget_of_nothing(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        Budget(**{name: value})


def test_without_peft(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def fail(name: str, *args: object, **kwargs: object) -> object:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match=r"LoRA needs peft: install it with pip install 'recipe-hf\[compare\]'"):
        EDITORS["lora"].make(tiny_recipe(), EditorOptions())


@pytest.mark.parametrize("kind", [FineTuning, LoRA])
def test_undone_after_several_edits_the_base_is_as_before_the_first(kind: type[FineTuning]):
    model = tiny_recipe()
    editor = kind(model, Budget(epochs=2), learning_rate=0.01)
    before = {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}
    editor.undo()  # Nothing was edited in.
    for example in EXAMPLES[:2]:
        editor.edit([example])
    editor.undo()
    after = model.lm.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
