from __future__ import annotations

import copy
import itertools
import threading
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MaxTimeCriteria,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    RwkvConfig,
    RwkvForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from recipe_hf.modeling.prefix import hidden_prefix, install_prefix_hook, prefixed_forward
from tests.reference import (
    CLOSE,
    NEW_TOKENS,
    SIDES,
    hooked_lm,
    make_batch,
    next_logits,
    reference,
    reference_beams,
    sampled,
)
from tests.tiny import ARCHITECTURES, FURTHER_ARCHITECTURES, HIDDEN_SIZE, PAD_TOKEN_ID, tiny_causal_lm


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    return hooked_lm(request.param)


@pytest.mark.parametrize("side", SIDES)
def test_greedy(lm: PreTrainedModel, side: str) -> None:
    batch = make_batch(side)
    output = batch.generate(lm)
    assert output.tolist() == reference(lm, batch).tolist()
    without = reference(lm, make_batch(side, slots=["000"] * 4))
    hits = batch.mask.any(1)
    assert (output != without).any(1).tolist() == hits.tolist()


@pytest.mark.parametrize(
    ("architecture", "cache"),
    [("bloom", "dynamic"), *itertools.product(["qwen2-sliding", *FURTHER_ARCHITECTURES], ["dynamic", "static"])],
)
@pytest.mark.parametrize("side", SIDES)
def test_windows_caps_experts_and_models_without_positions(architecture: str, cache: str, side: str) -> None:
    lm, batch = hooked_lm(architecture), make_batch(side)
    assert batch.generate(lm, cache_implementation=cache).tolist() == reference(lm, batch).tolist()


@pytest.mark.parametrize("architecture", FURTHER_ARCHITECTURES)
def test_beams_of_these(architecture: str) -> None:
    test_beams(hooked_lm(architecture), "left")


def test_without_an_attention_mask(lm: PreTrainedModel) -> None:
    batch = make_batch(lengths=(4, 4, 4, 4))
    with hidden_prefix(batch.embeds, batch.mask):
        output = lm.generate(batch.input_ids, max_new_tokens=NEW_TOKENS)
    assert output.tolist() == reference(lm, batch).tolist()


def test_inputs_embeds(lm: PreTrainedModel) -> None:
    batch = make_batch()
    embeds = lm.get_input_embeddings()(batch.input_ids)
    with hidden_prefix(batch.embeds, batch.mask):
        output = lm.generate(inputs_embeds=embeds, attention_mask=batch.attention_mask, max_new_tokens=NEW_TOKENS)
    assert output.tolist() == reference(lm, batch)[:, -NEW_TOKENS:].tolist()


@pytest.mark.parametrize(("side", "repeats"), [("left", 1), ("right", 3)])
def test_sampling_with_a_seed(lm: PreTrainedModel, side: str, repeats: int) -> None:
    batch = make_batch(side)
    torch.manual_seed(7)
    expected = reference(lm, batch, [TemperatureLogitsWarper(0.7), TopKLogitsWarper(20)], sampled, repeats=repeats)
    torch.manual_seed(7)
    output = batch.generate(lm, do_sample=True, temperature=0.7, top_k=20, num_return_sequences=repeats)
    assert output.tolist() == expected.tolist()


@pytest.mark.parametrize("side", SIDES)
def test_beams(lm: PreTrainedModel, side: str) -> None:
    batch = make_batch(side)
    output = batch.generate(lm, num_beams=3, num_return_sequences=3)
    assert output.tolist() == reference_beams(lm, batch, 3).tolist()


def test_beams_with_an_end_token(lm: PreTrainedModel) -> None:
    batch = make_batch()
    eos = int(reference(lm, batch)[0, -NEW_TOKENS + 2])
    options = {"num_beams": 3, "eos_token_id": eos, "max_new_tokens": NEW_TOKENS, "pad_token_id": 1}
    output = batch.generate(lm, **options)[:, batch.input_ids.shape[1] :]
    for row, text in enumerate(batch.texts):
        embeds = torch.cat([batch.prefix(row), lm.get_input_embeddings()(torch.tensor(text))]).unsqueeze(0)
        expected = lm.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), **options)[0]
        assert output[row, : len(expected)].tolist() == expected.tolist()
        assert (output[row, len(expected) :] == 1).all()


def test_beams_that_sample_follow_their_seed(lm: PreTrainedModel) -> None:
    batch = make_batch()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(batch.generate(lm, num_beams=2, do_sample=True, top_k=0).tolist())
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize(("side", "num_beams"), [("left", 1), ("right", 2)])
@pytest.mark.parametrize("option", ["repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"])
def test_logits_processors_see_the_text_alone(lm: PreTrainedModel, option: str, side: str, num_beams: int) -> None:
    batch = make_batch(side)
    wanted = [[token] for token in set(reference(lm, batch, new_tokens=2)[:, -1].tolist())]
    value, processor = {
        "repetition_penalty": (3.0, RepetitionPenaltyLogitsProcessor(3.0)),
        "no_repeat_ngram_size": (1, NoRepeatNGramLogitsProcessor(1)),
        "bad_words_ids": (wanted, NoBadWordsLogitsProcessor(wanted)),
    }[option]
    output = batch.generate(lm, num_beams=num_beams, num_return_sequences=num_beams, **{option: value})
    if num_beams == 1:
        expected = reference(lm, batch, [processor])
    else:
        expected = reference_beams(lm, batch, num_beams, [processor])
    assert output.tolist() == expected.tolist()


