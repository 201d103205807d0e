"""Warm start of the prompt encoder: continuous prompts made of the answer's own word embeddings.

They come from an [`~recipe_hf.modeling.prompt_encoder.AnswerPromptEncoder`] that serves training only. Training MLP_P
on the LLM losses from random weights hardly moves. These prompts, which have few shared parameters, learn within
minutes how to make the base say what they carry; MLP_P then learns to give them from the statement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..modeling.prompt_encoder import carried_tokens


class AnswerPool:
    """Answers to draw from, and the pieces of them that each prompt token carries.

    The tokens that a short answer leaves over carry its last one again.

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
            for i, carried in enumerate(carried_tokens(tokens, num_tokens)):
                carried = carried or (tokens[-1],)
                self.labels[row, i] = pieces[i].setdefault(carried, len(pieces[i]))
        self.pieces = [torch.stack([embeddings[list(p)].mean(0) for p in carried]) for carried in pieces]
        #: What each prompt token carries on average, `[num_tokens, d_llm]`.
        self.mean = torch.stack([carried.mean(0) for carried in self.pieces])

    def __len__(self) -> int:
        return len(self.answers)

    def gather(self, labels: Tensor) -> Tensor:
        """Mean word embeddings `[n, num_tokens, d_llm]` for `labels` `[n, num_tokens]`."""
        return torch.stack([pieces[labels[:, i]] for i, pieces in enumerate(self.pieces)], dim=1)
