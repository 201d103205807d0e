"""Tests of running the model: generate and forward."""

import copy
import threading

import pytest
import torch
from transformers import DynamicCache, TextStreamer

from recipe_hf import RecipeConfig, RecipeForCausalLM
from tests.tiny_recipe import (
    FACTS,
    GREEDY,
    MIXED,
    PROMPTS,
    UNRELATED,
    assert_same,
    batch_of,
    edited_recipe,
    row_by_row,
    tiny_base,
    tiny_encoder,
    tiny_recipe,
    untrained_recipe,
)


@pytest.fixture
def model():
    return edited_recipe()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj", "qwen2", "gpt-neox"])
def test_a_mixed_batch_is_generated_as_row_by_row(architecture, side):
    model = tiny_recipe(architecture)
    model.add_knowledge(FACTS)
    batch = batch_of(model, MIXED, side)
    generated = model.generate(**batch, **GREEDY)[:, batch.input_ids.shape[1] :]
    assert torch.equal(generated[[0, 2]], row_by_row(model, MIXED)[[0, 2]])
    if side == "left":
        assert torch.equal(generated, row_by_row(model, MIXED))
        base = model.lm.generate(**batch, **GREEDY)[:, batch.input_ids.shape[1] :]
        assert torch.equal(generated[[1, 3]], base[[1, 3]])
        assert not torch.equal(generated[0], base[0])


@pytest.mark.parametrize(
    "options",
    [GREEDY, {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 2}, GREEDY | {"num_beams": 3}],
)
def test_a_batch_in_which_nothing_fires_is_the_bases_own(model, options):
    batch = batch_of(model, UNRELATED)
    options = options | {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    expected = model.lm.generate(**batch, **options)
    torch.manual_seed(0)
    generated = model.generate(**batch, **options)
    assert torch.equal(generated.sequences, expected.sequences)
    assert all(torch.equal(*logits) for logits in zip(generated.logits, expected.logits, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "max_length": 60},
        {"use_cache": False, "max_new_tokens": 3},
        {"cache_implementation": "static", "max_new_tokens": 3},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[9]], "max_new_tokens": 5},
    ],
)
def test_generation_options_work_and_results_carry_the_retrievals(model, options):
    batch = batch_of(model, MIXED)
    result = model.generate(**batch, return_dict_in_generate=True, **options)
    assert result.sequences.shape[0] == len(MIXED) * options.get("num_return_sequences", 1)
    assert result.sequences.shape[1] <= 60
    assert [hit.fired for hit in result.retrievals] == [True, False, True, False]
    assert result["retrievals"] is result.retrievals


def test_queries_say_what_to_look_up(model):
    ids = batch_of(model, ["Well then:"] * 2)
    out = model.generate(**ids, **GREEDY, queries=[PROMPTS[1], UNRELATED[0]], return_dict_in_generate=True)
    assert [hit.fired for hit in out.retrievals] == [True, False]
    assert not torch.equal(out.sequences[0], out.sequences[1])
    one = model.generate(ids.input_ids[:1], queries=PROMPTS[1], **GREEDY)
    assert torch.equal(one[0], out.sequences[0])


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (["one"], "as many as the rows of the batch, 4, got 1"),
        ("one", "as many as the rows of the batch, 4, got 1"),
        ([1, 2, 3, 4], r"queries must be strings, got int as queries\[0\]"),
    ],
)
@pytest.mark.parametrize("facts", [True, False])
def test_bad_queries_are_refused(model, queries, message, facts):
    if not facts:
        model.knowledge.clear()
    batch = batch_of(model, MIXED)
    with pytest.raises(ValueError, match=message):
        model.generate(**batch, queries=queries)
    with pytest.raises(ValueError, match=message):
        model(**batch, queries=queries)


def test_embeddings_need_queries(model):
    batch = batch_of(model, [PROMPTS[0]])
    embeds = model.get_input_embeddings()(batch.input_ids)
    inputs = {"inputs_embeds": embeds, "attention_mask": batch.attention_mask}
    with pytest.raises(ValueError, match="queries must be given with inputs_embeds"):
        model.generate(**inputs, **GREEDY)
    expected = model.generate(**batch, **GREEDY)[:, batch.input_ids.shape[1] :]
    assert torch.equal(model.generate(**inputs, queries=PROMPTS[:1], **GREEDY), expected)


