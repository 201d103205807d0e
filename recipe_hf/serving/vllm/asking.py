"""What one HTTP request asks of the facts, and what was found for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ...modeling.outputs import Retrieval
from .model import Asked, Inserted


@dataclass(eq=False)
class Looked:
    """A prompt of a request, and in time what was found for it, and what that put into it."""

    asked: Asked
    retrieval: Retrieval | None = None
    inserted: Inserted | None = None


@dataclass(eq=False)
class Asking:
    """A request.

    Attributes:
        namespace: Among whose facts its prompts are looked up.
        where: As in `retrieve`.
        off: Whether it is answered without facts.
        beams: Whether it is a beam search, for which vLLM asks its engine for each token of each beam apart.
        looked: Its prompts, in the order in which they went to the engine.
    """

    namespace: str | None = None
    where: Mapping[str, Any] | None = None
    off: bool = False
    beams: bool = False
    looked: list[Looked] = field(default_factory=list)

    def prompt(self, ids: Sequence[int]) -> Looked:
        """A prompt of the request; for a beam, the prompt that it goes on from."""
        if self.beams:
            begun = [each for each in self.looked if list(ids[: len(each.asked.ids)]) == list(each.asked.ids)]
            if begun:
                return max(begun, key=lambda each: len(each.asked.ids))
        self.looked.append(Looked(Asked(ids, self.namespace, self.where)))
        return self.looked[-1]

    def found(self) -> list[Retrieval | None]:
        """What was found for each prompt, once that is known: None for one that is answered without facts."""
        if self.off:
            return [None]
        found = [each.retrieval for each in self.looked]
        return [] if None in found else found


#: The request that is being answered; None outside of one.
current: ContextVar[Asking | None] = ContextVar("recipe_asking", default=None)
