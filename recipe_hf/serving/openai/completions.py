"""`/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast
from uuid import uuid4

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types import Completion
from starlette.concurrency import run_in_threadpool

from ...modeling.queries import read_queries
from ..access import Asks
from ..engine import Prompt, TokenLogprobs
from .errors import OpenAIError, OpenAIRoute
from .generation import Generation, about, events, unless_gone
from .protocol import CompletionRequest

router = APIRouter(route_class=OpenAIRoute)
_DEFAULT_MAX_TOKENS = 16


@router.post("/completions", response_model=None)
async def create(request: Request, body: CompletionRequest, principal: Asks) -> Response | dict[str, Any]:
    """Continues texts; a text is what facts are looked up for, or its last user message if it is a rendered chat."""
    generation = Generation(request, body, principal)
    told = await run_in_threadpool(_read, generation, body)
    prompts = [prompt for _, ids, query in told for prompt in _prompts(generation, body, ids, query)]
    before = [text if body.echo else "" for text, *_ in told for _ in range(body.n or 1)]
    completion = {"id": f"cmpl-{uuid4().hex}", "created": generation.created, "model": generation.name}
    completion["object"] = "text_completion"
    if body.stream:
        return await events(request, _chunks(generation, prompts, before, completion))
    answers = await unless_gone(request, generation.answers(prompts))
    choices = [
        {
            "index": number,
            "text": start + answer.text,
            "finish_reason": answer.finish_reason,
            "logprobs": _logprobs(generation.tokenizer, answer.logprobs, len(start)) if answer.logprobs else None,
            "recipe": about(answer.retrieval),
        }
        for number, (start, answer) in enumerate(zip(before, answers, strict=True))
    ]
    usage = generation.usage(sum(answer.num_tokens for answer in answers))
    whole = completion | {"choices": choices, "usage": usage, "recipe": choices[0]["recipe"]}
    return Completion.model_validate(whole).model_dump(exclude_unset=True)


def _read(generation: Generation, body: CompletionRequest) -> list[tuple[str, list[int], str]]:
    """The text, the tokens and the query of each prompt."""
    tokenizer, given = generation.tokenizer, body.prompt
    if body.echo and body.logprobs is not None:
        raise OpenAIError("echo with logprobs is not supported by this server.", param="echo")
    several: Any = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not several or not all(several):
        raise OpenAIError("prompt must be a text or tokens, or several of them, none empty.", param="prompt")
    vocab_size = generation.model.config.vocab_size
    rows: list[list[int]] = [tokenizer(text)["input_ids"] if isinstance(text, str) else list(text) for text in several]
    if not all(0 <= id < vocab_size for ids in rows for id in ids):
        raise OpenAIError(f"prompt must be of tokens from 0 to {vocab_size - 1}.", param="prompt")
    texts = [text if isinstance(text, str) else tokenizer.decode(text) for text in several]
    queries = [read_queries(tokenizer, torch.tensor([ids]))[0] for ids in rows]
    return list(zip(cast("list[str]", texts), rows, queries, strict=True))


def _prompts(generation: Generation, body: CompletionRequest, ids: Sequence[int], query: str) -> list[Prompt]:
    return generation.prompt(ids, query, body.max_tokens or _DEFAULT_MAX_TOKENS, body.logprobs)


async def _chunks(
    generation: Generation, prompts: Sequence[Prompt], before: Sequence[str], completion: dict[str, Any]
) -> AsyncIterator[Completion]:
    options = generation.body.stream_options
    starts, lengths, offsets = list(before), [0] * len(prompts), [len(start) for start in before]
    async for number, piece in generation.pieces(prompts):
        lengths[number] = piece.num_tokens
        text, starts[number] = starts[number] + piece.text, ""
        logprobs = _logprobs(generation.tokenizer, piece.logprobs, offsets[number]) if piece.logprobs else None
        offsets[number] += len(piece.text)
        told = about(piece.retrieval)
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        # The type of a whole choice has no reason that is None, as OpenAI's own chunks have before the last.
        yield Completion.model_construct(**completion, choices=[choice | {"recipe": told}], recipe=told)
    if options is not None and options.include_usage:
        yield Completion.model_construct(**completion, choices=[], usage=generation.usage(sum(lengths)))


def _logprobs(tokenizer: Any, tokens: Sequence[TokenLogprobs], offset: int) -> dict[str, Any]:
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        text = tokenizer.decode([token.id])
        told["tokens"].append(text)
        told["token_logprobs"].append(max(token.logprob, -9999.0))
        told["top_logprobs"].append({tokenizer.decode([id]): max(value, -9999.0) for id, value in token.top})
        told["text_offset"].append(offset)
        offset += len(text)
    return told
