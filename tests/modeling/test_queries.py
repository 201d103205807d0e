"""Tests of what the retriever reads of a prompt."""

import pytest
import torch

from recipe_hf.modeling.queries import ChatMarkers, as_chat, chat_markers, read_queries
from tests.tiny_recipe import base_tokenizer

USER = {"role": "user", "content": "Who runs Acme?"}
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi. Who asks?"},
    USER,
]

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "[INST] {{ (system if loop.first else '') + message['content'].strip() }} [/INST]"
    "{% else %} {{ message['content'].strip() }} <|im_end|>{% endif %}{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else 'user' }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
WITH_DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_WORDS = (
    "{% for message in messages %}{{ 'Human' if message['role'] == 'user' else message['role'] }}: "
    "{{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TEMPLATES = {
    "chatml": None,
    "llama-2": LLAMA_2,
    "gemma": GEMMA,
    "default-system": WITH_DEFAULT_SYSTEM,
    "plain-words": PLAIN_WORDS,
}


def tokenizer_with(template):
    return base_tokenizer() if template is None else base_tokenizer(template)


def render(tokenizer, messages, **kwargs):
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True, **kwargs)["input_ids"]
    return read_queries(tokenizer, ids)[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_looked_up_by_its_last_user_message(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    dialogue = DIALOGUE[1:] if name == "gemma" else DIALOGUE
    assert render(tokenizer, [USER], add_generation_prompt=True) == "Who runs Acme?"
    assert render(tokenizer, dialogue, add_generation_prompt=True) == "Who runs Acme?"
    assert render(tokenizer, dialogue, add_generation_prompt=False) == "Who runs Acme?"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "gemma"])
def test_a_system_message_is_not_part_of_the_query(name):
    assert render(tokenizer_with(TEMPLATES[name]), [DIALOGUE[0], USER], add_generation_prompt=True) == "Who runs Acme?"


def test_the_beginning_of_an_answer_is_not_part_of_the_query():
    tokenizer = base_tokenizer()
    messages = [USER, {"role": "assistant", "content": "It is"}]
    assert render(tokenizer, messages, continue_final_message=True) == "Who runs Acme?"


def test_paragraphs_of_a_message_are_kept():
    tokenizer = base_tokenizer()
    message = {"role": "user", "content": "First.\n\nSecond: who runs Acme?"}
    assert render(tokenizer, [message], add_generation_prompt=True) == message["content"]


def test_text_that_is_not_a_chat_is_read_whole_without_padding_and_special_tokens():
    tokenizer = base_tokenizer()
    batch = tokenizer(["<|im_start|>Who runs Acme? ", "It rains"], return_tensors="pt", padding=True)
    assert read_queries(tokenizer, batch.input_ids, batch.attention_mask) == ["Who runs Acme?", "It rains"]
    assert read_queries(tokenizer, batch.input_ids) == ["Who runs Acme?", "It rains"]


def test_masked_tokens_are_not_read():
    tokenizer = base_tokenizer()
    batch = tokenizer(["abcd", "xy"], return_tensors="pt", padding=True)
    query_mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0]])
    labels = torch.tensor([[-100, -100, -100, 5], [-100, -100, -100, -100]])
    ids, mask = batch.input_ids, batch.attention_mask
    assert read_queries(tokenizer, ids, mask, query_mask) == ["bc", "x"]
    assert read_queries(tokenizer, ids, mask, labels=labels) == ["abc", "xy"]
    assert read_queries(tokenizer, ids, mask, query_mask, labels) == ["bc", "x"]


def test_labels_from_the_first_token_leave_an_empty_query():
    tokenizer = base_tokenizer()
    ids = tokenizer("abcd", return_tensors="pt").input_ids
    assert read_queries(tokenizer, ids, labels=ids) == [""]


@pytest.mark.parametrize("name", ["attention_mask", "query_mask", "labels"])
def test_a_mask_of_another_shape_is_refused(name):
    tokenizer = base_tokenizer()
    ids = tokenizer("abcd", return_tensors="pt").input_ids
    with pytest.raises(ValueError, match=rf"{name} must have the shape \[1, 4\].*\[1, 3\]"):
        read_queries(tokenizer, ids, **{name: torch.ones(1, 3, dtype=torch.long)})


def test_markers_hold_no_text_of_the_template_around_them():
    assert chat_markers(base_tokenizer()) == ChatMarkers(user="<|im_start|>user", end="<|im_end|>")
    assert chat_markers(tokenizer_with(LLAMA_2)) == ChatMarkers("[INST]", "[/INST]", "<</SYS>>")


@pytest.mark.parametrize(
    "template", ["", "{{ raise_exception('never') }}", "{% for m in messages %}{{ m['content'] }}{% endfor %}"]
)
def test_a_template_that_marks_nothing_gives_no_markers(template):
    tokenizer = base_tokenizer(template)
    assert chat_markers(tokenizer) is None
    assert read_queries(tokenizer, tokenizer("abcd", return_tensors="pt").input_ids) == ["abcd"]


@pytest.mark.parametrize(
    ("template", "got"),
    [
        (None, "none"),
        ("{{ 'Be brief.' }}", "one that leaves it out"),
        ("{{ raise_exception('no chats') }}", "one that refuses it: no chats"),
    ],
)
def test_a_chat_needs_a_template_with_a_user_turn(template, got):
    with pytest.raises(ValueError, match=f"tokenizer.chat_template must have a turn for a user's message, got {got}"):
        as_chat(base_tokenizer(template), "Hello")
    assert as_chat(base_tokenizer(), "Hello") == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_markers_follow_a_change_of_the_template():
    tokenizer = base_tokenizer()
    assert chat_markers(tokenizer).user == "<|im_start|>user"
    tokenizer.chat_template = GEMMA
    assert chat_markers(tokenizer).user == "<start_of_turn>user"
