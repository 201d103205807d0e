"""Causal tracing against the same by hand, one layer and one noise at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recipe_hf.evaluation.editors.memory.layers import find_layers
from recipe_hf.evaluation.editors.memory.tracing import indirect_effects, trace_layer
from tests.evaluation.editors.memory.editors_at_hand import FACTS
from tests.tiny_recipe import base_tokenizer, tiny_base

TOKENIZER = base_tokenizer()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@torch.no_grad()
def test_effects_by_hand(architecture: str):
    lm = tiny_base(architecture, num_hidden_layers=4)
    layers, fact, samples = find_layers(lm), FACTS[0], 2
    ids = torch.tensor([TOKENIZER(fact.prompt)["input_ids"]])
    subject = slice(11, 15)
    assert TOKENIZER.decode(ids[0, subject]) == "Acme"
    embedded = lm.get_input_embeddings()(ids)
    noise = torch.randn(samples, 4, 32, generator=torch.Generator().manual_seed(0))
    corrupted = embedded.repeat(samples, 1, 1)
    corrupted[:, subject] += 3 * embedded[0, subject].std() * noise
    clean: dict[int, torch.Tensor] = {}
    handles = [
        layer.down.register_forward_hook(lambda m, a, o, n=layer.number: clean.update({n: o[0, 14]}))
        for layer in layers
    ]
    answer = lm(ids).logits[0, -1].argmax()
    for handle in handles:
        handle.remove()

    def probability() -> float:
        found = []
        for row in corrupted:
            handle = lm.get_input_embeddings().register_forward_hook(lambda m, a, o, row=row: row[None])
            found.append(lm(ids).logits[0, -1].softmax(-1)[answer].item())
            handle.remove()
        return sum(found) / samples

    below = probability()
    expected = []
    for layer in layers:

        def restore(module, args, output, number=layer.number):
            output = output.clone()
            output[0, 14] = clean[number]
            return output

        handle = layer.down.register_forward_hook(restore)
        expected.append(probability() - below)
        handle.remove()
    found = indirect_effects(lm, TOKENIZER, layers, fact, samples).tolist()
    assert found == pytest.approx(expected, abs=1e-5) and max(map(abs, found)) > 1e-4
    number, effects = trace_layer(lm, TOKENIZER, layers, FACTS, samples)
    mean = sum(indirect_effects(lm, TOKENIZER, layers, f, samples) for f in FACTS) / len(FACTS)
    assert effects == pytest.approx(mean.tolist(), abs=1e-5) and number == int(mean[:-1].argmax())
    assert torch.equal(lm.get_input_embeddings()(ids), embedded)


def test_the_last_layer_recalls_nothing():
    lm = tiny_base(num_hidden_layers=3)
    layers = find_layers(lm)
    for layer in layers[:2]:
        layer.add(-layer.weight())
    number, effects = trace_layer(lm, TOKENIZER, layers, FACTS)
    assert effects[2] == 0.0 and number < 2


def test_facts_without_subjects():
    lm = tiny_base()
    with pytest.raises(ValueError, match="needs facts whose prompts name their subjects, got 3 without: give layer"):
        trace_layer(lm, TOKENIZER, find_layers(lm), [replace(fact, subject="") for fact in FACTS])
