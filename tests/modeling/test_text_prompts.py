"""Facts told as hidden text: what the base says is what it says of the same text written out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from recipe_hf import RecipeConfig, RecipeForCausalLM
from recipe_hf.modeling.text_prompts import as_text
from recipe_hf.modeling.verifier import Verifier
from tests.tiny_recipe import (
    FACTS,
    GREEDY,
    MIXED,
    PROMPTS,
    UNRELATED,
    assert_same,
    base_tokenizer,
    batch_of,
    bos_tokenizer,
    edited_recipe,
    encoder_tokenizer,
    tiny_base,
    tiny_encoder,
    tiny_recipe,
    verified_recipe,
)

SIDES = ("left", "right")
TEXTS = [f"{prompt} {answer}.\n" for prompt, answer in FACTS]
TOLD = [TEXTS[0], "", TEXTS[2], ""]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with continuous prompts for the tiny Llama, and facts of its own."""
    directory = tmp_path_factory.mktemp("trained")
    edited_recipe().save_pretrained(directory)
    return directory


def told(trained: Path, architecture: str = "llama", tokenizer: Any = None, **kwargs: Any) -> RecipeForCausalLM:
    """A model of another base, which is told `FACTS` as text."""
    model = RecipeForCausalLM.from_base_pretrained(
        tiny_base(architecture, seed=5), retriever=trained, tokenizer=tokenizer or base_tokenizer(), **kwargs
    )
    model.add_knowledge(FACTS)
    return model


def ids_of(model: RecipeForCausalLM, text: str, written: str = "", before: int = 0) -> list[int]:
    """Token ids of a text, with those of another one written in behind its first tokens."""
    ids, added = model.tokenizer(text)["input_ids"], model.tokenizer(written, add_special_tokens=False)["input_ids"]
    return ids[:before] + added + ids[before:]


def plain(model: RecipeForCausalLM, ids: list[int], **options: Any) -> Tensor:
    """What the base itself writes behind these ids."""
    return model.lm.generate(torch.tensor([ids]), **GREEDY | options)[:, len(ids) :]


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj", "qwen2", "gpt-neox", "bloom", "gemma3"])
@pytest.mark.parametrize("writes_bos", [False, True])
def test_the_base_reads_the_statement_as_text(trained: Path, architecture: str, side: str, writes_bos: bool):
    model = told(trained, architecture, bos_tokenizer() if writes_bos else None)
    batch = batch_of(model, MIXED, side)
    assert (batch["input_ids"] == model.tokenizer.bos_token_id).sum(1).tolist() == [int(writes_bos)] * 4
    written = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    rows = [ids_of(model, text, fact, int(writes_bos)) for text, fact in zip(MIXED, TOLD, strict=True)]
    assert written.tolist() == torch.cat([plain(model, row) for row in rows]).tolist()
    without = torch.cat([plain(model, ids_of(model, text)) for text in MIXED])
    differs = (written != without).any(1).tolist()
    assert (any(differs[::2]), any(differs[1::2])) == (True, False)


