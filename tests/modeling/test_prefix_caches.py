from __future__ import annotations

import copy

import pytest
from transformers import DynamicCache, PreTrainedModel, StaticCache

from tests.reference import NEW_TOKENS, SIDES, hooked_lm, make_batch, reference, reference_beams
from tests.tiny import ARCHITECTURES


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    return hooked_lm(request.param)


@pytest.mark.parametrize("side", SIDES)
def test_without_a_cache(lm: PreTrainedModel, side: str) -> None:
    batch = make_batch(side)
    assert batch.generate(lm, use_cache=False).tolist() == reference(lm, batch).tolist()
    beams = batch.generate(lm, use_cache=False, num_beams=2, num_return_sequences=2)
    assert beams.tolist() == reference_beams(lm, batch, 2).tolist()


@pytest.mark.parametrize(("side", "attention"), [("left", "sdpa"), ("right", "sdpa"), ("left", "eager")])
def test_static_cache(lm: PreTrainedModel, side: str, attention: str) -> None:
    batch = make_batch(side)
    lm = copy.deepcopy(lm)
    lm.set_attn_implementation(attention)
    expected = reference(lm, batch)
    shapes = set()
    handle = lm.base_model.register_forward_pre_hook(
        lambda _, args, inputs: shapes.add(inputs["attention_mask"].shape), with_kwargs=True
    )
    assert batch.generate(lm, cache_implementation="static").tolist() == expected.tolist()
    handle.remove()
    assert len(shapes) == 1, "a mask that grows would be compiled again at every step"
    beams = batch.generate(lm, cache_implementation="static", num_beams=2, num_return_sequences=2)
    assert beams.tolist() == reference_beams(lm, batch, 2).tolist()


def test_caches_of_the_user(lm: PreTrainedModel) -> None:
    batch = make_batch()
    columns = batch.input_ids.shape[1]
    expected = reference(lm, batch)
    dynamic = DynamicCache(config=lm.config)
    static = StaticCache(lm.config, max_cache_len=3 + columns + NEW_TOKENS - 1)
    for cache in (dynamic, static):
        assert batch.generate(lm, past_key_values=cache).tolist() == expected.tolist()
    assert int(dynamic.get_seq_length()) == 3 + columns + NEW_TOKENS - 1
    # transformers before 5.20 does not tell a static cache of the user from one that generate made: another is filled.
    assert int(static.get_seq_length()) in (0, 3 + columns + NEW_TOKENS - 1)
    with pytest.raises(ValueError, match="must be empty where a hidden prefix begins"):
        batch.generate(lm, past_key_values=dynamic)
    with pytest.raises(ValueError, match="not be used after it ended"):
        lm.generate(expected, past_key_values=dynamic, max_new_tokens=1)
    static.reset()
    plain = reference(lm, make_batch(slots=["000"] * 4))
    assert lm.generate(**batch.inputs, past_key_values=static, max_new_tokens=NEW_TOKENS).tolist() == plain.tolist()


def test_chunked_prefill(lm: PreTrainedModel) -> None:
    batch = make_batch("left")
    assert batch.generate(lm, prefill_chunk_size=2).tolist() == reference(lm, batch).tolist()
    assert batch.generate(lm, prefill_chunk_size=1).tolist() == reference(lm, batch).tolist()
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        batch.generate(lm, prefill_chunk_size=2, cache_implementation="static")
