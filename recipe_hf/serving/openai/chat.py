"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import Response
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.concurrency import run_in_threadpool

from ..access import Asks
from ..engine import Prompt, TokenLogprobs
from .errors import OpenAIError, OpenAIRoute
from .generation import Answer, Generation, about, events, unless_gone
from .protocol import ChatRequest
from .tools import CallsApart, ToolCall, read_calls, tool_names

router = APIRouter(route_class=OpenAIRoute)


@router.post("/chat/completions", response_model=None)
async def create(request: Request, body: ChatRequest, principal: Asks) -> Response | dict[str, Any]:
    """Continues a conversation; its last user message is what facts are looked up for."""
    generation = Generation(request, body, principal)
    prompts = await run_in_threadpool(_prompts, generation, body)
    tools = tool_names(body.tools or []) if body.tool_choice != "none" else frozenset()
    completion = {"id": f"chatcmpl-{uuid4().hex}", "created": generation.created, "model": generation.name}
    if body.stream:
        return await events(request, _chunks(generation, prompts, tools, completion))
    answers = await unless_gone(request, generation.answers(prompts))
    whole = completion | {
        "object": "chat.completion",
        "choices": [_choice(generation, number, answer, tools) for number, answer in enumerate(answers)],
        "usage": generation.usage(sum(answer.num_tokens for answer in answers)),
        "recipe": about(answers[0].retrieval),
    }
    return ChatCompletion.model_validate(whole).model_dump(exclude_unset=True)


def _prompts(generation: Generation, body: ChatRequest) -> list[Prompt]:
    tokenizer = generation.tokenizer
    if not tokenizer.chat_template:
        raise OpenAIError("The base has no chat template: use /v1/completions.", code="no_chat_template")
    messages = [message.for_template() for message in body.messages]
    tools = None if body.tool_choice == "none" else body.tools or None
    try:
        ids = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    except Exception as error:  # A template is a program of the model's author and may raise anything.
        raise OpenAIError(f"The chat template refuses the messages: {error}", param="messages") from error
    asked = [message.text for message in body.messages if message.role == "user"]
    if body.top_logprobs and not body.logprobs:
        raise OpenAIError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    return generation.prompt(ids, asked[-1].strip() if asked else "", most, logprobs)


def _choice(generation: Generation, number: int, answer: Answer, tools: frozenset[str]) -> dict[str, Any]:
    content, calls = read_calls(answer.text, tools) if tools else (answer.text, [])
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if calls:
        message["tool_calls"] = [call.as_openai() for call in calls]
    logprobs = _logprobs(generation.tokenizer, answer.logprobs) if answer.logprobs else None
    reason = "tool_calls" if calls and answer.finish_reason == "stop" else answer.finish_reason
    return {"index": number, "message": message, "finish_reason": reason, "logprobs": logprobs}


async def _chunks(
    generation: Generation, prompts: Sequence[Prompt], tools: frozenset[str], completion: dict[str, Any]
) -> AsyncIterator[ChatCompletionChunk]:
    options = generation.body.stream_options
    with_usage = options is not None and options.include_usage
    texts, lengths = [CallsApart(tools) for _ in prompts], [0] * len(prompts)
    begun: set[int] = set()

    def chunk(number: int, delta: dict[str, Any], **more: Any) -> ChatCompletionChunk:
        choice = {"index": number, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
        choice["logprobs"] = more.pop("logprobs", None)
        usage = {"usage": None} if with_usage else {}
        said = completion | usage | more | {"object": "chat.completion.chunk", "choices": [choice]}
        return ChatCompletionChunk.model_validate(said)

    async for number, piece in generation.pieces(prompts):
        if number not in begun:
            begun.add(number)
            yield chunk(number, {"role": "assistant", "content": ""}, recipe=about(piece.retrieval))
        lengths[number] = piece.num_tokens
        text = texts[number].add(piece.text)
        calls: list[ToolCall] = []
        if piece.finish_reason is not None:
            rest, calls = texts[number].end()
            text += rest
        if text or piece.logprobs:
            logprobs = _logprobs(generation.tokenizer, piece.logprobs) if piece.logprobs else None
            yield chunk(number, {"content": text}, logprobs=logprobs)
        if calls:
            told = [{"index": position} | call.as_openai() for position, call in enumerate(calls)]
            yield chunk(number, {"tool_calls": told})
        if piece.finish_reason is not None:
            reason = "tool_calls" if calls and piece.finish_reason == "stop" else piece.finish_reason
            yield chunk(number, {}, finish_reason=reason, recipe=about(piece.retrieval))
    if with_usage:
        last = {"object": "chat.completion.chunk", "choices": [], "usage": generation.usage(sum(lengths))}
        yield ChatCompletionChunk.model_validate(completion | last)


def _logprobs(tokenizer: Any, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    def named(id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([id], clean_up_tokenization_spaces=False)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    return {
        "content": [
            named(token.id, token.logprob) | {"top_logprobs": [named(*near) for near in token.top]} for token in tokens
        ],
        "refusal": None,
    }