def test_without_a_tokenizer_queries_are_needed(model):
    batch = batch_of(model, MIXED)
    model.tokenizer = None
    with pytest.raises(RuntimeError, match="set model.tokenizer"):
        model.generate(**batch, **GREEDY)
    model.generate(**batch, **GREEDY, queries=MIXED)
    model.knowledge.clear()
    model.generate(**batch, **GREEDY)


def test_without_inputs_the_base_begins_on_its_own(model):
    assert torch.equal(model.generate(**GREEDY), model.lm.generate(**GREEDY))


def test_a_streamer_gets_the_text(model, capsys):
    batch = batch_of(model, [PROMPTS[0]])
    out = model.generate(**batch, **GREEDY, streamer=TextStreamer(model.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == model.tokenizer.decode(out[0, batch.input_ids.shape[1] :]).strip()


def test_four_threads_at_once(model):
    batches = [[PROMPTS[i], UNRELATED[i]] for i in range(4)]
    inputs = [batch_of(model, texts) for texts in batches]
    expected = [model.generate(**batch, **GREEDY) for batch in inputs]
    fresh = copy.deepcopy(model)
    results = [[] for _ in batches]

    def work(i):
        for _ in range(3):
            results[i].append(fresh.generate(**inputs[i], **GREEDY))
            fresh.add_knowledge([FACTS[i]], on_conflict="keep")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert len(results[i]) == 3
        assert all(torch.equal(result, expected[i]) for result in results[i])


def forward_row(model, text, fact=None):
    """Logits of one row, prompt and text concatenated."""
    embeds = model.get_input_embeddings()(model.tokenizer(text, return_tensors="pt").input_ids)
    prefix = torch.zeros(1, 0, embeds.shape[-1])
    if fact is not None:
        prefix = model.prompt_encoder(model.knowledge.keys([fact])).detach()
    return model.lm(inputs_embeds=torch.cat([prefix, embeds], 1)).logits[0, prefix.shape[1] :]


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_aligned_to_the_input(model, side):
    batch = batch_of(model, MIXED, side)
    with torch.no_grad():
        out = model(**batch)
    assert out.logits.shape == (*batch.input_ids.shape, model.config.vocab_size)
    for row, fact in enumerate([0, None, 2, None]):
        logits = out.logits[row][batch.attention_mask[row].bool()]
        torch.testing.assert_close(logits, forward_row(model, MIXED[row], fact), atol=1e-4, rtol=1e-4)
    assert [hit.fired for hit in out.retrievals] == [True, False, True, False]


@pytest.mark.parametrize("texts", [MIXED, UNRELATED])
@pytest.mark.parametrize("keep", [3, torch.tensor([2, 5])])
def test_logits_to_keep(model, texts, keep):
    batch = batch_of(model, texts)
    with torch.no_grad():
        whole, part = model(**batch).logits, model(**batch, logits_to_keep=keep).logits
    columns = slice(-keep, None) if isinstance(keep, int) else keep
    torch.testing.assert_close(part, whole[:, columns])


def test_a_forward_in_which_nothing_fires_is_the_bases_own(model):
    batch = batch_of(model, UNRELATED)
    with torch.no_grad():
        out = model(**batch, labels=batch.input_ids)
        expected = model.lm(**batch, labels=batch.input_ids)
    assert torch.equal(out.logits, expected.logits)
    assert torch.equal(out.loss, expected.loss)


def test_the_loss_is_the_cross_entropy_of_each_label(model):
    text = PROMPTS[0] + " Ann"
    ids = model.tokenizer(text, return_tensors="pt").input_ids
    labels = ids.clone()
    labels[:, :-4] = -100
    out = model(ids, labels=labels)
    assert out.retrievals[0].fired
    logits = forward_row(model, text, 0)
    expected = torch.nn.functional.cross_entropy(logits[-5:-1], ids[0, -4:])
    torch.testing.assert_close(out.loss, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(ids, labels=labels, logits_to_keep=6).loss, out.loss)
    torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=8).loss, out.loss / 2)
    loss, logits, *_ = model(ids, labels=labels, return_dict=False)
    torch.testing.assert_close(loss, out.loss)


def test_what_the_retriever_reads(model):
    ids = model.tokenizer(PROMPTS[0] + " " + UNRELATED[0], return_tensors="pt").input_ids
    length = len(PROMPTS[0])
    labels = ids.clone()
    labels[:, :length] = -100
    query_mask = torch.zeros_like(ids)
    query_mask[:, :length] = 1
    expected = model.retrieve([PROMPTS[0]])
    assert_same(model(ids, labels=labels).retrievals, expected)
    assert_same(model(ids, query_mask=query_mask).retrievals, expected)
    assert_same(model(ids, queries=PROMPTS[:1]).retrievals, expected)
    assert_same(model(ids).retrievals, model.retrieve([PROMPTS[0] + " " + UNRELATED[0]]))


