"""WilKE: of the layers scanned, the one that changes least is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.editors.rome import Rome
from recipe_hf.evaluation.editors.wilke import Wilke
from tests.evaluation.editors.memory.editors_at_hand import FACTS, SHORT, changed, key_text, recipe, weights


def test_the_layer_chosen_minimises_the_criterion(tmp_path: Path):
    degrees, left = [], []
    for number in range(3):
        rome = Rome(recipe(num_layers=4), number, key_text(tmp_path), **SHORT)
        before = rome.layers[number].weight().clone()
        rome.edit(FACTS[:1])
        left.append(rome.layers[number].weight().clone())
        degrees.append(((left[-1] - before).norm() / before.norm()).item())
    best = min(range(3), key=degrees.__getitem__)
    editor = Wilke(recipe(num_layers=4), 3, key_text(tmp_path), **SHORT)
    copy = weights(editor.lm)
    editor.edit(FACTS[:1])
    assert changed(copy, editor.lm) == [f"{editor.layers[best].name}.mlp.down_proj.weight"]
    assert torch.allclose(editor.layers[best].weight(), left[best], atol=1e-5)
    assert editor.settings["facts by layer"] == [int(number == best) for number in range(3)]
    # The next is scanned in what the first left, wherever it goes.
    editor.edit(FACTS[1:])
    assert sum(editor.settings["facts by layer"]) == 3
    editor.undo()
    assert not changed(copy, editor.lm) and sum(editor.settings["facts by layer"]) == 3


def test_half_of_the_layers_are_scanned(tmp_path: Path):
    assert Wilke(recipe(num_layers=4), text=key_text(tmp_path)).settings["layers scanned"] == 2
    with pytest.raises(ValueError, match="num_scanned must be between 1 and 4, got 5"):
        Wilke(recipe(num_layers=4), 5, key_text(tmp_path))
