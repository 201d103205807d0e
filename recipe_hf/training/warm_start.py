"""Warm start of the prompt encoder: continuous prompts made of the answer's own word embeddings.

Training MLP_P on the LLM losses from random weights hardly moves. These prompts, which have few shared parameters,
learn within minutes how to make the base say what they carry; MLP_P then learns to give them from the statement.
They serve training only: a finished model computes `p_k = MLP_P(r_k)`, as eq. 7 says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


class AnswerPrompt(nn.Module):
    """Prompt token `i` is `offset_i + linear_i(e_i)`, `e_i` the mean word embedding of the answer's tokens it carries.

    Token `i` of the answer goes to prompt token `i`; the last prompt token carries all that remain, and a short
    answer's last token is carried again by those left over.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(num_tokens, width))
        self.weight = nn.Parameter(torch.eye(width).repeat(num_tokens, 1, 1))

    def token(self, index: int, pieces: Tensor) -> Tensor:
        """Prompt token `index` for mean word embeddings `[n, d_llm]`."""
        return self.offset[index] + pieces @ self.weight[index]

    def forward(self, pieces: Tensor) -> Tensor:
        """Continuous prompts for `[n, num_tokens, d_llm]`."""
        return self.offset + torch.einsum("ntd,tde->nte", pieces, self.weight)


class AnswerPool:
    """Answers to draw from, and the pieces of them that each prompt token carries.

    Args:
        answers: The answers; each text once.
        tokenizer: The base's tokenizer.
        embeddings: The base's input embeddings, `[vocab, d_llm]`.
        num_tokens: Length of a continuous prompt.
    """

    def __init__(
        self, answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, embeddings: Tensor, num_tokens: int
    ) -> None:
        self.answers = list(dict.fromkeys(answers))
        self.index = {answer: i for i, answer in enumerate(self.answers)}
        self.labels = torch.empty(len(self.answers), num_tokens, dtype=torch.long)
        pieces: list[dict[tuple[int, ...], int]] = [{} for _ in range(num_tokens)]
        ids = tokenizer([f" {answer}" for answer in self.answers], add_special_tokens=False)["input_ids"]
        for row, tokens in enumerate(ids):
            for i in range(num_tokens):
                carried = tuple(tokens[i:] if i == num_tokens - 1 else tokens[i : i + 1]) or (tokens[-1],)
                self.labels[row, i] = pieces[i].setdefault(carried, len(pieces[i]))
        self.pieces = [torch.stack([embeddings[list(p)].mean(0) for p in carried]) for carried in pieces]
        #: What each prompt token carries on average, `[num_tokens, d_llm]`.
        self.mean = torch.stack([carried.mean(0) for carried in self.pieces])

    def __len__(self) -> int:
        return len(self.answers)

    def gather(self, labels: Tensor) -> Tensor:
        """Mean word embeddings `[n, num_tokens, d_llm]` for `labels` `[n, num_tokens]`."""
        return torch.stack([pieces[labels[:, i]] for i, pieces in enumerate(self.pieces)], dim=1)