@pytest.mark.parametrize("options", [{"num_beams": 3, "num_return_sequences": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("side", SIDES)
def test_beams_and_a_static_cache(trained: Path, options: dict[str, Any], side: str):
    model = told(trained, "gemma3", bos_tokenizer())
    batch = batch_of(model, MIXED, side)
    written = model.generate(**batch, **GREEDY | options)[:, batch["input_ids"].shape[1] :]
    rows = [ids_of(model, text, fact, 1) for text, fact in zip(MIXED, TOLD, strict=True)]
    assert written.tolist() == torch.cat([plain(model, row, **options) for row in rows]).tolist()


def test_a_batch_in_which_nothing_fires_is_the_bases_own(trained: Path):
    model = told(trained, tokenizer=bos_tokenizer())
    batch = batch_of(model, UNRELATED)
    assert torch.equal(model.generate(**batch, **GREEDY), model.lm.generate(**batch, **GREEDY))
    assert torch.equal(model(**batch).logits, model.lm(**batch).logits)


CHATS = {
    "chatml": base_tokenizer(),
    "bos": bos_tokenizer(
        "{{ bos_token }}{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}</turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "joined": base_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{% set system = '<<' + messages[0]['content'] + '>>\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for message in messages %}"
        "{% if message['role'] == 'user' %}[INST] {{ (system if loop.first else '') + message['content'] }} [/INST]"
        "{% else %} {{ message['content'] }} <|im_end|>{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", CHATS)
def test_in_a_chat_the_text_stands_inside_the_users_turn(trained: Path, kind: str, side: str):
    model = told(trained, tokenizer=CHATS[kind])
    tokenizer = model.tokenizer
    system = {"role": "system", "content": "Be brief."}
    earlier = [{"role": "user", "content": UNRELATED[1]}, {"role": "assistant", "content": "Yes. Ask é."}]
    chats = [
        [*turns, {"role": "user", "content": text}]
        for turns, text in (([], PROMPTS[1]), (earlier, PROMPTS[1]), ([system], PROMPTS[1]), ([], UNRELATED[0]))
    ]
    render = lambda chat: tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)  # noqa: E731
    texts = [render(chat) for chat in chats]
    tokenizer.padding_side = side
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    output = model.generate(**batch, **GREEDY, return_dict_in_generate=True)
    assert [text.count(PROMPTS[1]) for text in texts] == [1, 1, 1, 0]
    written_out = [text.replace(PROMPTS[1], f"{TEXTS[1]}{PROMPTS[1]}") for text in texts]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in written_out]
    written = output.sequences[:, batch["input_ids"].shape[1] :]
    assert written.tolist() == torch.cat([plain(model, row) for row in rows]).tolist()
    assert [hit.num_prompt_tokens for hit in output.retrievals] == [len(TEXTS[1])] * 3 + [0]


def test_a_text_read_in_chunks_is_refused_where_the_place_is_behind_the_first(trained: Path):
    model = told(trained, tokenizer=bos_tokenizer())
    batch = batch_of(model, PROMPTS[:1])
    whole = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, prefill_chunk_size=5), whole)
    model.tokenizer = CHATS["chatml"]
    chat = [{"role": "user", "content": PROMPTS[1]}]
    batch = model.tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
    with pytest.raises(ValueError, match="at most as many tokens as the text has, or prefill_chunk_size, got 6 for 2"):
        model.generate(**batch, **GREEDY, prefill_chunk_size=2)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", [None, "bos"])
def test_logits_and_loss_are_those_of_the_text_written_out(trained: Path, kind: str | None, side: str):
    model = told(trained, "gemma3", bos_tokenizer() if kind else None)
    batch, before = batch_of(model, MIXED, side), int(kind is not None)
    logits = model(**batch).logits
    for row, (text, fact) in enumerate(zip(MIXED, TOLD, strict=True)):
        expected = model.lm(torch.tensor([ids_of(model, text, fact, before)])).logits[0]
        length = len(ids_of(model, text))
        found = logits[row][batch["attention_mask"][row].bool()]
        torch.testing.assert_close(found, expected[-length:], atol=1e-4, rtol=1e-4)
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    assert model(**batch, labels=labels, queries=MIXED).loss > 0


def test_several_facts_stand_together_the_best_last(trained: Path):
    model = told(trained, tokenizer=bos_tokenizer(), top_k_facts=2)
    model.add_knowledge(["The CEO of Acme is Ann Lee!"])
    batch = batch_of(model, PROMPTS[:1])
    output = model.generate(**batch, **GREEDY, return_dict_in_generate=True)
    (best,) = output.retrievals
    assert len(best.others) == 1
    text = as_text(best.others[0].statement) + as_text(best.statement)
    expected = plain(model, ids_of(model, PROMPTS[0], text, 1))
    assert output.sequences[:, batch["input_ids"].shape[1] :].tolist() == expected.tolist()
    assert best.num_prompt_tokens == len(text)


def test_tokens_are_counted_of_continuous_prompts_too():
    output = edited_recipe()(**batch_of(edited_recipe(), MIXED))
    assert [hit.num_prompt_tokens for hit in output.retrievals] == [3, 0, 3, 0]


