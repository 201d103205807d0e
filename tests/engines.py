"""Knowledge bases of every engine, for tests of what they have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
