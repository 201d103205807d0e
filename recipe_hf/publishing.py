"""`push_to_hub` of a model and of facts: what they call, and the module that answers, [`~recipe_hf.hub`].

An upload fills a card and so needs the modules above models and facts, which do not know of these. The package itself
introduces them to each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


class Publisher(Protocol):
    """What uploads to the Hub; see [`~recipe_hf.hub`]."""

    def push_checkpoint(self, directory: str | os.PathLike[str], repo_id: str, **options: Any) -> CommitInfo:
        """Pushes a checkpoint directory."""

    def push_knowledge(self, knowledge: Any, repo_id: str, **options: Any) -> CommitInfo:
        """Pushes the facts of a knowledge base."""


_find: Callable[[], Publisher]  # The package itself gives it.


def publish_by(find: Callable[[], Publisher]) -> None:
    """Says how to get at the publisher, which is imported when something is first pushed."""
    global _find
    _find = find


def publisher() -> Publisher:
    """The publisher."""
    return _find()
