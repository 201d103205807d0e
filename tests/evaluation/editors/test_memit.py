"""MEMIT: the least squares of its closed form, and how what is missing is spread over layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipe_hf.evaluation.editors.memit import Memit
from recipe_hf.evaluation.editors.memory import stream
from recipe_hf.evaluation.editors.memory.values import ValueSearch, fact_lookups, find_value, read_at
from tests.evaluation.editors.memory.editors_at_hand import FACTS, SHORT, changed, key_text, recipe, weights


def test_the_change_solves_the_least_squares_of_old_and_new_keys(tmp_path: Path):
    editor = Memit(recipe(), 0, key_text(tmp_path), preserve=0.3, **SHORT)
    layer = editor.layers[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        keys, residual = torch.randn(64, 3), torch.randn(32, 3)
    change = editor.change(layer, keys, residual)
    (moments,) = editor.moments.get([0])
    old = torch.linalg.cholesky(0.3 * 64 * moments.regularized())
    both = torch.cat([old, keys.double()], 1)
    targets = torch.cat([torch.zeros(32, 64), residual], 1).double()
    expected = torch.linalg.lstsq(both.T, targets.T).solution.T
    assert torch.allclose(change.double(), expected, atol=1e-5)
    assert (change @ keys - residual).norm() < residual.norm()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "granite"])
def test_each_layer_takes_its_share_and_the_last_all_that_is_left(architecture: str, tmp_path: Path):
    model = recipe(architecture, 4)
    # Without old keys, and without contexts, the key of one fact takes what it is given.
    editor = Memit(model, 1, key_text(tmp_path), 3, preserve=1e-6, search=SHORT["search"], contexts=())
    fact, last = FACTS[0], editor.layers[2]
    z, _ = find_value(model.lm, last.module, model.tokenizer, fact, [""], editor.search)
    lookups = fact_lookups(model.tokenizer, fact, [""])
    before = read_at(model.lm, lookups, editor.layers, [last])
    copy = weights(model.lm)
    editor.edit([fact])
    assert editor.settings["layers"] == [0, 1, 2] and len(changed(copy, model.lm)) == 3
    after = read_at(model.lm, lookups, editor.layers, [last])
    scale = 0.25 if architecture == "granite" else 1.0
    missing = z - before["state", 2][0]
    given = scale * (after["value", 0] - before["value", 0])[0]
    assert (given - missing / 3).norm() < 2e-2 * missing.norm()
    assert (after["state", 2][0] - z).norm() < 2e-2 * missing.norm()
    editor.undo()
    assert not changed(copy, model.lm)


@pytest.mark.parametrize("architecture", ["gemma3", "olmo2"])
def test_a_norm_behind_the_mlp_is_reckoned_with(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def left(reckoned: bool) -> float:
        model = recipe(architecture, 3)
        with torch.no_grad():
            for layer in model.lm.model.layers:
                weight = layer.post_feedforward_layernorm.weight
                weight.copy_(torch.linspace(-0.8, 2, len(weight)) + (1 if architecture == "olmo2" else 0))
        # A small step, as a norm does not let through more than its own size.
        search = ValueSearch(steps=3, learning_rate=0.02)
        editor = Memit(model, 1, key_text(tmp_path), 1, preserve=1e-6, search=search, contexts=())
        z, _ = find_value(model.lm, editor.layers[1].module, model.tokenizer, FACTS[0], [""], editor.search)
        lookups = fact_lookups(model.tokenizer, FACTS[0], [""])
        missing = z - read_at(model.lm, lookups, [], [editor.layers[1]])["state", 1][0]
        if not reckoned:
            monkeypatch.setattr("recipe_hf.evaluation.editors.memit.to_values", lambda lm, layer, at, missing: missing)
        editor.edit(FACTS[:1])
        after = read_at(model.lm, lookups, [], [editor.layers[1]])["state", 1][0]
        return ((after - z).norm() / missing.norm()).item()

    assert left(True) < 0.7 * left(False)


def test_facts_of_a_batch_are_written_together(tmp_path: Path):
    model = recipe(num_layers=2)
    editor = Memit(model, 0, key_text(tmp_path), 2, preserve=1e-6, **SHORT)
    values = [
        find_value(model.lm, editor.layers[0].module, model.tokenizer, fact, editor.contexts, editor.search)[0]
        for fact in FACTS
    ]
    editor.num_layers = 1
    copy = weights(model.lm)
    keys = editor.keys(editor.layers[0], FACTS)
    before = keys @ editor.layers[0].weight().T
    lookups = [fact_lookups(model.tokenizer, fact, [""])[0] for fact in FACTS]
    missing = torch.stack(values) - read_at(model.lm, lookups, [], [editor.layers[0]])["state", 0]
    editor.edit(FACTS)
    after = keys @ editor.layers[0].weight().T
    assert torch.allclose(after - before, missing, atol=2e-2 * missing.abs().max().item())
    editor.undo()
    assert not changed(copy, model.lm)


@pytest.mark.parametrize(("layer", "written"), [(0, [0, 1, 2]), (3, [2, 3, 4]), (5, [2, 3, 4])])
def test_the_last_layer_is_not_written(layer: int, written: list[int], tmp_path: Path):
    editor = Memit(recipe(num_layers=6), layer, key_text(tmp_path), 3, **SHORT)
    assert [at.number for at in editor.written()] == written


@pytest.mark.parametrize(("name", "value"), [("num_layers", 0), ("preserve", -1.0)])
def test_what_must_be_above_zero(name: str, value: float, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        Memit(recipe(), text=key_text(tmp_path), **{name: value})


@pytest.mark.parametrize(("architecture", "factor"), [("gpt2", 1), ("granite", 4)])
def test_a_factor_before_the_stream_is_divided_by(architecture: str, factor: int, tmp_path: Path):
    editor = Memit(recipe(architecture), 0, key_text(tmp_path), **SHORT)
    lookups = fact_lookups(editor.tokenizer, FACTS[0], [""])
    missing = torch.linspace(-1, 1, 32)[None]
    found = stream.to_values(editor.lm, editor.layers[1], lookups, missing)
    assert torch.allclose(found, factor * missing, rtol=1e-3)


def test_the_nearest_vector_of_a_size():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gains, target, others = torch.rand(3, 32) + 0.1, 3 * torch.randn(3, 32), torch.randn(4000, 3, 32)
    size = torch.tensor([[1.0], [5.0], [300.0]])
    found = stream.nearest_of_size(gains, target, size)
    assert torch.allclose(found.norm(dim=-1, keepdim=True), size)
    distance = (gains * found - target).norm(dim=-1)
    near = found + 0.05 * size * others / 32**0.5
    near = size * near / near.norm(dim=-1, keepdim=True)
    assert ((gains * near - target).norm(dim=-1) >= distance - 1e-4 * distance).all()
