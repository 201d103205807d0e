from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from recipe_hf.modeling.prefix import prefixed_forward
from tests.reference import CLOSE, SIDES, hooked_lm, make_batch
from tests.tiny import ARCHITECTURES, FURTHER_ARCHITECTURES, VOCAB_SIZE


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    return hooked_lm(request.param)


@pytest.mark.parametrize("side", SIDES)
def test_prefixed_forward_is_aligned_to_the_text(lm: PreTrainedModel, side: str) -> None:
    batch = make_batch(side)
    logits = prefixed_forward(lm, batch.embeds, batch.mask, **batch.inputs).logits
    assert logits.shape == (*batch.input_ids.shape, VOCAB_SIZE)
    for row, text in enumerate(batch.texts):
        embeds = torch.cat([batch.prefix(row), lm.get_input_embeddings()(torch.tensor(text))]).unsqueeze(0)
        expected = lm(inputs_embeds=embeds).logits[0, -len(text) :]
        torch.testing.assert_close(logits[row][batch.attention_mask[row].bool()], expected, **CLOSE)


@pytest.mark.parametrize("architecture", ["qwen2-sliding", "bloom", *FURTHER_ARCHITECTURES])
@pytest.mark.parametrize("side", SIDES)
def test_prefixed_forward_of_other_layers(architecture: str, side: str) -> None:
    test_prefixed_forward_is_aligned_to_the_text(hooked_lm(architecture), side)


def test_prefixed_forward_keeps_logits_of_chosen_columns(lm: PreTrainedModel) -> None:
    batch = make_batch("right")
    heads: list[int] = []
    handle = lm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0].shape[1]))
    forward = lambda **kwargs: prefixed_forward(lm, batch.embeds, batch.mask, **batch.inputs, **kwargs).logits  # noqa: E731
    every = forward()
    last, too_many = forward(logits_to_keep=2), forward(logits_to_keep=99)
    chosen = forward(logits_to_keep=torch.tensor([3, 0, -1]))
    each = torch.tensor([[0, 5], [2, 1], [0, -6], [4, 4]])
    per_row = forward(logits_to_keep=each)
    handle.remove()
    torch.testing.assert_close(last, every[:, -2:], **CLOSE)
    torch.testing.assert_close(too_many, every, **CLOSE)
    torch.testing.assert_close(chosen, every[:, [3, 0, -1]], **CLOSE)
    torch.testing.assert_close(per_row, every.take_along_dim((each % 6).unsqueeze(-1), 1), **CLOSE)
    assert heads[:4] == [6, 2, 6, 3]
    assert heads[4] in (2, 5), "the two columns of each row, or before transformers 5.21 the five of all rows"


@pytest.mark.parametrize("side", SIDES)
def test_a_prefix_behind_the_first_tokens(lm: PreTrainedModel, side: str) -> None:
    batch = make_batch(side)
    behind = torch.tensor([1, 0, 1, 3])

    def forward(**kwargs: object) -> Tensor:
        return prefixed_forward(lm, batch.embeds, batch.mask, **batch.inputs, behind=behind, **kwargs).logits

    every = forward()
    assert every.shape == (*batch.input_ids.shape, VOCAB_SIZE)
    for row, text in enumerate(batch.texts):
        before, prefix = int(behind[row]), batch.prefix(row)
        words = lm.get_input_embeddings()(torch.tensor(text))
        logits = lm(inputs_embeds=torch.cat([words[:before], prefix, words[before:]]).unsqueeze(0)).logits[0]
        # The token before the prefix is followed by what the prefix's last one says.
        expected = torch.cat([logits[: max(0, before - 1)], logits[before + len(prefix) - (before > 0) :]])
        torch.testing.assert_close(every[row][batch.attention_mask[row].bool()], expected, **CLOSE)
    columns, each = torch.tensor([3, 0, -1]), torch.tensor([[0, 5], [2, 1], [0, -6], [4, 4]])
    torch.testing.assert_close(forward(logits_to_keep=2), every[:, -2:], **CLOSE)
    torch.testing.assert_close(forward(logits_to_keep=columns), every[:, columns], **CLOSE)
    per_row = every.take_along_dim((each % 6).unsqueeze(-1), 1)
    torch.testing.assert_close(forward(logits_to_keep=each), per_row, **CLOSE)


def test_a_prefix_stands_behind_no_more_tokens_than_there_are(lm: PreTrainedModel) -> None:
    batch = make_batch()
    for behind, message in (([0, 0, 2, 0], "at most as many tokens as the text has"), ([1], r"behind must be \[4\]")):
        with pytest.raises(ValueError, match=message):
            prefixed_forward(lm, batch.embeds, batch.mask, **batch.inputs, behind=torch.tensor(behind))


def test_prefixed_forward_misses_match_the_base(lm: PreTrainedModel) -> None:
    batch = make_batch("left")
    positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    base = lm(**batch.inputs, position_ids=positions).logits
    real = batch.attention_mask.bool()
    mixed = prefixed_forward(lm, batch.embeds, batch.mask, **batch.inputs).logits
    torch.testing.assert_close(mixed[1][real[1]], base[1][real[1]], **CLOSE)
    assert (mixed[0] - base[0]).abs().max() > 1e-2
    none = prefixed_forward(lm, batch.embeds, torch.zeros_like(batch.mask), **batch.inputs).logits
    torch.testing.assert_close(none[real], base[real], **CLOSE)


def test_prefixed_forward_passes_gradients_to_the_prefix(lm: PreTrainedModel) -> None:
    batch = make_batch("right", lengths=(6, 3, 4, 5))
    embeds, expected = (batch.embeds.clone().requires_grad_() for _ in range(2))
    logits = prefixed_forward(lm, embeds, batch.mask, **batch.inputs).logits
    real = batch.attention_mask.bool()
    cross_entropy(logits[:, :-1][real[:, 1:]], batch.input_ids[:, 1:][real[:, 1:]], reduction="sum").backward()
    for row, text in enumerate(batch.texts):
        words = lm.get_input_embeddings()(torch.tensor(text))
        hidden = torch.cat([expected[row][batch.mask[row]], words]).unsqueeze(0)
        alone = lm(inputs_embeds=hidden).logits[0, -len(text) :]
        cross_entropy(alone[:-1], torch.tensor(text[1:]), reduction="sum").backward()
    assert torch.equal((embeds.grad != 0).any(-1), batch.mask)
    torch.testing.assert_close(embeds.grad, expected.grad, **CLOSE)
