from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recipe_hf.teacher_forcing import IGNORE_INDEX, Row, answer_logits, tokenize_rows
from tests.reference import CLOSE
from tests.tiny import HIDDEN_SIZE, VOCAB_SIZE, tiny_causal_lm
from tests.tiny_recipe import base_tokenizer, bos_tokenizer, encoder_tokenizer

# A prompt shorter than the longest answer, one-token answers and prompts, and rows of several lengths.
ROWS = [Row([5, 6, 7, 8, 9], [10, 11]), Row([12], [13]), Row([14, 15], [16, 17, 18, 19]), Row([3, 4, 5, 6], [7])]


def expected_logits(lm, row: Row, prefix: Tensor) -> Tensor:
    """A row alone, whole, without padding, mask or positions: logits that predict the answer tokens."""
    text = lm.get_input_embeddings()(torch.tensor(row.prompt_ids + row.answer_ids))
    embeds = torch.cat([text[: row.behind], prefix, text[row.behind :]])
    logits = lm(inputs_embeds=embeds.unsqueeze(0), use_cache=False).logits[0]
    return logits[-len(row.answer_ids) - 1 : -1]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj", "gpt-neox", "bloom", "qwen2-sliding"])
@pytest.mark.parametrize("num_tokens", [0, 3])
@pytest.mark.parametrize("num_buckets", [1, 3, 9])
def test_logits_are_those_of_each_row_alone(architecture: str, num_tokens: int, num_buckets: int):
    lm = tiny_causal_lm(architecture)
    prefixes = torch.randn(len(ROWS), num_tokens, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    logits, labels = answer_logits(lm, ROWS, prefixes if num_tokens else None, num_buckets)
    assert logits.shape == (4, 4, VOCAB_SIZE) and labels.shape == (4, 4)
    assert logits.isfinite().all()
    for row, prefix, found, kept in zip(ROWS, prefixes, logits, labels != IGNORE_INDEX, strict=True):
        torch.testing.assert_close(found[kept], expected_logits(lm, row, prefix), **CLOSE)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2-sliding"])
@pytest.mark.parametrize("num_buckets", [1, 3])
def test_a_prefix_may_stand_behind_the_first_tokens(architecture: str, num_buckets: int):
    lm = tiny_causal_lm(architecture)
    rows = [replace(row, behind=behind) for row, behind in zip(ROWS, (1, 1, 0, 2), strict=True)]
    prefixes = torch.randn(len(rows), 3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    logits, labels = answer_logits(lm, rows, prefixes, num_buckets)
    for row, prefix, found, kept in zip(rows, prefixes, logits, labels != IGNORE_INDEX, strict=True):
        torch.testing.assert_close(found[kept], expected_logits(lm, row, prefix), **CLOSE)
    kept = labels != IGNORE_INDEX
    torch.testing.assert_close(answer_logits(lm, rows)[0][kept], answer_logits(lm, ROWS)[0][kept], **CLOSE)


def test_rows_say_behind_what_a_prompt_stands():
    prompts = ["Snow is", "Grass is"]
    of = lambda tokenizer, **kwargs: [r.behind for r in tokenize_rows(tokenizer, prompts, prompts, **kwargs)]  # noqa: E731
    assert of(bos_tokenizer()) == [0, 0]
    assert of(bos_tokenizer(), prompt_position="after_bos") == [1, 1]
    assert of(base_tokenizer(), prompt_position="after_bos") == [0, 0]


def test_labels_stand_at_the_right():
    _, labels = answer_logits(tiny_causal_lm(), ROWS)
    x = IGNORE_INDEX
    assert labels.tolist() == [[x, x, 10, 11], [x, x, x, 13], [16, 17, 18, 19], [x, x, x, 7]]


def test_prefix_matters_and_gets_gradients():
    lm = tiny_causal_lm()
    prefixes = torch.randn(len(ROWS), 3, HIDDEN_SIZE, requires_grad=True)
    logits, _ = answer_logits(lm, ROWS, prefixes)
    assert (logits - answer_logits(lm, ROWS)[0]).abs().max() > 1e-2
    logits[:, -1].sum().backward()
    assert prefixes.grad.flatten(1).abs().amax(1).min() > 0
    assert all(weight.grad is None for weight in lm.parameters())


def test_lm_head_runs_at_answers_only():
    lm, widths = tiny_causal_lm(), []
    lm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    answer_logits(lm, ROWS, torch.zeros(4, 3, HIDDEN_SIZE))
    assert widths == [4]


def test_rows_of_similar_length_share_a_call():
    lm, shapes = tiny_causal_lm(), []
    lm.get_input_embeddings().register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    answer_logits(lm, ROWS, torch.zeros(4, 3, HIDDEN_SIZE), num_buckets=2)
    assert shapes == [(2, 4), (2, 6)]


def test_answers_are_tokenised_after_one_space():
    tokenizer = base_tokenizer()
    rows = tokenize_rows(tokenizer, ["Ann is", "Bo"], ["five", "a b"])
    assert [tokenizer.decode(row.prompt_ids + row.answer_ids) for row in rows] == ["Ann is five", "Bo a b"]
    assert tokenizer.decode(rows[0].answer_ids) == " five"
    assert [len(row) for row in rows] == [11, 6]


def test_special_tokens_surround_prompts_only():
    (row,) = tokenize_rows(encoder_tokenizer(), ["a"], ["b"])
    assert row.prompt_ids[0] == 1 and 1 not in row.answer_ids and 2 not in row.answer_ids


def test_answer_follows_a_space_or_the_line_that_a_chat_template_began():
    tokenizer = base_tokenizer()
    rows = tokenize_rows(tokenizer, ["Who?", "<|im_start|>assistant\n"], ["Ann", "Ann"])
    assert [tokenizer.decode(row.answer_ids) for row in rows] == [" Ann", "Ann"]
