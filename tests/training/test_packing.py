from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recipe_hf.teacher_forcing import IGNORE_INDEX, Row, answer_logits
from recipe_hf.training.packing import check_packing, packed_answer_logits
from tests.reference import CLOSE
from tests.tiny import HIDDEN_SIZE, VOCAB_SIZE, tiny_causal_lm

# Six rows of three prefixes, among them rows that begin alike, a row twice, and answers of several lengths.
ROWS = [
    Row([5, 6, 7, 8, 9], [10, 11]),
    Row([12], [13]),
    Row([14, 15], [16, 17, 18, 19]),
    Row([5, 6, 7, 20], [21]),
    Row([12], [13]),
    Row([14], [15, 16]),
]
LIKE_LLAMA = ["llama", "gpt2", "gptj", "gpt-neox", "qwen2"]


def prefixes(count: int = 3) -> Tensor:
    return torch.randn(count, 3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
@pytest.mark.parametrize(("attention", "count"), [("sdpa", 3), ("eager", 3), ("sdpa", 6)])
def test_logits_labels_and_gradients_are_those_of_padded_rows(architecture: str, attention: str, count: int):
    lm = tiny_causal_lm(architecture)
    lm.set_attn_implementation(attention)
    packed, padded = prefixes(count).requires_grad_(), prefixes(count).requires_grad_()
    found, labels = packed_answer_logits(lm, ROWS, packed)
    expected, expected_labels = answer_logits(lm, ROWS, padded.repeat(6 // count, 1, 1))
    assert labels.tolist() == expected_labels.tolist()
    assert found.shape == (6, 4, VOCAB_SIZE)
    kept = labels != IGNORE_INDEX
    torch.testing.assert_close(found[kept], expected[kept], **CLOSE)
    for logits in (found, expected):
        logits[kept].log_softmax(-1)[:, 7].sum().backward()
    torch.testing.assert_close(packed.grad, padded.grad, atol=1e-4, rtol=1e-3)
    assert packed.grad.abs().amax((1, 2)).min() > 0


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_prefix_tokens_that_are_not_there_are_left_out(architecture: str):
    lm = tiny_causal_lm(architecture)
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    found, labels = packed_answer_logits(lm, ROWS, prefixes(), mask)
    expected, _ = answer_logits(lm, ROWS, prefixes().repeat(2, 1, 1), prefix_mask=mask.repeat(2, 1))
    torch.testing.assert_close(found[labels != IGNORE_INDEX], expected[labels != IGNORE_INDEX], **CLOSE)


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_a_prefix_may_stand_behind_the_first_tokens(architecture: str):
    lm, mask = tiny_causal_lm(architecture), torch.tensor([[True, False, True], [False, False, False], [True] * 3])
    rows = [replace(row, behind=behind) for row, behind in zip(ROWS, (1, 1, 2, 1, 1, 0), strict=True)]
    packed, padded = prefixes().requires_grad_(), prefixes().requires_grad_()
    found, labels = packed_answer_logits(lm, rows, packed, mask)
    expected, _ = answer_logits(lm, rows, padded.repeat(2, 1, 1), prefix_mask=mask.repeat(2, 1))
    kept = labels != IGNORE_INDEX
    torch.testing.assert_close(found[kept], expected[kept], **CLOSE)
    for logits in (found, expected):
        logits[kept].log_softmax(-1)[:, 7].sum().backward()
    torch.testing.assert_close(packed.grad, padded.grad, atol=1e-4, rtol=1e-3)


def test_without_a_prefix_logits_are_those_of_the_base():
    lm = tiny_causal_lm()
    found, labels = packed_answer_logits(lm, ROWS)
    torch.testing.assert_close(
        found[labels != IGNORE_INDEX], answer_logits(lm, ROWS)[0][labels != IGNORE_INDEX], **CLOSE
    )


def test_what_rows_have_in_common_is_computed_once_and_the_head_runs_at_answers_only():
    lm, shapes = tiny_causal_lm(), []
    lm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:2]))
    lm.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    packed_answer_logits(lm, ROWS, prefixes())
    # Trees of 3 + 7, 3 + 1 and 3 + 5 tokens, 3, 1 and 5 of which predict.
    assert shapes == [(1, 22), (1, 9)]


@pytest.mark.parametrize("architecture", LIKE_LLAMA)
def test_check_lets_through_what_packs_rightly(architecture: str):
    check_packing(tiny_causal_lm(architecture), ROWS)


@pytest.mark.parametrize(
    ("architecture", "reason"), [("bloom", "it takes no position_ids"), ("qwen2-sliding", "its logits .* differ")]
)
def test_check_refuses_what_does_not(architecture: str, reason: str):
    with pytest.raises(ValueError, match=f"pack_rows must be False for a base of type '.*': {reason}"):
        check_packing(tiny_causal_lm(architecture), ROWS)
