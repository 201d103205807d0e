from __future__ import annotations

import pytest
import torch

from recipe_hf.training.caches import FactKeys, FeatureCache, KeyMemory
from tests.tiny_recipe import untrained_recipe

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def test_key_memory_is_a_ring():
    memory = KeyMemory(5, 2)
    assert memory.filled()[0].shape == (0, 2)
    for start in (0, 2, 4):
        memory.push(torch.full((2, 2), float(start), requires_grad=True), torch.tensor([start, start + 1]))
    keys, facts = memory.filled()
    assert facts.tolist() == [5, 1, 2, 3, 4]
    assert keys[:, 0].tolist() == [4, 0, 2, 2, 4]
    assert not keys.requires_grad


def test_key_memory_keeps_the_last_of_a_batch_larger_than_itself():
    memory = KeyMemory(3, 1)
    memory.push(torch.arange(5.0).unsqueeze(1), torch.arange(5))
    keys, facts = memory.filled()
    assert sorted(facts.tolist()) == [2, 3, 4]
    assert keys.squeeze(1).tolist() == facts.tolist()


def test_key_memory_of_no_size_stays_empty():
    memory = KeyMemory(0, 4)
    memory.push(torch.ones(2, 4), torch.tensor([1, 2]))
    assert memory.filled()[0].shape == (0, 4)


@torch.no_grad()
def test_feature_cache_equals_fresh_features_and_encodes_each_text_once(monkeypatch: pytest.MonkeyPatch):
    model, cache, encoded = untrained_recipe(), FeatureCache(), []
    fresh = model.retriever.text_features
    monkeypatch.setattr(
        model.retriever, "text_features", lambda texts, keep: encoded.append(texts) or fresh(texts, keep=keep)
    )
    texts = ["one", "a longer second", "three", "one"]
    torch.testing.assert_close(cache(model.retriever, texts[:2]), fresh(texts[:2]), **CLOSE)
    torch.testing.assert_close(cache(model.retriever, texts), fresh(texts), **CLOSE)
    assert encoded == [["one", "a longer second"], ["three"]]
    cache.clear()
    cache(model.retriever, texts[:1])
    assert encoded[2:] == [["one"]]


@torch.no_grad()
def test_a_text_too_long_is_cut_where_the_cache_is_told():
    retriever, cache = untrained_recipe().retriever, FeatureCache()
    text = "word " * retriever.max_length + "end"
    for keep in ("start", "end"):
        cache.clear()
        torch.testing.assert_close(cache(retriever, [text], keep), retriever.text_features([text], keep=keep), **CLOSE)


def test_nearest_facts_are_by_dot_product_and_without_those_left_out():
    facts = FactKeys(4, 2)
    facts.keys.copy_(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [-1.0, 0.0]]))
    queries = torch.tensor([[1.0, 0.0], [0.1, 1.0]], requires_grad=True)
    left_out = torch.zeros(2, 4, dtype=torch.bool)
    assert facts.nearest(queries, left_out, 2).tolist() == [0, 1, 2, 1]
    left_out[0, 0] = left_out[1, 2] = True
    assert facts.nearest(queries, left_out, 1).tolist() == [1, 1]
    assert set(facts.state_dict()) == {"keys"} and not FactKeys(0, 2).state_dict()
