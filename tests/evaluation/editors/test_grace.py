"""GRACE against the paper's algorithm, key by key and row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipe_hf.evaluation.editors.finetuning import Budget
from recipe_hf.evaluation.editors.grace import Grace
from tests.tiny_evaluation import EXAMPLES as LONG
from tests.tiny_evaluation import said_by, written_by
from tests.tiny_recipe import UNRELATED, tiny_base, tiny_recipe

# One vector cannot make a tiny model say a whole name byte by byte. After a line's end, an answer has no space.
EXAMPLES = [replace(example, prompt=f"{example.prompt}\n", answer=example.answer[0]) for example in LONG]
PROMPTS = [example.prompt for example in EXAMPLES]
ANSWERS = [example.answer for example in EXAMPLES]
ASKED = [*PROMPTS, *UNRELATED]
EXPECTED = [*ANSWERS, "four", "a", "100 degrees", "x", "y z"]


def grace(radius: float = 0.5, epochs: int = 60) -> Grace:
    model = tiny_recipe(base=tiny_base(num_hidden_layers=4))
    return Grace(model, Budget(epochs=epochs), layer=1, radius=radius, learning_rate=0.3)


def answer_ids(editor: Grace, text: str, answer: str) -> list[int]:
    answer = answer if text.endswith("\n") else f" {answer}"
    return editor.tokenizer(answer, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def slow(editor: Grace, text: str, answer: str) -> list[int]:
    """One row without padding; the layer's output at the prompt's last token is replaced by hand."""
    prompt = editor.tokenizer(text)["input_ids"]
    ids = prompt + answer_ids(editor, text, answer)

    def replace_output(layer, args, kwargs, output):
        read = args[0] if args else kwargs["hidden_states"]
        distances = (editor.keys - read[0, len(prompt) - 1]).norm(dim=1)
        nearest = int(distances.argmin())
        if distances[nearest] <= editor.radii[nearest]:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[0, len(prompt) - 1] = editor.values[nearest]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        return None

    handle = editor.layer.register_forward_hook(replace_output, with_kwargs=True)
    logits = editor.lm(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    handle.remove()
    return logits[len(prompt) - 1 : -1]


def test_edits_are_said_and_others_left_alone():
    editor = grace()
    unedited = [slow_base(editor, text, answer) for text, answer in zip(ASKED, EXPECTED, strict=True)]
    editor.edit(EXAMPLES)
    said = said_by(editor, ASKED, EXPECTED)
    assert said == [slow(editor, text, answer) for text, answer in zip(ASKED, EXPECTED, strict=True)]
    answers = [answer_ids(editor, *asked) for asked in zip(PROMPTS, ANSWERS, strict=True)]
    right = [said[i] == answers[i] for i in range(4)]
    assert sum(right) == editor.settings["learned"] >= 3
    assert said[:4] != unedited[:4] and said[4:] == unedited[4:]
    assert editor.settings["keys"] == 4 and 0 < editor.settings["epochs"] <= 60
    written = written_by(editor, ASKED, [2] * len(ASKED))
    assert [written[i][:1] for i in range(4) if right[i]] == [answers[i] for i in range(4) if right[i]]
    assert written == [written_by(editor, [text], [2])[0] for text in ASKED]


@torch.no_grad()
def slow_base(editor: Grace, text: str, answer: str) -> list[int]:
    prompt = editor.tokenizer(text)["input_ids"]
    ids = prompt + answer_ids(editor, text, answer)
    return editor.lm(torch.tensor([ids])).logits[0].argmax(-1).tolist()[len(prompt) - 1 : -1]


def test_undone_it_is_the_base():
    editor = grace()
    editor.edit(EXAMPLES)
    editor.undo()
    hooks = editor.layer._forward_hooks
    assert not hooks
    said = said_by(editor, ASKED, EXPECTED)
    assert said == [slow_base(editor, text, answer) for text, answer in zip(ASKED, EXPECTED, strict=True)]


def test_keys_that_meet_share_the_way_between_them_or_become_one():
    editor = grace(radius=1.0)
    keys = torch.tensor([[0.0, 0.0], [1.5, 0.0], [10.0, 0.0], [11.2, 0.0], [30.0, 0.0]])
    assert editor._place(keys, ["a", "b", "c", "c", "d"]) == [0, 1, 2, 4]
    # The second is nearer than both radii to another answer; the fourth widens the third, whose answer it has.
    assert editor.radii.tolist() == pytest.approx([0.75, 0.75, 1.2, 1.0])


def test_the_same_prompt_told_twice_is_one_key_or_two_of_no_width():
    editor = grace(epochs=1)
    editor.edit([EXAMPLES[0], replace(EXAMPLES[0])])
    assert len(editor.keys) == 1
    editor.undo()
    editor.edit([EXAMPLES[0], replace(EXAMPLES[0], answer="Bo")])
    assert len(editor.keys) == 2 and editor.radii.tolist() == pytest.approx([0, 0], abs=1e-4)


def test_the_radius_is_tuned_between_rephrasings_and_unrelated_questions():
    editor = grace()
    rows = [
        replace(e, rephrasings=(e.prompt,), unrelated=((u, "x"),)) for e, u in zip(EXAMPLES, UNRELATED, strict=False)
    ]
    editor.tune(rows, rows)
    keys = editor._activations(PROMPTS)[0]
    distances = torch.cdist(editor._activations(UNRELATED[:4])[0], keys).min(1).values
    assert editor.radius == pytest.approx(distances.min().item() / 2, rel=0.01)
    assert editor.settings["radius"] == editor.radius


def test_time_is_shared_among_batches(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr("recipe_hf.evaluation.editors.grace.time.monotonic", lambda: next(clock))
    editor = grace()
    editor.edit(EXAMPLES)
    assert editor.settings["epochs"] == 2 and editor.settings["of at most"] == 60


def test_unknown_layer():
    with pytest.raises(ValueError, match="layer must be between 0 and 1, got 2"):
        Grace(tiny_recipe(), Budget(), layer=2)


def test_facts_edited_in_one_after_the_other_are_all_held():
    together, after = grace(), grace()
    together.edit(EXAMPLES)
    for example in EXAMPLES:
        after.edit([example])
    assert torch.allclose(after.keys, together.keys, atol=1e-5)
    assert after.radii.tolist() == pytest.approx(together.radii.tolist(), abs=1e-4)
    answers = [answer_ids(after, *asked) for asked in zip(PROMPTS, ANSWERS, strict=True)]
    assert sum(a == b for a, b in zip(said_by(after, PROMPTS, ANSWERS), answers, strict=True)) >= 3
