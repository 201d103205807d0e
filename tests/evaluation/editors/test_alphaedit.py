"""AlphaEdit: its change lies in the null space of the preserved keys, and spares those of earlier facts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.editors.alphaedit import AlphaEdit
from tests.evaluation.editors.memory.editors_at_hand import FACTS, SHORT, changed, key_text, recipe, weights


def editor_at(tmp_path: Path, **kwargs: object) -> AlphaEdit:
    # Fewer keys than they are wide: the rest of the space is theirs to be edited.
    return AlphaEdit(recipe(num_layers=3), 0, key_text(tmp_path, num_tokens=40), 2, **(SHORT | kwargs))


def test_preserved_keys_give_what_they_gave(tmp_path: Path):
    editor = editor_at(tmp_path, null_space=1e-7)
    text = editor.moments.text.file.read_text()[:40]
    layer = editor.layers[0]
    keys: list[torch.Tensor] = []
    handle = layer.down.register_forward_hook(lambda m, args, output: keys.append(args[0][0]))
    editor.lm(editor.tokenizer(text, return_tensors="pt")["input_ids"])
    handle.remove()
    copy, before = weights(editor.lm), [at.weight().clone() for at in editor.layers]
    editor.edit(FACTS)
    assert len(changed(copy, editor.lm)) == 2
    change = layer.weight() - before[0]
    assert (change @ keys[0].T).norm() < 1e-4 * change.norm() * keys[0].norm()
    facts = editor.keys(layer, FACTS)
    assert (change @ facts.T).norm() > 0.05 * change.norm() * facts.norm()
    for at, weight in zip(editor.layers, before, strict=True):
        projection, change = editor.projection(at), at.weight() - weight
        assert torch.allclose(projection @ projection, projection, atol=1e-5)
        assert torch.allclose(change @ projection, change, atol=1e-4 * change.abs().max().item())
    rank = torch.linalg.matrix_rank(keys[0])
    assert editor.settings["null space"]["0"] == f"{64 - rank} of 64"
    editor.undo()
    assert not changed(copy, editor.lm)


def test_the_change_solves_its_least_squares(tmp_path: Path):
    editor = editor_at(tmp_path, ridge=0.5)
    layer = editor.layers[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        keys, residual, earlier = torch.randn(64, 3), torch.randn(32, 3), torch.randn(64, 5)
    editor._earlier[0] = earlier @ earlier.T
    change = editor.change(layer, keys, residual)
    (moments,) = editor.moments.get([0])
    a = 0.5 * moments.second.diagonal().mean()
    p = editor.projection(layer)
    # min |D~ P K - R|^2 + |D~ P K_p|^2 + a |D~ P|^2, and D = D~ P (eq. 10).
    both = torch.cat([p @ keys, p @ earlier, a.sqrt() * p], 1).double()
    targets = torch.cat([residual, torch.zeros(32, 5 + 64)], 1).double()
    expected = torch.linalg.lstsq(both.T, targets.T, rcond=1e-5, driver="gelsd").solution.T @ p.double()
    assert torch.allclose(change.double(), expected, atol=1e-4)


def test_later_facts_spare_earlier_ones(tmp_path: Path):
    moved = []
    for remembers in (True, False):
        editor = editor_at(tmp_path, ridge=1e-3)
        layer = editor.layers[0]
        editor.edit(FACTS[:1])
        key = editor.keys(layer, FACTS[:1])[0]
        assert torch.allclose(editor._earlier[0], torch.outer(key, key), atol=1e-4)
        if not remembers:
            editor._earlier = {}
        value = layer.weight() @ key
        editor.edit(FACTS[1:2])
        moved.append((layer.weight() @ key - value).norm().item())
        editor.undo()
        assert not editor._earlier
    assert moved[0] < 0.2 * moved[1]


@pytest.mark.parametrize(("name", "value"), [("null_space", 0.0), ("ridge", -1.0), ("num_layers", 0)])
def test_what_must_be_above_zero(name: str, value: float, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        AlphaEdit(recipe(), text=key_text(tmp_path), **{name: value})
