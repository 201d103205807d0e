from __future__ import annotations

import torch

from recipe_hf.modeling.prompt_encoder import AnswerPromptEncoder
from recipe_hf.training.warm_start import AnswerPool
from tests.tiny import HIDDEN_SIZE
from tests.tiny_recipe import base_tokenizer, tiny_base

ANSWERS = ["a", "bc", "def", "xbcdef", "a"]
TOKENIZER = base_tokenizer()
LM = tiny_base("gemma3")  # What its weight holds is scaled by the module.
EMBEDDINGS = LM.get_input_embeddings()(torch.arange(len(TOKENIZER)))


def pool(num_tokens: int = 3) -> AnswerPool:
    return AnswerPool(ANSWERS, TOKENIZER, LM, num_tokens)


def mean_of(characters: str) -> torch.Tensor:
    ids = TOKENIZER(characters, add_special_tokens=False)["input_ids"]
    return torch.stack([EMBEDDINGS[i] for i in ids]).mean(0)


def pieces_of(pool: AnswerPool, answer: str) -> torch.Tensor:
    return pool.gather(pool.labels[[pool.index[answer]]])[0]


def test_each_answer_is_there_once():
    assert len(pool()) == 4
    assert pool().labels.shape == (4, 3)
    assert pool().gather(pool().labels).shape == (4, 3, HIDDEN_SIZE)


def test_last_prompt_token_carries_all_that_remain():
    # The tokens of an answer are its bytes, after the space before it.
    expected = [mean_of(" "), mean_of("x"), mean_of("bcdef")]
    torch.testing.assert_close(pieces_of(pool(), "xbcdef"), torch.stack(expected))


def test_answer_as_long_as_the_prompt():
    torch.testing.assert_close(pieces_of(pool(), "bc"), torch.stack([mean_of(" "), mean_of("b"), mean_of("c")]))


def test_short_answer_repeats_its_last_token():
    expected = [mean_of(" "), mean_of("a"), mean_of("a"), mean_of("a")]
    torch.testing.assert_close(pieces_of(pool(4), "a"), torch.stack(expected))


def test_one_prompt_token_carries_the_whole_answer():
    torch.testing.assert_close(pieces_of(pool(1), "def"), mean_of(" def").unsqueeze(0))


def test_equal_pieces_share_a_label():
    labels = {answer: pool().labels[pool().index[answer]].tolist() for answer in ANSWERS}
    assert {row[0] for row in labels.values()} == {0}
    assert len({row[2] for row in labels.values()}) == 4
    assert [len(pieces) for pieces in pool().pieces] == [1, 4, 4]


def test_prompts_start_as_the_pieces_themselves():
    pieces = pool().gather(pool().labels)
    torch.testing.assert_close(AnswerPromptEncoder(3, HIDDEN_SIZE)(pieces), pieces)


def test_prompts_are_affine_in_each_piece():
    prompt = AnswerPromptEncoder(3, HIDDEN_SIZE)
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    pieces = pool().gather(pool().labels)
    found = prompt(pieces)
    assert found.shape == pieces.shape
    for token in range(3):
        for row in range(4):
            expected = prompt.offset[token] + prompt.weight[token].T @ pieces[row, token]
            torch.testing.assert_close(found[row, token], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prompt.token(token, pieces[:, token]), found[:, token], rtol=1e-4, atol=1e-4)