def test_gradients_reach_the_prompt_encoder_alone(model):
    model.train()
    batch = batch_of(model, MIXED)
    model(**batch, labels=batch.input_ids, queries=MIXED).loss.backward()
    assert model.prompt_encoder.output.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.lm.parameters())


def test_a_cache_is_refused(model):
    batch = batch_of(model, MIXED)
    cache = model.lm(**batch).past_key_values
    with pytest.raises(ValueError, match="past_key_values must not be given to forward"):
        model(**batch, past_key_values=cache)
    assert model(**batch).past_key_values is None


@pytest.mark.parametrize("facts", [True, False])
@pytest.mark.parametrize("text", [PROMPTS[0], UNRELATED[0]])
def test_a_cache_kept_between_turns_is_refused_whether_or_not_a_fact_fires(model, facts, text):
    batch = batch_of(model, [text])
    if not facts:
        model.knowledge.clear()
    expected, cache = model.generate(**batch, **GREEDY), DynamicCache()
    assert torch.equal(model.generate(**batch, **GREEDY, past_key_values=cache), expected)
    for turn in (PROMPTS[0], UNRELATED[0]):
        ids = torch.cat([expected, batch_of(model, [turn]).input_ids], 1)
        with pytest.raises(
            ValueError, match=rf"past_key_values must be empty, got a cache of {cache.get_seq_length()} "
        ):
            model.generate(ids, **GREEDY, past_key_values=cache)
        assert model.generate(ids, **GREEDY).shape[1] == ids.shape[1] + GREEDY["max_new_tokens"]
    if facts and text == PROMPTS[0]:
        with pytest.raises(ValueError, match="cache.* must be empty .* not be used after it ended"):
            model.lm.generate(expected, **GREEDY, past_key_values=cache)


def test_a_base_that_is_wrapped_is_prefixed_too(model):
    batch = batch_of(model, MIXED)
    expected = model.generate(**batch, **GREEDY)
    model.lm = torch.compile(model.lm, backend="eager")
    assert torch.equal(model.generate(**batch, **GREEDY), expected)


@pytest.mark.parametrize("texts", [[PROMPTS[0]], [UNRELATED[0]]])
@pytest.mark.parametrize("form", ["plain", "recipe", "its base", "with facts", "itself", "its own base"])
def test_an_assistant_drafts_without_facts(model, texts, form):
    other = tiny_base("gpt2", n_embd=48)  # Prefixes of the main model do not fit its embeddings.
    assistants = {
        "plain": lambda: other,
        "recipe": lambda: untrained_recipe(base=other),
        "its base": lambda: untrained_recipe(base=other).lm,
        "with facts": lambda: edited_recipe("gpt2"),
        "itself": lambda: model,
        "its own base": lambda: model.lm,
    }
    batch, assistant = batch_of(model, texts), assistants[form]()
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, assistant_model=assistant), expected)
    if form in ("recipe", "with facts"):
        plain = tiny_base()
        assert torch.equal(
            plain.generate(**batch, **GREEDY, assistant_model=assistant), plain.generate(**batch, **GREEDY)
        )


def test_a_chat_is_looked_up_by_its_last_user_message(model):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    chat.append({"role": "user", "content": PROMPTS[3]})
    inputs = model.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert_same(out.retrievals, model.retrieve([PROMPTS[3]]))
    assert out.retrievals[0].fired


def test_a_config_alone_makes_a_model_without_a_base():
    model = RecipeForCausalLM(RecipeConfig(encoder_config=tiny_encoder().config, hidden_size=32, vocab_size=100))
    assert model.can_generate()
    assert model.device.type == "cpu"
    with pytest.raises(RuntimeError, match="No base is attached"):
        model.get_input_embeddings()
    model.attach_base(tiny_base())
    assert model.get_input_embeddings() is model.lm.get_input_embeddings()
    assert model.get_output_embeddings() is model.lm.get_output_embeddings()
    assert model.config.base_fingerprint is not None


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["similarity_scale", "similarity_temperature"])
def test_factors_of_similarities_are_positive(name: str, value: float):
    with pytest.raises(ValueError, match=f"{name} must be .*positive"):
        RecipeConfig(**{name: value})
