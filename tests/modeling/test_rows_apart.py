from __future__ import annotations

import pytest
import torch

from tests.tiny_recipe import FACTS, GREEDY, PROMPTS, batch_of, tiny_recipe


@pytest.fixture
def model():
    """Facts 0 and 1 are in the namespace `a`, fact 2 in `b`, with metadata."""
    model = tiny_recipe()
    told = [{"prompt": prompt, "answer": answer, "metadata": {"n": n}} for n, (prompt, answer) in enumerate(FACTS)]
    model.add_knowledge(told[:2], namespace="a")
    model.add_knowledge(told[2:3], namespace="b")
    return model


def test_each_row_goes_to_facts_of_its_own(model):
    rows = [
        (PROMPTS[0], "a", None),
        (PROMPTS[0], "b", None),
        (PROMPTS[2], "b", {"n": 2}),
        (PROMPTS[2], "b", {"n": 3}),
        (PROMPTS[1], "a", {}),
        (PROMPTS[1], None, None),
    ]
    texts, namespaces, wheres = zip(*rows, strict=True)
    batch = batch_of(model, list(texts))
    hits, facts = model.facts_before(*model.look_up(list(texts), wheres, namespaces), **batch)
    assert hits == [model.retrieve(text, namespace=namespace, where=where)[0] for text, namespace, where in rows]
    assert len({(hit.statement, hit.fired) for hit in hits}) > 3
    with facts:
        out = model.lm.generate(**batch, **GREEDY)
    for row, (text, namespace, where) in enumerate(rows):
        alone = batch_of(model, [text])
        expected = model.generate(**alone, **GREEDY, namespace=namespace, where=where)
        assert out[row, -6:].tolist() == expected[0, -6:].tolist()


def test_a_row_that_asks_for_nothing_is_the_bases(model):
    batch = batch_of(model, PROMPTS[:2])
    hits, facts = model.facts_before(*model.look_up(["", PROMPTS[1]], [None] * 2, ["a"] * 2), **batch)
    assert [hit.fired for hit in hits] == [False, True]
    with facts:
        out = model.lm.generate(**batch, **GREEDY)
    assert torch.equal(out[0, -6:], model.lm.generate(**batch_of(model, PROMPTS[:1]), **GREEDY)[0, -6:])
