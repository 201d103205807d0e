"""What generates for the server: prompts in, pieces of text out, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ..modeling.outputs import Retrieval
from .metrics import Metrics

FinishReason = Literal["stop", "length"]


class Full(Exception):
    """As many prompts wait already as may; `retry_after` is when to come again, in seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"The server is busy: {waiting} prompts are waiting already.")
        self.retry_after = retry_after


class Closed(Exception):
    """The server is being stopped, and takes no more prompts."""


class Failed(Exception):
    """An answer could not be generated; the log says why."""


@dataclass(frozen=True)
class Sampling:
    """How one prompt is continued, in OpenAI's terms.

    Attributes:
        max_tokens: Most tokens of the answer.
        temperature: 0 for greedy.
        top_p: Share of the probability to choose from.
        top_k: How many tokens to choose from; 0 for any.
        seed: Makes the choice repeatable.
        presence_penalty: Taken off the logits of tokens in the answer so far.
        frequency_penalty: The same for each time that they are there.
        logit_bias: Added to the logits of tokens.
        stop: Texts that end the answer, and are not part of it.
        logprobs: How many alternatives to give log probabilities of, beside each token's own; None for neither.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Prompt:
    """One text to continue: its token ids, what is looked up for it ("" for nothing), and among whose facts."""

    ids: Sequence[int]
    query: str
    sampling: Sampling
    namespace: str = ""
    where: Mapping[str, Any] | None = None

    def another(self, number: int) -> Prompt:
        """The same once more; a seed makes other choices for each number."""
        seed = self.sampling.seed
        return self if seed is None else replace(self, sampling=replace(self.sampling, seed=seed + number))


@dataclass(frozen=True)
class TokenLogprobs:
    """A token of the answer with its log probability, and the most likely tokens with theirs."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What has become of a prompt since the piece before.

    Attributes:
        text: The answer's next characters; may be empty, while a character or a stop string may be under way.
        num_tokens: How many tokens of the answer there are so far.
        logprobs: Of the tokens since the last piece, if they were asked for.
        retrieval: What was looked up; in the first piece at the latest, and in every one after.
        finish_reason: Why this piece is the last one.
    """

    text: str
    num_tokens: int
    retrieval: Retrieval
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None


#: Called in a thread of the engine's, with the number of a prompt and its next piece, or `Failed`.
Deliver = Callable[[int, "Piece | Failed"], None]


class Engine(Protocol):
    """What generates. [`stream`] is how routes use it."""

    metrics: Metrics

    def submit(self, prompts: Sequence[Prompt], deliver: Deliver) -> Callable[[], None]:
        """Takes prompts, all or none. Returns at once what cancels them.

        Raises:
            Closed: If it is being stopped.
            Full: If too many are waiting.
        """
        ...

    def is_ready(self) -> bool:
        """Whether it generates."""
        ...

    def close(self) -> None:
        """Ends what is running and waiting, and takes no more; waits until that is done."""
        ...


async def stream(engine: Engine, prompts: Sequence[Prompt]) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of prompts as they come, each with the number of its prompt, until all have ended.

    If the iteration is left, so are the prompts.

    Raises:
        Closed: As `submit`, when iteration begins.
        Failed: If one cannot be generated.
        Full: As `submit`, when iteration begins.
    """
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece | Failed]]()

    def deliver(number: int, piece: Piece | Failed) -> None:
        with suppress(RuntimeError):  # The loop is closed: nobody listens.
            loop.call_soon_threadsafe(pieces.put_nowait, (number, piece))

    cancel = engine.submit(prompts, deliver)
    running = len(prompts)
    try:
        while running:
            number, piece = await pieces.get()
            if isinstance(piece, Failed):
                raise piece
            running -= piece.finish_reason is not None
            yield number, piece
    finally:
        cancel()