def test_without_inputs_the_base_begins_on_its_own(trained: Path):
    model = told(trained, tokenizer=bos_tokenizer())
    begun = model.generate(queries=[PROMPTS[0]], **GREEDY)
    first = model.lm.generation_config.bos_token_id
    ids = [first, *model.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]]
    assert begun[0, 1:].tolist() == plain(model, ids)[0].tolist()


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("Snow is white", "Snow is white.\n"),
        ("Snow is white. ", "Snow is white.\n"),
        ("Who knows?", "Who knows?\n"),
        ('He said "No."', 'He said "No."\n'),
        ("The password is {x}", "The password is {x}.\n"),
        ("雪は白い。", "雪は白い。\n"),
        ("It costs 3.5", "It costs 3.5.\n"),
    ],
)
def test_the_form_of_the_text(statement: str, text: str):
    assert as_text(statement) == text


# ---------------------------------------------------------------------- made, saved, loaded


def test_a_trained_retriever_finds_the_same_with_another_base(trained: Path):
    source, model = edited_recipe(), told(trained, "gpt2")
    assert (model.config.prompt_form, model.prompt_encoder, model.answer_prompt_encoder) == ("text", None, None)
    assert_same(model.retrieve(MIXED), source.retrieve(MIXED))
    assert model.config.base_fingerprint != source.config.base_fingerprint
    assert not model.training and len(model.knowledge) == len(FACTS)


def test_all_that_retrieval_depends_on_is_taken(tmp_path: Path):
    source = verified_recipe(offset=0.5, of_margin=0.1)
    fields = {
        "verifier_margin": 7.0,
        "verifier_gap": 3.0,
        "supersede_threshold": 0.5,
        "similarity_scale": 0.3,
        "similarity_temperature": 0.2,
        "top_k_facts": 2,
    }
    source.config.update(fields)
    source.save_pretrained(tmp_path)
    model = RecipeForCausalLM.from_base_pretrained(tiny_base(), retriever=tmp_path, tokenizer=base_tokenizer())
    assert {name: getattr(model.config, name) for name in fields} == fields
    assert model.config.num_verified_facts == 4 and isinstance(model.verifier, Verifier)
    model.add_knowledge(FACTS)
    loaded = RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base())
    assert_same(model.retrieve(MIXED), loaded.retrieve(MIXED))
    assert [hit.probability for hit in model.retrieve(MIXED)] == [hit.probability for hit in loaded.retrieve(MIXED)]
    options = {"retriever": tmp_path, "tokenizer": base_tokenizer(), "num_verified_facts": 0, "verifier_gap": None}
    unverified = RecipeForCausalLM.from_base_pretrained(tiny_base(), **options)
    assert unverified.verifier is None and unverified.config.verifier_gap is None


