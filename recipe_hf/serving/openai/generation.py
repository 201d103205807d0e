"""What chat and completion share: from a request to prompts, and from pieces to answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from openai.types import CompletionUsage
from pydantic import BaseModel

from ...modeling.outputs import Retrieval
from ..access import Principal, namespace_of
from ..engine import Closed, Engine, Failed, Full, Piece, Prompt, TokenLogprobs, stream
from .errors import OpenAIError
from .models import check_model
from .protocol import GenerationRequest

T = TypeVar("T")


@dataclass
class Answer:
    """What a prompt was continued with."""

    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str = "stop"
    retrieval: Retrieval | None = None


class Generation:
    """A request on its way: its prompts, and what it costs.

    Args:
        request: That of HTTP.
        body: Its body.
        principal: Who asks.
    """

    def __init__(self, request: Request, body: GenerationRequest, principal: Principal) -> None:
        check_model(request, body.model)
        state = request.app.state
        self.request, self.body = request, body
        self.settings, self.model, self.tokenizer = state.settings, state.model, state.model.tokenizer
        self.engine: Engine = state.engine
        self.namespace = namespace_of(principal, body.recipe.namespace)
        self.created = int(time.time())
        self.name = state.settings.model_name
        self.num_prompt_tokens = 0

    def prompt(self, ids: Sequence[int], query: str, max_tokens: int | None, logprobs: int | None) -> list[Prompt]:
        """One of the request's prompts, as often as `n` asks for it.

        Raises:
            OpenAIError: If it is too long for the base, or empty.
        """
        body, length = self.body, self.model.max_text_length
        if not ids:
            raise OpenAIError("The prompt must hold at least one token.", param="prompt")
        room = self.settings.max_tokens if length is None else min(self.settings.max_tokens, length - len(ids))
        wanted = max_tokens or 1
        if length is not None and len(ids) + wanted > length:
            raise OpenAIError(
                f"This model's maximum context length is {length} tokens. However, you requested {len(ids) + wanted} "
                f"tokens ({len(ids)} in the prompt, {wanted} in the completion). Please reduce the length of either.",
                param="messages" if hasattr(body, "messages") else "prompt",
                code="context_length_exceeded",
            )
        if wanted > room:
            raise OpenAIError(f"max_tokens must be at most {room}, got {max_tokens}.", param="max_tokens")
        self.num_prompt_tokens += len(ids)
        vocab_size = self.model.config.vocab_size
        sampling = body.sampling(room if max_tokens is None else max_tokens, logprobs, self._defaults(), vocab_size)
        asked = "" if body.recipe.off else query
        prompt = Prompt(ids, asked, sampling, self.namespace, body.recipe.where)
        return [prompt if number == 0 else prompt.another(number) for number in range(body.n or 1)]

    def _defaults(self) -> dict[str, Any]:
        """What the base's own settings say of how to sample, where they say that it is sampled."""
        config = self.model.generation_config
        if not config.do_sample:
            return {}
        own = {name: getattr(config, name, None) for name in ("temperature", "top_p", "top_k")}
        return {name: value for name, value in own.items() if value is not None}

    async def pieces(self, prompts: Sequence[Prompt]) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of the prompts as they come.

        Raises:
            OpenAIError: If there is no room for them, or the server is being stopped.
        """
        if len(prompts) > self.settings.max_waiting:
            raise OpenAIError(f"n times prompts must be at most {self.settings.max_waiting}, got {len(prompts)}.")
        metrics, started, lengths = self.engine.metrics, time.perf_counter(), [0] * len(prompts)
        try:
            async for number, piece in stream(self.engine, prompts):
                if not lengths[number]:
                    metrics.first_token_seconds.observe(time.perf_counter() - started)
                    metrics.prompt_tokens.inc(len(prompts[number].ids))
                metrics.answer_tokens.inc(piece.num_tokens - lengths[number])
                lengths[number] = piece.num_tokens
                yield number, piece
        except Full as error:
            retry = {"Retry-After": str(error.retry_after)}
            raise OpenAIError(str(error), 429, code="server_busy", headers=retry) from error
        except Failed as error:
            raise OpenAIError(str(error), 500, code="generation_failed") from error
        except Closed as error:
            raise OpenAIError(str(error), 503, code="server_stopping", headers={"Retry-After": "5"}) from error

    async def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """The whole answers, unless the client leaves before."""
        found = [Answer() for _ in prompts]
        async for number, piece in self.pieces(prompts):
            answer = found[number]
            answer.text += piece.text
            answer.logprobs += piece.logprobs
            answer.num_tokens, answer.retrieval = piece.num_tokens, piece.retrieval
            answer.finish_reason = piece.finish_reason or answer.finish_reason
        return found

    def usage(self, num_answer_tokens: int) -> CompletionUsage:
        """What the request cost; facts are not the client's."""
        prompt = self.num_prompt_tokens
        total = prompt + num_answer_tokens
        return CompletionUsage(prompt_tokens=prompt, completion_tokens=num_answer_tokens, total_tokens=total)


def about(retrieval: Retrieval | None) -> dict[str, Any]:
    """`recipe` of an answer: which facts were used."""
    used = [retrieval, *retrieval.others] if retrieval is not None and retrieval.fired else []
    facts = [
        {
            "id": hit.id,
            "statement": hit.statement,
            "score": hit.score,
            "threshold": hit.threshold,
            "probability": hit.probability,
        }
        for hit in used
    ]
    return {
        "fired": bool(facts),
        "facts": facts,
        "num_prompt_tokens": retrieval.num_prompt_tokens if retrieval is not None else 0,
    }


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is given up when the client leaves.

    Raises:
        OpenAIError: If it has left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise OpenAIError("The client has left.", 499)
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events(request: Request, chunks: AsyncIterator[BaseModel]) -> StreamingResponse:
    """Chunks as server-sent events. What is refused before the first of them is refused by its status."""
    first = await unless_gone(request, anext(chunks))

    async def lines() -> AsyncIterator[str]:
        yield _event(first)
        try:
            async for chunk in chunks:
                yield _event(chunk)
        except OpenAIError as error:
            yield f"data: {json.dumps(error.body())}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(chunk: BaseModel) -> str:
    return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
