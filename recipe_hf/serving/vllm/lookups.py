"""Look-ups from an event loop: in a thread, and together those that come while others are under way."""

from __future__ import annotations

import asyncio

from ...modeling.outputs import Retrieval
from .model import Asked, Inserted, PromptingModel

Found = tuple[Retrieval, Inserted | None]


class Lookups:
    """What asks a model for the facts of prompts. It belongs to one event loop.

    Args:
        model: The model.
    """

    def __init__(self, model: PromptingModel) -> None:
        self.model = model
        self._one_at_a_time = asyncio.Lock()
        self._forming: list[Asked] = []
        self._batch: asyncio.Task[list[Found]] | None = None

    async def find(self, asked: Asked) -> Found:
        """What is found for a prompt, and what that puts into it."""
        if self._batch is None:
            self._forming = []
            self._batch = asyncio.create_task(self._run(self._forming))
        self._forming.append(asked)
        position, batch = len(self._forming) - 1, self._batch
        return (await asyncio.shield(batch))[position]  # Who leaves does not take the others along.

    async def _run(self, asked: list[Asked]) -> list[Found]:
        async with self._one_at_a_time:
            self._batch = None
            return await asyncio.to_thread(self.model.insertions, asked)
