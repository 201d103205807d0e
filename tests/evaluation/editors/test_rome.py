"""ROME: the inserted key gives the value, at the least cost to other keys, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.editors.memory.values import ValueSearch, fact_lookups, find_value, read_at
from recipe_hf.evaluation.editors.rome import Rome
from tests.evaluation.editors.memory.editors_at_hand import FACTS, SHORT, changed, key_text, recipe, weights


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "opt"])
def test_the_inserted_key_gives_the_value(architecture: str, tmp_path: Path):
    model = recipe(architecture)
    editor = Rome(model, 0, key_text(tmp_path), **SHORT)
    layer, fact = editor.layers[0], FACTS[0]
    key = read_at(model.lm, fact_lookups(model.tokenizer, fact, editor.contexts), [layer], [])["key", 0].mean(0)
    value, _ = find_value(model.lm, layer.down, model.tokenizer, fact, editor.contexts, editor.search)
    before, weight = weights(model.lm), layer.weight().clone()
    assert (layer.down(key) - value).norm() > 0.01 * value.norm()
    editor.edit([fact])
    assert (layer.down(key) - value).norm() <= 1e-5 * value.norm()
    # Of all changes that do so, the one that moves the values of other keys least: those of C = A A^T are A.
    change = layer.weight() - weight
    (moments,) = editor.moments.get([0])
    a = torch.linalg.cholesky(moments.regularized())
    right = torch.linalg.solve(a, key.double())
    least = torch.outer(change.double() @ key.double(), right / (right @ right))
    assert torch.allclose(change.double() @ a, least, atol=1e-4 * least.abs().max().item())
    assert changed(before, model.lm) == [
        f"{layer.name}.{ {'gpt2': 'mlp.c_proj', 'opt': 'fc2'}.get(architecture, 'mlp.down_proj') }.weight"
    ]
    editor.undo()
    assert not changed(before, model.lm)


def test_facts_are_written_in_order_into_what_was_written_before(tmp_path: Path):
    one, other, turned = (Rome(recipe(), 0, key_text(tmp_path), **SHORT) for _ in range(3))
    one.edit(FACTS[:2])
    other.edit(FACTS[:1])
    after_first = weights(other.lm)
    other.edit(FACTS[1:2])
    turned.edit(FACTS[1::-1])
    assert torch.equal(one.layers[0].weight(), other.layers[0].weight())
    assert changed(after_first, other.lm) and not torch.allclose(one.layers[0].weight(), turned.layers[0].weight())
    other.undo()
    assert not changed(weights(recipe().lm), other.lm)


def test_a_fact_is_said_and_said_no_more(tmp_path: Path):
    # The subject ends the prompt, and the answer is one byte: one vector of a random model cannot say more.
    fact = replace(FACTS[0], prompt="The CEO of Acme\n", subject="Acme\n", answer="A")
    editor = Rome(recipe(), 1, key_text(tmp_path), ValueSearch(steps=40), ((3, 2),))
    ids = torch.tensor([editor.tokenizer(fact.prompt)["input_ids"]])
    unedited = editor.lm(ids).logits[0, -1]
    editor.edit([fact])
    assert editor.tokenizer.decode(editor.lm(ids).logits[0, -1].argmax()) == "A"
    editor.undo()
    assert torch.equal(editor.lm(ids).logits[0, -1], unedited)


def test_the_layer_is_traced_on_the_rows_for_tuning(tmp_path: Path):
    editor = Rome(recipe(num_layers=3), text=key_text(tmp_path), **SHORT)
    editor.tune(FACTS, FACTS[1:])
    effects = editor.settings["indirect effects"]
    assert len(effects) == 3 and editor.settings["layer"] == editor.layer == max(range(2), key=effects.__getitem__)
    # The next is not traced anew.
    again = Rome(recipe(num_layers=3), text=key_text(tmp_path), **SHORT)
    handle = again.lm.get_input_embeddings().register_forward_pre_hook(lambda m, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        again.tune(FACTS, FACTS[:1])
    assert again._trace(FACTS[1:]) == (editor.layer, effects)
    handle.remove()
    before = weights(editor.lm)
    editor.edit([replace(FACTS[0], subject="")])
    (name,) = changed(before, editor.lm)
    assert (
        name.startswith(f"{editor.layers[editor.layer].name}.") and editor.settings["lookups at the last token"] == 1
    )


def test_without_subjects_the_layer_is_at_a_quarter_of_the_depth(tmp_path: Path):
    editor = Rome(recipe(num_layers=8), text=key_text(tmp_path), **SHORT)
    editor.tune([], [replace(fact, subject="") for fact in FACTS])
    assert editor.settings["layer"] == 2 and editor.settings["facts traced"] == 0
    named = Rome(recipe(num_layers=3), text=key_text(tmp_path), **SHORT)
    named.tune([], [replace(FACTS[0], subject=""), FACTS[1]])
    assert named.settings["facts traced"] == 1 and len(named.settings["indirect effects"]) == 3


def test_no_such_layer(tmp_path: Path):
    with pytest.raises(ValueError, match="layer must be between 0 and 1, got 2"):
        Rome(recipe(), 2, key_text(tmp_path))
