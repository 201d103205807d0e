"""Warm start of the prompt encoder: continuous prompts made of the answer's own word embeddings.

They come from an [`~recipe_hf.modeling.prompt_encoder.AnswerPromptEncoder`] that serves training only. Training MLP_P
on the LLM losses from random weights hardly moves. These prompts, which have few shared parameters, learn within
minutes how to make the base say what they carry; MLP_P then learns to give them from the statement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.frozen_base import input_device
from ..modeling.prompt_encoder import carried_tokens

_SAMPLED_TOKENS = 10_000


class AnswerPool:
    """Answers to draw from, and the pieces of them that each prompt token carries.

    The tokens that a short answer leaves over carry its last one again.

    Args:
        answers: The answers; each text once.
        tokenizer: The base's tokenizer.
        lm: The base. Its input embeddings are called, because some scale what their weight holds.
        num_tokens: Length of a continuous prompt.
    """

    @torch.no_grad()
    def __init__(
        self, answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, lm: PreTrainedModel, num_tokens: int
    ) -> None:
        self.answers = list(dict.fromkeys(answers))
        self.index = {answer: i for i, answer in enumerate(self.answers)}
        self.labels = torch.empty(len(self.answers), num_tokens, dtype=torch.long)
        pieces: list[dict[tuple[int, ...], int]] = [{} for _ in range(num_tokens)]
        ids = tokenizer([f" {answer}" for answer in self.answers], add_special_tokens=False)["input_ids"]
        for row, tokens in enumerate(ids):
            for i, carried in enumerate(carried_tokens(tokens, num_tokens)):
                carried = carried or (tokens[-1],)
                self.labels[row, i] = pieces[i].setdefault(carried, len(pieces[i]))
        self.pieces = [_mean_embeddings(lm, list(carried)) for carried in pieces]
        #: What each prompt token carries on average, `[num_tokens, d_llm]`.
        self.mean = torch.stack([carried.mean(0) for carried in self.pieces])

    def __len__(self) -> int:
        return len(self.answers)

    def gather(self, labels: Tensor) -> Tensor:
        """Mean word embeddings `[n, num_tokens, d_llm]` for `labels` `[n, num_tokens]`."""
        return torch.stack([pieces[labels[:, i]] for i, pieces in enumerate(self.pieces)], dim=1)


@torch.no_grad()
def embedding_scale(lm: PreTrainedModel) -> float:
    """How large the numbers of word embeddings are, in eighths and rounded to a power of two: 1 for SmolLM2's."""
    number = min(_SAMPLED_TOKENS, lm.config.get_text_config().vocab_size)
    words = lm.get_input_embeddings()(torch.arange(number, device=input_device(lm))).float()
    return 2.0 ** round(math.log2(8 * words.square().mean().sqrt().item()))


def _mean_embeddings(lm: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """The mean word embedding of each row of tokens, `[len(rows), d_llm]`, in float32."""
    tokens = torch.tensor([token for row in rows for token in row], device=input_device(lm))
    words = lm.get_input_embeddings()(tokens).float()
    return torch.stack([of_row.mean(0) for of_row in words.split([len(row) for row in rows])])