def test_stopping_criteria_and_end_token(lm: PreTrainedModel) -> None:
    batch = make_batch()
    expected = reference(lm, batch)
    columns = batch.input_ids.shape[1]
    eos = int(expected[0, columns + 1])

    class AtColumn(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
            assert input_ids[:, :columns].tolist() == batch.input_ids.tolist()
            return torch.full((len(input_ids),), input_ids.shape[1] >= columns + 3)

    output = batch.generate(lm, stopping_criteria=StoppingCriteriaList([AtColumn(), MaxTimeCriteria(60)]))
    assert output.tolist() == expected[:, : columns + 3].tolist()

    output = batch.generate(lm, eos_token_id=eos, pad_token_id=PAD_TOKEN_ID)[:, columns:].tolist()
    for row, new in zip(output, expected[:, columns:].tolist(), strict=True):
        end = new.index(eos) + 1 if eos in new else NEW_TOKENS
        assert row[:end] == new[:end] and set(row[end:]) <= {PAD_TOKEN_ID}


def test_max_length_counts_the_text_alone(lm: PreTrainedModel) -> None:
    batch = make_batch()
    with hidden_prefix(batch.embeds, batch.mask):
        output = lm.generate(**batch.inputs, max_length=10)
    assert output.shape[1] == 10
    assert output.tolist() == reference(lm, batch, new_tokens=4).tolist()


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streamers(lm: PreTrainedModel) -> None:
    batch, streamer = make_batch(lengths=(5,)), Recorder()
    output = batch.generate(lm, streamer=streamer)
    assert streamer.ended and streamer.tokens == output[0].tolist() == reference(lm, batch)[0].tolist()


def test_return_dict_in_generate(lm: PreTrainedModel) -> None:
    batch = make_batch("right")
    output = batch.generate(lm, return_dict_in_generate=True, output_logits=True, output_scores=True)
    expected = reference(lm, batch)
    assert output.sequences.tolist() == expected.tolist()
    assert len(output.logits) == len(output.scores) == NEW_TOKENS
    for step in (0, NEW_TOKENS - 1):
        for row, text in enumerate(batch.texts):
            ids = text + expected[row, batch.input_ids.shape[1] :][:step].tolist()
            alone = next_logits(lm, batch.prefix(row), ids)
            torch.testing.assert_close(output.logits[step][row], alone, **CLOSE)


def test_prompt_lookup(lm: PreTrainedModel) -> None:
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    batches = [make_batch(lengths=(5,), seed=seed, slots=[slots]) for seed, slots in enumerate(["111", "010", "011"])]
    handle = lm.register_forward_hook(count)
    outputs = [batch.generate(lm, prompt_lookup_num_tokens=3, max_new_tokens=24) for batch in batches]
    handle.remove()
    for batch, output in zip(batches, outputs, strict=True):
        assert output.tolist() == reference(lm, batch, new_tokens=24).tolist()
    assert forwards < 3 * 24, "no candidate was ever accepted"


@pytest.mark.parametrize("assistant", ["other", "copy", "same"])
def test_assistant_model(lm: PreTrainedModel, assistant: str) -> None:
    batch = make_batch(lengths=(5,), seed=3, slots=["011"])
    if assistant == "other":
        helper = tiny_causal_lm("llama", seed=1)
    elif assistant == "copy":
        helper = copy.deepcopy(lm)
        helper._forward_pre_hooks.clear()
    else:
        helper = lm
    output = batch.generate(lm, assistant_model=helper, max_new_tokens=12)
    assert output.tolist() == reference(lm, batch, new_tokens=12).tolist()


def test_guidance_compares_with_the_unprefixed_model(lm: PreTrainedModel) -> None:
    batch = make_batch(lengths=(5, 5), slots=["111", "011"])

    class Guidance(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            nothing = torch.zeros(0, HIDDEN_SIZE)
            plain = torch.stack([next_logits(lm, nothing, ids[4:].tolist()) for ids in input_ids]).log_softmax(-1)
            return 1.5 * (scores.log_softmax(-1) - plain) + plain

    output = batch.generate(lm, guidance_scale=1.5)
    assert output.tolist() == reference(lm, batch, [Guidance()]).tolist()


def test_four_threads_at_once(lm: PreTrainedModel) -> None:
    slots = [["111", "000", "011", "110"], ["000", "110", "111", "111"], ["011", "111", "000", "001"], ["000"] * 4]
    batches = [make_batch(SIDES[i % 2], seed=i, slots=slots[i]) for i in range(3)] + [
        make_batch(seed=3, slots=slots[3])
    ]
    expected = [reference(lm, batch).tolist() for batch in batches]
    barrier, outputs = threading.Barrier(4), [[] for _ in batches]

    def work(i: int) -> None:
        barrier.wait()
        for _ in range(3):
            outputs[i].append(batches[i].generate(lm).tolist())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == [[rows] * 3 for rows in expected]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}])
