"""What the engine is given for a prompt with facts, and what its outputs then say. Needs vLLM; no engine runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from recipe_hf import Retrieval
from recipe_hf.serving.vllm.asking import Asking, current
from recipe_hf.serving.vllm.generating import generate_with_facts
from recipe_hf.serving.vllm.model import Inserted

HIT = Retrieval(0, "A is B", 2.0, 1.0, True)
MISS = Retrieval(0, "A is B", 0.0, 1.0, False)
EMBEDS = torch.arange(6.0).view(2, 3)


class _Engine:
    """An engine client that keeps what it is given, and says the prompt's tokens back."""

    model_config = SimpleNamespace(dtype=torch.bfloat16)

    def __init__(self):
        self.given = []
        self.closed = 0

    async def generate(self, prompt, sampling_params, request_id, **kwargs):
        self.given.append((prompt, sampling_params))
        ids = prompt["prompt_token_ids"]
        logprobs = [None, *({token: position} for position, token in enumerate(ids[1:], 1))]
        try:
            for _ in range(2):
                yield RequestOutput(request_id, None, ids, logprobs, [], False, num_cached_tokens=len(ids) - 1)
        finally:
            self.closed += 1


def _run(inserted, prompt, params=None, asking=None, first_only=False):
    engine = _Engine()

    async def find(asked):
        return (HIT if inserted is not None else MISS), inserted

    async def run():
        if asking is not None:
            current.set(asking)
        generate = generate_with_facts(engine, SimpleNamespace(find=find))
        outputs = []
        stream = generate(prompt, params or SamplingParams(), "1")
        async for output in stream:
            outputs.append(output)
            if first_only:
                await stream.aclose()
        return outputs

    return asyncio.run(run()), engine


def test_embeddings_stand_before_the_words_which_the_engine_embeds_itself():
    prompt = tokens_input([7, 8, 9], prompt="a b c", cache_salt="salt") | {"arrival_time": 1.5}
    outputs, engine = _run(Inserted(0, embeds=EMBEDS), prompt)
    ((given, _),) = engine.given
    assert given["prompt_token_ids"] == [7, 7, 7, 8, 9]
    assert given["is_token_ids"] == [False, False, True, True, True]
    assert given["prompt_embeds"].dtype == torch.bfloat16
    assert given["prompt_embeds"].tolist() == [*EMBEDS.tolist(), [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert (given["prompt"], given["cache_salt"], given["arrival_time"]) == ("a b c", "salt", 1.5)
    for output in outputs:
        assert output.prompt_token_ids == [7, 8, 9]
        assert output.prompt_logprobs == [None, {8: 3}, {9: 4}]
        assert output.num_cached_tokens == 2


def test_words_stand_inside_the_prompt():
    outputs, engine = _run(Inserted(2, ids=[1, 2]), tokens_input([7, 8, 9]))
    ((given, _),) = engine.given
    assert given == tokens_input([7, 8, 1, 2, 9])
    assert outputs[0].prompt_token_ids == [7, 8, 9]
    assert outputs[0].prompt_logprobs == [None, {8: 1}, {9: 4}]
    assert outputs[0].num_cached_tokens == 2


@pytest.mark.parametrize(("inserted", "asking"), [(None, None), (Inserted(0, ids=[1]), Asking(off=True))])
def test_without_a_fact_the_engine_is_given_what_came(inserted, asking):
    prompt = tokens_input([7, 8, 9])
    outputs, engine = _run(inserted, prompt, asking=asking)
    assert engine.given[0][0] is prompt
    assert outputs[0].num_cached_tokens == 2
    assert asking is None or not asking.looked


def test_scores_of_chosen_tokens_begin_where_they_did():
    params = SamplingParams(prompt_logprob_token_ids=[[1], [2]], prompt_logprob_start=0)
    _, engine = _run(Inserted(0, ids=[1, 2]), tokens_input([7, 8, 9]), params)
    assert engine.given[0][1].prompt_logprob_start == 2
    assert params.prompt_logprob_start == 0


def test_prompts_of_embeddings_are_refused():
    for prompt in (embeds_input(EMBEDS), {"prompt_embeds": EMBEDS}):
        with pytest.raises(VLLMValidationError, match="prompt_embeds"):
            _run(None, prompt)


def test_who_leaves_ends_the_engines_work():
    outputs, engine = _run(Inserted(0, ids=[1]), tokens_input([7]), first_only=True)
    assert (len(outputs), engine.closed) == (1, 1)
