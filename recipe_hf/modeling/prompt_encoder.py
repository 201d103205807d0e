"""The prompt encoder: from a key to continuous prompt tokens (paper eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
