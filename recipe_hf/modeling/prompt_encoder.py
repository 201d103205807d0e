"""From a fact to continuous prompt tokens: of its key (paper eq. 7), or of its answer where that is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import initialization

from .configuration import RecipeConfig


class PromptEncoder(nn.Module):
    """`p_k = reshape(MLP_P(r_k))`: `[..., knowledge_dim]` -> `[..., num_continuous_prompt_tokens, d_llm]`."""

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        self.shape = (config.num_continuous_prompt_tokens, config.hidden_size)
        self.residual = nn.Linear(config.knowledge_dim, config.knowledge_dim)
        self.output = nn.Linear(config.knowledge_dim, self.shape[0] * self.shape[1])

    def forward(self, keys: Tensor) -> Tensor:
        return self.output(keys + torch.relu(self.residual(keys))).unflatten(-1, self.shape)


class AnswerPromptEncoder(nn.Module):
    """Prompt token `i` is `offset_i + e_i W_i`, `e_i` the mean word embedding of the answer's tokens that it carries.

    This goes beyond the paper, whose prompts are made of the statement alone.

    Args:
        num_tokens: Length of the prompt.
        width: `d_llm`.
        shared: Whether all prompt tokens have one `W`.
        num_key_tokens: Length of the key's own prompt, where it stands before this one. Each of its tokens gets an
            offset too, `key_offset`, which tells the base that the answer follows.
    """

    def __init__(self, num_tokens: int, width: int, shared: bool = False, num_key_tokens: int | None = None) -> None:
        super().__init__()
        self.key_offset = None if num_key_tokens is None else nn.Parameter(torch.empty(num_key_tokens, width))
        self.offset = nn.Parameter(torch.empty(num_tokens, width))
        self.weight = nn.Parameter(torch.empty(1 if shared else num_tokens, width, width))
        self.reset_parameters()

    @classmethod
    def of_known_answers(cls, config: RecipeConfig) -> AnswerPromptEncoder:
        """One that makes the prompts of known answers behind those of their facts' keys."""
        sizes = config.num_answer_prompt_tokens, config.hidden_size
        return cls(*sizes, shared=True, num_key_tokens=config.num_continuous_prompt_tokens)

    def reset_parameters(self) -> None:
        """Makes the prompt the word embeddings themselves, but for parameters that were just loaded."""
        for offset in self.offsets:
            initialization.zeros_(offset)
        initialization.copy_(self.weight, torch.eye(self.offset.shape[1]))

    @property
    def offsets(self) -> list[nn.Parameter]:
        """The offsets of the prompt's tokens and, if they have any, of the key's."""
        return [self.offset] if self.key_offset is None else [self.offset, self.key_offset]

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.offset)

    def token(self, index: int, pieces: Tensor) -> Tensor:
        """Prompt token `index` for mean word embeddings `[n, d_llm]`."""
        return self.offset[index] + pieces @ self.weight[index % len(self.weight)]

    def forward(self, pieces: Tensor) -> Tensor:
        """Continuous prompts for `[n, num_tokens, d_llm]`."""
        if len(self.weight) == 1:
            return self.offset + pieces @ self.weight[0]
        return torch.stack([self.token(i, piece) for i, piece in enumerate(pieces.unbind(1))], dim=1)


def carried_tokens(ids: Sequence[int], num_tokens: int) -> list[tuple[int, ...]]:
    """Which of an answer's tokens each prompt token carries.

    Prompt token `i` carries token `i`, the last one all that remain; those left over carry none.

    >>> carried_tokens([5, 6, 7, 8], 3), carried_tokens([5, 6], 3)
    ([(5,), (6,), (7, 8)], [(5,), (6,), ()])
    """
    last = num_tokens - 1
    return [tuple(ids[i:] if i == last else ids[i : i + 1]) for i in range(num_tokens)]
