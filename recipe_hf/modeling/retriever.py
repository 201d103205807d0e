"""The retriever: text encoder, two residual heads and the knowledge sentinel (paper eq. 6, 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerBase

from .configuration import RecipeConfig
from .legibility import unknown_words


class ResidualMLP(nn.Module):
    """Two linear layers joined in a residual manner, `x = W1 f + b1`, `r = x + relu(W2 x + b2)`.

    Shapes: `[..., in_features]` -> `[..., out_features]`.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.input = nn.Linear(in_features, out_features)
        self.residual = nn.Linear(out_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.input(features)
        return hidden + torch.relu(self.residual(hidden))


class FeatureStandardizer(nn.Module):
    """Brings every feature to mean 0 and deviation 1 over texts of the training data.

    The statistics are buffers, fitted once to the encoder that training starts from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Takes the statistics of `features` `[n, num_features]`."""
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(1e-4))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std


class Retriever(nn.Module):
    """Maps statements to keys `r_k` and queries to `r_q`, and holds the knowledge sentinel.

    `tokenizer` is the encoder's; it is set by whoever builds or loads the model.
    """

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        self.encoder = AutoModel.from_config(config.encoder_config, dtype=torch.float32)
        self.standardizer = FeatureStandardizer(config.num_features)
        self.mlp_k = ResidualMLP(config.num_features, config.knowledge_dim)
        self.mlp_q = ResidualMLP(config.num_features, config.knowledge_dim)
        self.sentinel_embeds = nn.Parameter(torch.empty(config.num_sentinel_tokens, config.encoder_config.hidden_size))
        self.use_pooler_output = config.use_pooler_output
        self.max_length = config.max_encoder_length
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def device(self) -> torch.device:
        """Device of the trained weights."""
        return self.sentinel_embeds.device

    @staticmethod
    def pool(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """Max, min and mean over the tokens: `[batch, seq, d]`, `[batch, seq]` -> `[batch, 3 * d]`."""
        mask = attention_mask.unsqueeze(-1).bool()
        largest = torch.finfo(hidden_states.dtype).max
        maximum = hidden_states.masked_fill(~mask, -largest).amax(1)
        minimum = hidden_states.masked_fill(~mask, largest).amin(1)
        mean = (hidden_states * mask).sum(1) / mask.sum(1)
        return torch.cat([maximum, minimum, mean], dim=-1)

    def features(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Pooled encoder features `f_rm`, not yet standardised, `[batch, num_features]`."""
        outputs = self.encoder(attention_mask=attention_mask, **inputs)
        features = self.pool(outputs.last_hidden_state, attention_mask)
        if self.use_pooler_output:
            features = torch.cat([features, outputs.pooler_output], dim=-1)
        return features

    def tokenize(self, texts: Sequence[str], keep: Literal["start", "end"] = "start") -> list[list[int]]:
        """Token ids of each text and its special tokens; of one too long for the encoder, `keep` says what stays."""
        return tokenize(self._tokenizer(), texts, self.max_length, keep)

    def unknown_words(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of each text that the encoder does not know, as in [`legibility`]."""
        return unknown_words(self._tokenizer(), texts) if texts else []

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise RuntimeError("The retriever has no tokenizer: load the model with from_pretrained.")
        return self.tokenizer

    def text_features(
        self, texts: Sequence[str], batch_size: int = 64, keep: Literal["start", "end"] = "start"
    ) -> Tensor:
        """Features of texts in any order and of any length, `[len(texts), num_features]`, on the model's device.

        Texts of similar length share a batch, so little is spent on padding.
        """
        ids = self.tokenize(texts, keep)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        batches = []
        for start in range(0, len(order), batch_size):
            chosen = {"input_ids": [ids[i] for i in order[start : start + batch_size]]}
            batches.append(self.features(**self._tokenizer().pad(chosen, return_tensors="pt").to(self.device)))
        position = torch.empty(len(order), dtype=torch.long)
        position[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(batches)[position.to(self.device)]

    def encode_statements(self, statements: Sequence[str], batch_size: int = 64) -> Tensor:
        """Keys `r_k = MLP_K(f_rm(k))` (eq. 6), `[len(statements), knowledge_dim]`."""
        return self.mlp_k(self.standardizer(self.text_features(statements, batch_size)))

    def encode_queries(self, queries: Sequence[str], batch_size: int = 64) -> Tensor:
        """Query representations `r_q = MLP_Q(f_rm(q))` (eq. 8), `[len(queries), knowledge_dim]`.

        Of a query longer than the encoder takes, the end is read: that is where a prompt asks.
        """
        return self.mlp_q(self.standardizer(self.text_features(queries, batch_size, keep="end")))

    def encode_sentinel(self) -> Tensor:
        """Key of the knowledge sentinel, `r_sentinel = MLP_K(f_rm(sentinel tokens))`, `[knowledge_dim]`."""
        embeds = self.sentinel_embeds.unsqueeze(0)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        return self.mlp_k(self.standardizer(self.features(attention_mask=mask, inputs_embeds=embeds)))[0]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, keep: Literal["start", "end"]
) -> list[list[int]]:
    """Token ids of each text, at most `max_length` with the special ones: `keep` says which part of a text stays."""
    ids = tokenizer(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]
    if keep == "start":
        return [i if len(i) <= max_length else i[: max_length - 1] + i[-1:] for i in ids]
    return [i if len(i) <= max_length else i[:1] + i[1 - max_length :] for i in ids]
