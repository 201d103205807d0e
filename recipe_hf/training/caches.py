"""Caches of training: keys as further negatives, and features while the encoder is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..modeling.retriever import Retriever


class KeyMemory(nn.Module):
    """A ring of the last keys made, as further negatives. It is part of a checkpoint, so that resuming is exact."""

    keys: Tensor
    facts: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        # Accelerate takes two empty tensors for one shared tensor, and saves only the first: resuming would fail.
        self.register_buffer("keys", torch.zeros(size, dim), persistent=size > 0)
        self.register_buffer("facts", torch.full((size,), -1), persistent=size > 0)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys `[m, dim]` and the numbers of their facts `[m]`."""
        size = min(int(self.count), len(self.facts))
        return self.keys[:size], self.facts[:size]

    def clear(self) -> None:
        """Forgets all: an encoder in training moves on, and pushing away its earlier keys makes it diverge."""
        self.count.zero_()

    @torch.no_grad()
    def push(self, keys: Tensor, facts: Tensor) -> None:
        """Takes the place of the oldest by `keys` `[n, dim]` of `facts` `[n]`."""
        size = len(self.facts)
        if size:
            keys, facts = keys[-size:], facts[-size:]
            places = (self.count + torch.arange(len(facts), device=facts.device)) % size
            self.keys[places], self.facts[places] = keys.detach().to(self.keys), facts
            self.count += len(facts)


class FactKeys(nn.Module):
    """A key of every fact trained on, as it was when all were last encoded, to find what a query is mistaken for.

    Args:
        size: Number of facts; 0 keeps nothing.
        dim: Width of the keys.
    """

    keys: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim), persistent=size > 0)

    @torch.no_grad()
    def nearest(self, queries: Tensor, left_out: Tensor, count: int) -> Tensor:
        """The facts `[b * count]` nearest to queries `[b, dim]`, without those where `left_out` `[b, size]` is set."""
        scores = (queries.float() @ self.keys.T).masked_fill(left_out, -torch.inf)
        return scores.topk(count).indices.flatten()


class FeatureCache:
    """Encoder features of texts met before, for as long as the encoder is frozen."""

    def __init__(self) -> None:
        self._features: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, retriever: Retriever, texts: Sequence[str], keep: Literal["start", "end"] = "start") -> Tensor:
        """Features `[len(texts), num_features]`, not yet standardised. A text is always cut at the same end."""
        new = [text for text in dict.fromkeys(texts) if text not in self._features]
        if new:
            self._features.update(zip(new, retriever.text_features(new, keep=keep), strict=True))
        return torch.stack([self._features[text] for text in texts])

    def clear(self) -> None:
        """Forgets all, because the encoder has moved."""
        self._features.clear()
