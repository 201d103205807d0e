"""Where facts are looked up, and values that make them said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from recipe_hf.evaluation.editors.memory.layers import find_layers
from recipe_hf.evaluation.editors.memory.values import (
    ValueSearch,
    adding,
    fact_lookups,
    find_value,
    read_at,
    subject_end,
)
from recipe_hf.teacher_forcing import answer_logits
from tests.evaluation.editors.memory.editors_at_hand import FACTS, recipe
from tests.tiny_recipe import base_tokenizer, bos_tokenizer, tiny_base

CONTEXTS = ["", "Once. ", "It rained all day. "]


def test_a_fact_is_looked_up_at_the_last_token_of_its_subject():
    fact = FACTS[0]
    for tokenizer, first in ((base_tokenizer(), 0), (bos_tokenizer(), 1)):
        places = [lookup.place for lookup in fact_lookups(tokenizer, fact, CONTEXTS)]
        assert places == [first + len(context) + fact.prompt.index("Acme") + 3 for context in CONTEXTS]


@pytest.mark.parametrize(
    ("subject", "end"), [("Acme", 15), ("ACME", 15), ("", None), ("Bolt", None)]
)  # fmt: skip
def test_the_end_of_a_subject(subject: str, end: int | None):
    fact = replace(FACTS[0], subject=subject)
    assert subject_end(fact) == end
    (lookup,) = fact_lookups(base_tokenizer(), fact, [""])
    assert lookup.place == (len(fact.prompt) if end is None else end) - 1


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@torch.no_grad()
def test_rows_of_a_batch_are_read_as_each_alone(architecture: str):
    lm, tokenizer = recipe(architecture).lm, base_tokenizer()
    layers = find_layers(lm)
    lookups = [lookup for fact in FACTS for lookup in fact_lookups(tokenizer, fact, CONTEXTS)]
    read = read_at(lm, lookups, layers[:1], layers[1:])
    for i, lookup in enumerate(lookups):
        ids = torch.tensor([lookup.row.prompt_ids])
        keys: list[torch.Tensor] = []
        handle = layers[0].down.register_forward_hook(lambda m, args, o, keys=keys: keys.append(args[0].view(-1, 64)))
        states = []
        other = layers[1].module.register_forward_hook(lambda m, a, o, states=states: states.append(o))
        lm(ids)
        handle.remove()
        other.remove()
        state = states[0][0] if isinstance(states[0], tuple) else states[0]
        assert torch.allclose(read["key", 0][i], keys[0][lookup.place], atol=1e-4)
        assert torch.allclose(read["value", 0][i], layers[0].down(keys[0][lookup.place]), atol=1e-4)
        assert torch.allclose(read["state", 1][i], state.view(-1, 32)[lookup.place], atol=1e-4)


@torch.no_grad()
def test_what_is_added_arrives_at_the_lookups_alone():
    lm, tokenizer = tiny_base(), base_tokenizer()
    layer = find_layers(lm)[0]
    lookups = fact_lookups(tokenizer, FACTS[0], CONTEXTS[::-1])
    delta = torch.linspace(-1, 1, 32)
    with adding(layer.down, delta, lookups) as given:
        logits, _ = answer_logits(lm, [lookup.row for lookup in lookups])
    assert torch.allclose(given[0], read_at(lm, lookups, [layer], [])["value", 0][0], atol=1e-5)
    for lookup, row in zip(lookups, logits, strict=True):

        def add(module, args, output, place=lookup.place):
            output = output.clone()
            output[0, place] += delta
            return output

        handle = layer.down.register_forward_hook(add)
        alone = lm(torch.tensor([lookup.row.prompt_ids + lookup.row.answer_ids[:-1]])).logits[0]
        handle.remove()
        assert torch.allclose(row, alone[-len(row) :], atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_value_is_found_that_says_the_fact(architecture: str):
    lm, tokenizer = tiny_base(architecture), base_tokenizer()
    # The subject ends the prompt, and the answer is one byte: one vector of a random model cannot say more.
    fact = replace(FACTS[0], prompt="Acme\n", subject="Acme\n", answer="A")
    layer = find_layers(lm)[1]
    search = ValueSearch(steps=30, kl_factor=0.0)
    value, loss = find_value(lm, layer.module, tokenizer, fact, [""], search)
    lookups = fact_lookups(tokenizer, fact, [""])
    start = read_at(lm, lookups, [], [layer])["state", 1][0]
    with torch.no_grad(), adding(layer.module, value - start, lookups):
        logits, labels = answer_logits(lm, [lookup.row for lookup in lookups])
    assert logits.argmax(-1).tolist() == labels.tolist()
    said = F.cross_entropy(logits[0], labels[0]) + 0.5 * (value - start).norm() / start.norm() ** 2
    assert loss == pytest.approx(said.item(), rel=1e-3)
    assert (value - start).norm() <= 4.0001 * start.norm()


def test_a_change_stays_within_its_clamp():
    lm, tokenizer = tiny_base(), base_tokenizer()
    layer = find_layers(lm)[0]
    value, _ = find_value(lm, layer.down, tokenizer, FACTS[0], CONTEXTS, ValueSearch(steps=6, clamp=0.1))
    start = read_at(lm, fact_lookups(tokenizer, FACTS[0], [""]), [layer], [])["value", 0][0]
    assert (value - start).norm() == pytest.approx(0.1 * start.norm().item(), rel=1e-3)