def test_a_checkpoint_holds_the_retriever_alone(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = told(trained, "gemma3", bos_tokenizer())
    model.save_pretrained(tmp_path)
    assert all(name.startswith("retriever.") for name in load_file(tmp_path / "model.safetensors"))
    for load in (RecipeForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        loaded: Any = load(tmp_path, base_model=tiny_base("gemma3", seed=5))
        assert loaded.config.prompt_form == "text" and loaded.prompt_encoder is None
        batch = batch_of(model, MIXED)
        assert torch.equal(loaded.generate(**batch, **GREEDY), model.generate(**batch, **GREEDY))
    with pytest.raises(ValueError, match="prompt_form must be 'text' for .*, which has no prompt encoder"):
        RecipeForCausalLM.from_pretrained(tmp_path, base_model=tiny_base("gemma3", seed=5), prompt_form="continuous")


def test_a_checkpoint_with_continuous_prompts_has_both_forms(trained: Path, caplog: pytest.LogCaptureFixture):
    logging.getLogger("transformers").propagate = True
    model = RecipeForCausalLM.from_pretrained(trained, base_model=tiny_base(), prompt_form="text")
    assert "UNEXPECTED" not in caplog.text
    batch = batch_of(model, PROMPTS[:1])
    written = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    assert written.tolist() == plain(model, ids_of(model, PROMPTS[0], TEXTS[0])).tolist()


def test_two_bases_serve_one_file_of_facts(trained: Path, tmp_path: Path):
    path = tmp_path / "facts.db"
    first = RecipeForCausalLM.from_pretrained(trained, base_model=tiny_base())
    first.open_knowledge(path)
    first.add_knowledge(FACTS)
    fingerprint, keys = first.knowledge.encoder_fingerprint, first.knowledge.keys([0, 1, 2, 3]).clone()
    first.knowledge.close()
    second = RecipeForCausalLM.from_base_pretrained(tiny_base("gpt2"), retriever=trained, tokenizer=base_tokenizer())
    # Keys that were made anew could not be written here.
    second.open_knowledge(path, read_only=True)
    assert [hit.fired for hit in second.retrieve(MIXED)] == [True, False, True, False]
    assert second.knowledge.encoder_fingerprint == fingerprint
    assert torch.equal(second.knowledge.keys([0, 1, 2, 3]), keys)
    batch = batch_of(second, PROMPTS[:1])
    written = second.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    assert written.tolist() == plain(second, ids_of(second, PROMPTS[0], TEXTS[0])).tolist()
    second.knowledge.close()


def test_a_prompt_encoder_to_train_with_a_trained_retriever(trained: Path):
    model = told(trained, "gemma3", prompt_form="continuous", num_answer_prompt_tokens=4)
    assert model.prompt_encoder.output.weight.shape[0] == 3 * 32
    assert model.answer_prompt_encoder.num_tokens == 4
    assert [hit.fired for hit in model.retrieve(MIXED)] == [True, False, True, False]


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"encoder": tiny_encoder()}, ValueError, "encoder must not be given with a trained retriever"),
        ({"encoder_tokenizer": encoder_tokenizer()}, ValueError, "encoder_tokenizer must not be given"),
        ({"knowledge_dim": 64}, ValueError, "knowledge_dim must not be given with a trained retriever"),
        ({"prompt_form": "words"}, ValueError, "prompt_form must be 'continuous' or 'text', got 'words'"),
        ({"retriever": "org/nothing"}, OSError, "retriever must be a directory or a Hub id, got 'org/nothing'"),
        ({"retriever": 7}, TypeError, "retriever must be a directory or a Hub id, got int"),
        ({"retriever": None, "retriever_revision": "v1"}, ValueError, "retriever_revision must be None"),
    ],
)
def test_bad_arguments_are_refused(trained: Path, arguments: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        RecipeForCausalLM.from_base_pretrained(tiny_base(), **{"retriever": trained} | arguments)


def test_a_retriever_of_another_kind_is_refused(tmp_path: Path):
    tiny_encoder().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="retriever must be a RECIPE checkpoint, got one of model type 'bert'"):
        RecipeForCausalLM.from_base_pretrained(tiny_base(), retriever=tmp_path)
    with pytest.raises(ValueError, match="prompt_form must be 'continuous' or 'text', got None"):
        RecipeConfig(prompt_form=None)


def test_what_needs_a_prompt_encoder_is_refused(trained: Path, tmp_path: Path):
    model = told(trained)
    with pytest.raises(
        RuntimeError, match="no continuous prompts: it has no prompt encoder .its prompt_form is 'text'"
    ):
        model.continuous_prompts(model.knowledge.keys([0]), [None])
    with pytest.raises(ValueError, match="inputs_embeds must be None where facts are told as text"):
        model.generate(inputs_embeds=torch.zeros(1, 2, 32), queries=PROMPTS[:1])
    ids = model.tokenizer(PROMPTS[0])["input_ids"]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:]}]
    with pytest.raises(RuntimeError, match="nothing to train through its base"):
        Trainer(model, arguments, train_dataset=rows).train()
    model.tokenizer = None
    with pytest.raises(RuntimeError, match="Statements cannot be read without the base's tokenizer"):
        model.generate(torch.tensor([ids]), queries=PROMPTS[:1], **GREEDY)


def test_a_recipe_model_with_an_encoder_may_be_told_text():
    model = tiny_recipe(prompt_form="text")
    model.add_knowledge(FACTS)
    batch = batch_of(model, PROMPTS[:1])
    written = model.generate(**batch, **GREEDY)[:, batch["input_ids"].shape[1] :]
    assert written.tolist() == plain(model, ids_of(model, PROMPTS[0], TEXTS[0])).tolist()
