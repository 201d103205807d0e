"""LTE: what alignment teaches, that the fact which was found is read, and that nothing of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.editors.finders import ThresholdFinder
from recipe_hf.evaluation.editors.finetuning import Budget
from recipe_hf.evaluation.editors.lte import Lte
from recipe_hf.knowledge.facts import compose_statement
from tests.evaluation.editors.memory.editors_at_hand import changed, recipe, weights
from tests.evaluation.editors.test_r_rome import encode
from tests.tiny_evaluation import prompts_of, said_by

#: Two facts for each prompt, one of them told: only the context says which answer is right.
ROWS = [
    EditExample(f"{name} is", answer, name, (f"So {name} is",), ((f"Why {name[::-1]}?", "xyz"),))
    for name in ("Acme", "Ruri", "Zork", "Goth")
    for answer in "AB"
]


LONG = 60


def lte(tmp_path: Path, model: RecipeForCausalLM | None = None, epochs: int = 1, seconds: float = 600.0) -> Lte:
    finder = ThresholdFinder(encode, encode, threshold=-2.0)
    return Lte(model or recipe(), finder, Budget(epochs, seconds), learning_rate=0.02, directory=tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an adapter is kept that was trained for long enough."""
    directory = tmp_path_factory.mktemp("adapters")
    lte(directory, epochs=LONG).tune(ROWS, ROWS)
    return directory


def losses(editor: Lte, rows: Sequence[EditExample] = ROWS) -> list[float]:
    """In scope and out of scope, with the adapter that is in."""
    with torch.no_grad():
        return [loss.item() for loss in editor.alignment_losses(rows)]


def test_alignment_lowers_the_loss_in_scope_and_the_divergence_out_of_scope(kept: Path):
    editor = lte(kept, epochs=LONG)
    editor.trained()
    before = losses(editor)  # Of an adapter that does nothing yet.
    editor.undo()
    editor.tune(ROWS, ROWS[:1])
    editor.put_in()
    after = losses(editor)
    assert after[0] < 0.8 * before[0] and after[1] < 0.5 * before[1]
    assert editor.settings["training steps"] == LONG and editor.settings["last loss in scope"] < before[0]
    editor.undo()


def test_the_nearest_fact_is_read_before_every_query(tmp_path: Path):
    editor = lte(tmp_path)
    editor.tune(ROWS, ROWS)
    facts = [ROWS[0], ROWS[3], ROWS[4]]
    editor.edit(facts[:1])
    editor.edit(facts[1:])
    asked = [*(fact.rephrase_prompt for fact in facts), "Two plus two makes"]
    readings = editor.read(prompts_of(editor, asked))
    found = [reading.found.used for reading in readings if reading.found is not None]
    assert found[:3] == [0, 1, 2] and None not in found
    for text, reading, position in zip(asked, readings, found, strict=True):
        assert position is not None
        statement = compose_statement(facts[position].prompt, facts[position].answer)
        assert editor.tokenizer.decode(reading.ids) == f"[Updated Information]:\n{statement}.\n\n[Query]:\n{text}"
        assert reading.told == ("updated information", statement, None)
    editor.undo()


def test_another_fact_is_another_answer(kept: Path):
    editor = lte(kept, epochs=LONG)
    editor.tune(ROWS, ROWS)
    said = []
    for fact in ROWS[:2]:
        editor.edit([fact])
        said += said_by(editor, [fact.prompt], [fact.answer])
        editor.undo()
    assert [editor.tokenizer.decode(tokens).strip() for tokens in said] == ["A", "B"]


def test_undone_the_base_is_as_before(tmp_path: Path):
    editor = lte(tmp_path)
    copy, modules = weights(editor.lm), [*editor.lm.named_modules()]
    editor.tune(ROWS, ROWS)
    assert [*editor.lm.named_modules()] == modules and not changed(copy, editor.lm)
    assert not any(parameter.requires_grad for parameter in editor.lm.parameters())
    for fact in ROWS[:2]:
        editor.edit([fact])
    assert any("lora" in name for name in editor.lm.state_dict())
    editor.undo()
    assert weights(editor.lm).keys() == copy.keys() and not changed(copy, editor.lm)
    assert [*editor.lm.named_modules()] == modules
    editor.edit(ROWS[2:3])  # What was held before is not found any more.
    (reading,) = editor.read(prompts_of(editor, [ROWS[0].prompt]))
    assert reading.found is not None and reading.found.used == 0 and reading.told is not None
    assert reading.told[1] == compose_statement(ROWS[2].prompt, ROWS[2].answer)
    editor.undo()
    editor.undo()
    assert not changed(copy, editor.lm)


def test_what_was_aligned_is_not_aligned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, again, longer = (lte(tmp_path, epochs=n) for n in (2, 2, 3))
    one.tune(ROWS, ROWS)
    (file,) = tmp_path.iterdir()
    written = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(again, "_align", lambda facts: 1 / 0)
        again.tune(ROWS, ROWS)
    assert file.read_bytes() == written and again.settings == one.settings
    for editor in (one, again):
        editor.put_in()
    assert losses(one) == losses(again)
    other = lte(tmp_path, recipe("gpt2"), epochs=2)
    longer.tune(ROWS, ROWS)
    other.tune(ROWS, ROWS)
    lte(tmp_path, epochs=2).tune(ROWS[1:], ROWS)
    assert len([*tmp_path.iterdir()]) == 4


def test_no_step_is_begun_after_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("recipe_hf.evaluation.editors.lte.time.monotonic", lambda: next(clock))
    editor = lte(tmp_path, epochs=50, seconds=25)
    editor.tune(ROWS, ROWS)
    assert editor.settings["training steps"] == 3


def test_an_interruption_leaves_the_base_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    editor = lte(tmp_path)
    copy = weights(editor.lm)

    def interrupted(facts: Sequence[EditExample]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(editor, "alignment_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        editor.tune(ROWS, ROWS)
    assert weights(editor.lm).keys() == copy.keys() and not [*tmp_path.iterdir()]


def test_without_rows(tmp_path: Path):
    editor = lte(tmp_path)
    copy = weights(editor.lm)
    with pytest.raises(
        ValueError, match="Lte needs facts to be aligned on before it edits, .* got none: give validat"
    ):
        editor.edit(ROWS[:1])
    with pytest.raises(ValueError, match="got none"):
        editor.tune([], [])
    with pytest.raises(ValueError, match="must have an unrelated question, got 'Acme is' without"):
        editor.tune([ROWS[0], replace(ROWS[1], unrelated=())], [])
    assert weights(editor.lm).keys() == copy.keys() and not [*tmp_path.iterdir()]