def test_a_batch_without_prefixes_is_the_base_untouched(lm: PreTrainedModel, options: dict[str, Any]) -> None:
    batch = make_batch(slots=["000"] * 4)
    base = copy.deepcopy(lm)
    base._forward_pre_hooks.clear()
    options = options | {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": NEW_TOKENS}
    torch.manual_seed(0)
    expected = base.generate(**batch.inputs, **options)
    torch.manual_seed(0)
    output = batch.generate(lm, **options)
    assert torch.equal(output.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(output.scores, expected.scores, strict=True))


@pytest.mark.parametrize("side", SIDES)
def test_no_column_is_empty_in_every_row(side: str) -> None:
    lm = copy.deepcopy(hooked_lm("llama"))
    batch = make_batch(side, lengths=(6, 3, 1, 5), slots=("000", "111", "011", "010"))
    columns: list[int] = []
    lm.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: columns.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    with hidden_prefix(batch.embeds, batch.mask):
        output = lm.generate(**batch.inputs, max_new_tokens=1)
    assert columns == [6]  # The prefixes take the place of padding.
    assert output.shape == (4, 7)


def test_contexts_one_after_another_and_within_another() -> None:
    lm, first, second = hooked_lm("llama"), make_batch(seed=1), make_batch(seed=2)
    missed = make_batch(seed=1, slots=["000"] * 4)
    expected = {id(batch): reference(lm, batch).tolist() for batch in (first, second, missed)}
    generate = lambda batch: lm.generate(**batch.inputs, max_new_tokens=NEW_TOKENS).tolist()  # noqa: E731
    with hidden_prefix(first.embeds, first.mask):
        assert generate(first) == expected[id(first)]
        with hidden_prefix(second.embeds, second.mask):
            assert generate(second) == expected[id(second)]
        with hidden_prefix(missed.embeds, missed.mask):
            assert generate(missed) == expected[id(missed)]
        logits = prefixed_forward(lm, second.embeds, second.mask, **second.inputs).logits
        assert generate(first) == expected[id(first)]
    assert torch.equal(logits, prefixed_forward(lm, second.embeds, second.mask, **second.inputs).logits)
    assert generate(first) == expected[id(missed)]


def test_an_error_within_generate_leaves_nothing_behind(lm: PreTrainedModel) -> None:
    batch = make_batch()
    expected = lm.generate(**batch.inputs, max_new_tokens=NEW_TOKENS).tolist()

    class Failing(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("stop here")
            return scores

    with pytest.raises(RuntimeError, match="stop here"):
        batch.generate(lm, logits_processor=[Failing()])
    assert lm.generate(**batch.inputs, max_new_tokens=NEW_TOKENS).tolist() == expected
    assert batch.generate(lm).tolist() == reference(lm, batch).tolist()


def test_peft() -> None:
    torch.manual_seed(0)
    lm = get_peft_model(tiny_causal_lm("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    install_prefix_hook(lm)
    batch = make_batch()
    assert batch.generate(lm).tolist() == reference(lm, batch).tolist()
    row = prefixed_forward(lm, batch.embeds, batch.mask, **batch.inputs).logits[0, -1]
    torch.testing.assert_close(row, next_logits(lm, batch.prefix(0), batch.texts[0]), **CLOSE)


def test_install_is_idempotent() -> None:
    lm = tiny_causal_lm("gpt2")
    install_prefix_hook(lm)
    install_prefix_hook(lm)
    assert len(lm._forward_pre_hooks) == 1


def test_models_that_cannot_hold_a_prefix_are_refused() -> None:
    rwkv = RwkvForCausalLM(RwkvConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2))
    with pytest.raises(ValueError, match=r"past_key_values\), got RwkvForCausalLM \(model type 'rwkv'\)"):
        install_prefix_hook(rwkv)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="encoder-decoder 't5'"):
        install_prefix_hook(t5)
    assert not rwkv._forward_pre_hooks and not t5._forward_pre_hooks


def test_bad_shapes() -> None:
    lm, batch = hooked_lm("llama"), make_batch()
    for embeds, mask in [
        (batch.embeds, batch.mask.long()),
        (batch.embeds, batch.mask[:, :2]),
        (batch.embeds[0], batch.mask[0]),
    ]:
        with pytest.raises(ValueError, match=r"mask must be bool \[B, L\]"):
            hidden_prefix(embeds, mask)
    with hidden_prefix(batch.embeds[:3], batch.mask[:3]), pytest.raises(ValueError, match="prefix, 3, or .* got 4"):
        lm.generate(**batch.inputs)
    with hidden_prefix(batch.embeds[..., :8], batch.mask), pytest.raises(ValueError, match="lm, 32, got 8"):
        lm.generate(**batch.inputs)
    for keep in (-1, torch.tensor(1), torch.ones(4, 6, dtype=torch.bool)):
        with pytest.raises(ValueError, match="logits_to_keep must be"):
            prefixed_forward(lm, batch.embeds, batch.mask, **batch.inputs, logits_to_keep=keep)
