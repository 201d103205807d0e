"""The engine's `generate`, given prompts with facts in them, and giving back outputs that do not show it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import torch
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from .asking import Asking, Looked, current
from .lookups import Lookups
from .model import Inserted

Outputs = AsyncGenerator[RequestOutput, None]


def generate_with_facts(engine: EngineClient, lookups: Lookups) -> Callable[..., Outputs]:
    """A `generate` in place of an engine client's, which looks prompts up.

    A prompt of token ids, which is what vLLM's routes make of chats and texts, gets what the facts used put into it.
    One with images or sound is not looked up. One of embeddings, which only a client can have sent, is refused.

    Args:
        engine: The engine client, whose own `generate` is called.
        lookups: What finds facts.
    """
    generate, dtype = engine.generate, engine.model_config.dtype

    def with_facts(prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any) -> Outputs:
        kind = prompt.get("type") if isinstance(prompt, dict) else None
        if kind == "embeds" or (isinstance(prompt, dict) and "prompt_embeds" in prompt):
            raise VLLMValidationError("prompt_embeds are taken from no client.", parameter="prompt_embeds")
        asking = current.get() or Asking()
        if kind != "token" or asking.off:
            return generate(prompt, sampling_params, request_id, **kwargs)
        looked = asking.prompt(prompt["prompt_token_ids"])  # Now, in the order of the request's prompts.
        return outputs(looked, prompt, sampling_params, request_id, **kwargs)

    async def outputs(looked: Looked, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any) -> Any:
        if looked.retrieval is None:
            looked.retrieval, looked.inserted = await lookups.find(looked.asked)
        inserted = looked.inserted
        if inserted is not None:
            ids = prompt["prompt_token_ids"]
            prompt = _with(prompt, inserted, dtype)
            sampling_params = _moved(sampling_params, len(inserted))
        async with aclosing(generate(prompt, sampling_params, *args, **kwargs)) as stream:
            async for output in stream:
                if inserted is not None:
                    _hide(output, inserted, ids)
                yield output

    return with_facts


def _with(prompt: Any, inserted: Inserted, dtype: torch.dtype) -> Any:
    """The engine's prompt with what is inserted. Embeddings of its own words are left to the engine."""
    ids, place = list(prompt["prompt_token_ids"]), inserted.place
    options = {name: prompt[name] for name in ("prompt", "cache_salt") if prompt.get(name) is not None}
    if inserted.embeds is None:
        new = tokens_input([*ids[:place], *inserted.ids, *ids[place:]], **options)
    else:
        count = len(inserted)
        embeds = torch.zeros(count + len(ids), inserted.embeds.shape[1], dtype=dtype)
        embeds[place : place + count] = inserted.embeds
        is_word = [True] * place + [False] * count + [True] * (len(ids) - place)
        # What stands for the embeddings is a word of the prompt: penalties for what it says count no other.
        filled = [*ids[:place], *ids[:1] * count, *ids[place:]]
        new = embeds_input(embeds, prompt_token_ids=filled, is_token_ids=is_word, **options)
    if "arrival_time" in prompt:
        new["arrival_time"] = prompt["arrival_time"]
    return new


def _moved(sampling_params: SamplingParams, count: int) -> SamplingParams:
    """Sampling parameters that count the prompt's tokens from behind what is inserted."""
    if sampling_params.prompt_logprob_token_ids is not None:
        sampling_params = sampling_params.clone()
        sampling_params.prompt_logprob_start = (sampling_params.prompt_logprob_start or 0) + count
    return sampling_params


def _hide(output: RequestOutput, inserted: Inserted, ids: list[int]) -> None:
    """Takes what was inserted out of what an output says of its prompt."""
    count, place = len(inserted), inserted.place
    if output.prompt_token_ids is not None:
        output.prompt_token_ids = ids
    logprobs = output.prompt_logprobs
    if logprobs is not None and len(logprobs) == len(ids) + count:
        kept = [*logprobs[:place], *logprobs[place + count :]]
        output.prompt_logprobs = [None, *kept[1:]] if place == 0 else kept
    if output.num_cached_tokens is not None and output.num_cached_tokens > place:
        output.num_cached_tokens = max(place, output.num_cached_tokens - count)
