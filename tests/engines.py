"""Knowledge bases of every engine, keys for them, and what they hold, for tests of what they have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase

# "codes" is a file whose facts are all searched by codes.
ENGINES = ("memory", "file", "codes", "qdrant")


def qdrant(location: Any = ":memory:", dim: int | None = None, **kwargs: Any) -> Any:
    """One in Qdrant's local mode, or a skipped test."""
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install 'recipe-hf[qdrant]'")
    from recipe_hf.knowledge.qdrant import QdrantKnowledgeBase

    return QdrantKnowledgeBase(location, dim=dim, **kwargs)


def open_base(engine: str, directory: Path, dim: int | None = None) -> KnowledgeBase:
    """The one in a directory, or a new one in memory."""
    if engine == "memory":
        assert dim is not None
        return KnowledgeBase(dim)
    if engine in ("file", "codes"):
        threshold = {"full_scan_threshold": 1} if engine == "codes" else {}
        return KnowledgeBase.open(directory / "facts.db", dim, **threshold)
    return qdrant(directory / "qdrant", dim)


def random_keys(n: int, seed: int = 0, dim: int = 8) -> torch.Tensor:
    """`n` keys, the same for the same seed."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def content(base: KnowledgeBase) -> tuple:
    """Everything that a namespace holds, to be compared."""
    it = base.contents()
    past_keys = {id: key.tolist() for id, key in it.past_keys.items()}
    return it.dim, it.facts, it.past, it.keys.tolist(), past_keys, it.next_id, it.encoder_fingerprint
