"""MEND and MALMEN: what a gradient is made of, what is solved, and that training teaches to edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.editors.malmen import Malmen, solve
from recipe_hf.evaluation.editors.memory.gradients import answer_loss, gradient_factors, updated
from recipe_hf.evaluation.editors.mend import Mend, Running
from recipe_hf.teacher_forcing import answer_logits, tokenize_rows
from tests.evaluation.editors.memory.editors_at_hand import FACTS, changed, recipe, weights

ROWS = [
    EditExample(f"{a}{b} is\n", answer, f"{a}{b}", (f"Now {a}{b} is\n",), ((f"What is {b}{a}?\n", "x"),))
    for a, b, answer in [("Ac", "me", "A"), ("Ru", "ri", "S"), ("Zo", "rk", "I"), ("Go", "th", "G")]
]
SMALL = {"rank": 8, "num_layers": 2}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_gradient_is_the_sum_of_products_over_tokens(architecture: str):
    model = recipe(architecture)
    editor = Mend(model, **SMALL)
    rows = tokenize_rows(model.tokenizer, [f.prompt for f in FACTS], ["Ann", "S", "Infocom"])
    factors = gradient_factors(model.lm, editor.layers, rows)
    for layer in editor.layers:
        parameter = layer.down.weight
        parameter.requires_grad_(True)
        (gradient,) = torch.autograd.grad(answer_loss(model.lm, rows), parameter)
        parameter.requires_grad_(False)
        keys, gradients = factors[layer.number]
        expected = gradient.T if architecture == "gpt2" else gradient
        assert torch.allclose(gradients.T @ keys, expected, atol=1e-4 * expected.abs().max().item())
    # At the last layer only what an answer's token is predicted from has a gradient; for one token, rank one.
    assert len(factors[1][0]) == sum(len(row.answer_ids) for row in rows)


def test_the_network_begins_as_the_gradient_normalised():
    editor = Mend(recipe(), **SMALL)
    factors = torch.randn(9, 64) + 3, 1e-3 * torch.randn(9, 32)
    editor.network.learn(0, factors)
    keys, gradients = editor.network(0, factors)
    for found, given in ((keys, factors[0]), (gradients, factors[1])):
        expected = (given - given.mean(0)) / given.std(0, correction=0)
        assert torch.allclose(found, expected, atol=1e-2)


def test_running_means_are_those_of_all_at_once():
    vectors, running = torch.randn(30, 5) * 4 + 1, Running(5)
    for part in vectors.split([3, 20, 7]):
        running.learn(part)
    assert torch.allclose(running.mean, vectors.mean(0), atol=1e-5)
    assert torch.allclose(running(vectors).std(0, correction=0), torch.ones(5), atol=1e-3)


@pytest.mark.parametrize("number", [5, 90])
def test_the_normal_equation_against_lstsq(number: int):
    keys, differences, ridge = torch.randn(number, 64), torch.randn(number, 32), torch.tensor(0.7)
    system = torch.cat([keys, ridge.sqrt() * torch.eye(64)]).double()
    targets = torch.cat([differences, torch.zeros(64, 32)]).double()
    expected = torch.linalg.lstsq(system, targets).solution.T
    assert torch.allclose(solve(keys, differences, ridge).double(), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [Mend, Malmen])
def test_training_teaches_to_edit(kind: type[Mend], tmp_path: Path):
    model = recipe()
    editor = kind(model, steps=40, learning_rate=3e-3, batch_size=2, directory=tmp_path, **SMALL)
    with torch.no_grad():
        editor.network.rates.fill_(1e-2)
    copy = weights(model.lm)
    for index, layer in enumerate(editor.layers):
        editor.network.learn(
            index, gradient_factors(model.lm, editor.layers, editor._rows([ROWS[0].prompt], ROWS[:1]))[layer.number]
        )
    before = sum(editor.training_loss([row]).item() for row in ROWS)
    editor.tune(ROWS, ROWS[:1])
    after = sum(editor.training_loss([row]).item() for row in ROWS)
    assert after < before and editor.settings["training steps"] == 40
    assert not changed(copy, model.lm)
    fact = ROWS[0]
    rows = tokenize_rows(model.tokenizer, [fact.prompt], [fact.answer])
    loss = answer_loss(model.lm, rows).item()
    updates = editor.updates(gradient_factors(model.lm, editor.layers, rows))
    with updated(editor.layers, updates):
        through_hooks = answer_logits(model.lm, rows)[0]
    editor.edit([fact])
    assert torch.allclose(answer_logits(model.lm, rows)[0], through_hooks, atol=1e-3)
    assert answer_loss(model.lm, rows).item() < loss and len(changed(copy, model.lm)) == 2
    editor.undo()
    assert not changed(copy, model.lm)


def test_what_was_trained_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, again, longer = (Mend(recipe(), steps=n, directory=tmp_path, **SMALL) for n in (2, 2, 3))
    one.tune(ROWS, ROWS)
    with monkeypatch.context() as patched:
        patched.setattr(again, "_train", lambda facts: 1 / 0)
        again.tune(ROWS, ROWS)
    trained = one.network.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in again.network.state_dict().items())
    assert again.settings == one.settings and again.settings["training steps"] == 2
    marks = {one._mark(ROWS), longer._mark(ROWS), one._mark(ROWS[1:])}
    marks |= {Malmen(recipe(), steps=2, batch_size=1, **SMALL)._mark(ROWS)}
    assert len(marks) == 4


def test_facts_together_are_not_facts_in_turn(tmp_path: Path):
    together, in_turn = (Mend(recipe(), steps=2, directory=tmp_path, **SMALL) for _ in range(2))
    for editor in (together, in_turn):
        editor.tune(ROWS, ROWS)
    together.edit(ROWS[:2])
    in_turn.edit(ROWS[:1])
    in_turn.edit(ROWS[1:2])
    assert not torch.equal(together.layers[0].weight(), in_turn.layers[0].weight())


@pytest.mark.parametrize("kind", [Mend, Malmen])
def test_without_training(kind: type[Mend]):
    model = recipe()
    copy = weights(model.lm)
    with pytest.raises(ValueError, match=f"{kind.__name__} needs facts to train on before it edits, .* got none"):
        kind(model, **SMALL).edit(FACTS[:1])
    assert not changed(copy, model.lm)


def test_no_step_is_begun_after_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("recipe_hf.evaluation.editors.mend.time.monotonic", lambda: next(clock))
    editor = Mend(recipe(), steps=50, seconds=25, directory=tmp_path, **SMALL)
    editor.tune([replace(row) for row in ROWS], ROWS)
    assert editor.settings["training steps"] == 2


def test_what_must_be_above_zero():
    with pytest.raises(ValueError, match="rank must be above 0, got 0"):
        Mend(recipe(), rank=0)
