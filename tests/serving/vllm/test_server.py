"""vLLM with facts, against the model whole. It needs vLLM: `make test-vllm`.

RECIPE_TEST_VLLM_URL names a server that runs already, started as `vllm_server` does, with facts in a file of its own.
"""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import httpx
import torch
from openai import BadRequestError, NotGiven, OpenAI

from recipe_hf import RecipeForCausalLM
from tests.real_models import SMOLLM2, needs_real_models
from tests.serving.vllm.vllm_server import CHECKPOINT, NAME, ROOT, vllm_server

pytestmark = [needs_real_models, pytest.mark.slow]

ROWS = [json.loads(line) for line in (ROOT / "benchmarks" / "unseen_wordings.jsonl").read_text().splitlines()][:10]
FACTS = [[row["prompt"], row["answer"]] for row in ROWS]
# Three that ask for the fact and two that do not, of each row; every other one in a chat.
PROMPTS = [text for row in ROWS for text in (row["prompt"], *row["rephrasings"][:2], *row["unrelated"][:2])]
IN_CHAT = [number % 2 == 1 for number in range(len(PROMPTS))]
TOKENS = 12
FIRST, ANSWER = FACTS[0]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server that holds `FACTS`, and which nothing else has asked."""
    directory = tmp_path_factory.mktemp("vllm")
    running = os.environ.get("RECIPE_TEST_VLLM_URL")
    options = ("--enable-prompt-embeds", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    options += ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
    facts = {"RECIPE_HF_KNOWLEDGE": str(directory / "facts.db")}
    if running:
        yield _filled(running)
        return
    with vllm_server(directory / "log", *options, **facts) as started:
        yield _filled(started)


def _filled(url):
    httpx.post(f"{url}/v1/knowledge", json={"facts": FACTS}, timeout=300).raise_for_status()
    return url


@pytest.fixture(scope="module")
def client(url):
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900) as client:
        yield client


@pytest.fixture(scope="module")
def model():
    """The model whole, with the same facts."""
    model = RecipeForCausalLM.from_pretrained(CHECKPOINT, base_model=SMOLLM2)
    model.add_knowledge([tuple(fact) for fact in FACTS])
    return model


def _chat(text):
    return [{"role": "user", "content": text}]


def _ask(client, text, in_chat=False, recipe=None, **options):
    """The answer to a prompt, and what it says of facts."""
    options = {"model": NAME, "temperature": 0, "max_tokens": TOKENS, "extra_body": {"recipe": recipe or {}}} | options
    if in_chat:
        answer = client.chat.completions.create(messages=_chat(text), **options)
        return answer.choices[0].message.content, answer.recipe
    answer = client.completions.create(prompt=text, **options)
    return answer.choices[0].text, answer.recipe


def _generate(model, texts, in_chat, **options):
    """What the model whole says, and what it found, for a batch."""
    rendered = [
        model.tokenizer.apply_chat_template(_chat(text), tokenize=False, add_generation_prompt=True) if chat else text
        for text, chat in zip(texts, in_chat, strict=True)
    ]
    batch = model.tokenizer(rendered, return_tensors="pt", padding=True)
    options = {"max_new_tokens": TOKENS, "do_sample": False} | options
    out = model.generate(**batch, return_dict_in_generate=True, **options)
    new = out.sequences[:, batch["input_ids"].shape[1] :]
    return model.tokenizer.batch_decode(new, skip_special_tokens=True), out.retrievals


@contextmanager
def _changing(url):
    """Facts that concern none of the prompts are added and removed for as long as the context lasts."""
    stop, changes, failed = threading.Event(), [], []

    def change():
        with httpx.Client(base_url=url, timeout=300) as http:
            while not stop.is_set():
                fact = [f"Pipette number {len(changes)} of laboratory 12 was calibrated on", "the third of May"]
                answer = http.post("/v1/knowledge", json={"facts": [fact]})
                (id_,) = answer.raise_for_status().json()["ids"]
                http.delete(f"/v1/knowledge/{id_}").raise_for_status()
                changes.append(id_)

    def run():
        try:
            change()
        except httpx.HTTPError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield changes
    finally:
        stop.set()
        thread.join()
    assert not failed


def test_fifty_prompts_are_answered_as_by_the_model_while_facts_change(url, client, model):
    expected = []
    for start in range(0, len(PROMPTS), 16):
        rows = slice(start, start + 16)
        expected += zip(*_generate(model, PROMPTS[rows], IN_CHAT[rows]), strict=True)
    with _changing(url) as changes, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text, chat: _ask(client, text, chat), PROMPTS, IN_CHAT))
    assert len(changes) > 3
    assert len(PROMPTS) == 50
    fired = [hit.fired for _, hit in expected]
    assert 15 < sum(fired) < 35  # Hits and misses, both of them many.
    assert [recipe["fired"] for _, recipe in answers] == fired
    assert [text for text, _ in answers] == [text for text, _ in expected]
    for (_, recipe), (_, hit) in zip(answers, expected, strict=True):
        assert [fact["statement"] for fact in recipe["facts"]] == [hit.statement] * hit.fired
        assert recipe["num_prompt_tokens"] == hit.num_prompt_tokens


def test_a_change_is_seen_by_the_next_request(url, client):
    question = "Who painted the ceiling of Harrowgate Hall?"
    fact = {"facts": [["The ceiling of Harrowgate Hall was painted by", "Ilse Brandt"]]}
    assert not _ask(client, question, True)[1]["fired"]
    (id_,) = httpx.post(f"{url}/v1/knowledge", json=fact, timeout=300).json()["ids"]
    text, recipe = _ask(client, question, True)
    assert "Ilse Brandt" in text and recipe["facts"][0]["id"] == id_
    httpx.delete(f"{url}/v1/knowledge/{id_}", timeout=300).raise_for_status()
    assert not _ask(client, question, True)[1]["fired"]


def test_a_stream_says_the_same(client):
    text, recipe = _ask(client, FIRST, True)
    chunks = list(
        client.chat.completions.create(
            model=NAME,
            messages=_chat(FIRST),
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    told = [chunk.recipe for chunk in chunks if hasattr(chunk, "recipe")]
    assert told == [recipe] and chunks[0].recipe == recipe
    assert chunks[-1].usage.completion_tokens <= TOKENS


def test_usage_and_log_probabilities_are_as_without_the_prefix(client):
    def answer(off):
        return client.completions.create(
            model=NAME,
            prompt=FIRST,
            temperature=0,
            max_tokens=4,
            echo=True,
            logprobs=1,
            extra_body={"recipe": {"off": off}},
        )

    with_facts, without = answer(False), answer(True)
    assert (with_facts.recipe["fired"], without.recipe["fired"]) == (True, False)
    count = with_facts.usage.prompt_tokens
    assert count == without.usage.prompt_tokens
    told, plain = with_facts.choices[0].logprobs, without.choices[0].logprobs
    assert told.tokens[:count] == plain.tokens[:count]
    assert told.text_offset[: count + 1] == plain.text_offset[: count + 1]
    assert len(told.token_logprobs) == count + 4
    assert told.token_logprobs[0] is None is plain.token_logprobs[0]
    assert all(logprob is not None for logprob in told.token_logprobs[1:])
    assert told.token_logprobs[1:count] != plain.token_logprobs[1:count]
    assert ANSWER in with_facts.choices[0].text and ANSWER not in without.choices[0].text


def test_penalties_count_the_words_of_the_prompt_alone(client, model):
    texts, in_chat = [FACTS[0][0], FACTS[1][0]], [False, True]
    expected, hits = _generate(model, texts, in_chat, repetition_penalty=1.4, max_new_tokens=16)
    assert all(hit.fired for hit in hits)
    body = {"repetition_penalty": 1.4}
    answers = [
        _ask(client, text, chat, extra_body=body, max_tokens=16)[0] for text, chat in zip(texts, in_chat, strict=True)
    ]
    assert answers == expected


def test_choices_are_told_apart(client):
    answer = client.completions.create(
        model=NAME, prompt=[FIRST, "Two plus two equals"], n=2, temperature=0.7, seed=1, max_tokens=4
    )
    assert [choice.recipe["fired"] for choice in answer.choices] == [True, True, False, False]
    assert answer.recipe == answer.choices[0].recipe


def test_beams_keep_their_prompts_facts(client):
    answer = client.completions.create(
        model=NAME, prompt=FIRST, n=2, max_tokens=4, temperature=0, extra_body={"use_beam_search": True}
    )
    assert answer.recipe["fired"] and ANSWER in answer.choices[0].text


def test_structured_answers_and_tools(client):
    body = {"structured_outputs": {"choice": ["Swedish", "Finnish"]}}
    assert _ask(client, FIRST, extra_body=body)[0] == ANSWER
    city = {"type": "object", "properties": {"city": {"enum": ["Lisbon", "Oslo"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "visit", "parameters": city}}
    answer = client.chat.completions.create(
        model=NAME,
        messages=_chat(FACTS[1][0]),
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "visit"}},
        temperature=0,
        max_tokens=64,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "visit" and FACTS[1][1] in call.function.arguments
    assert answer.recipe["fired"]


def test_the_prefix_cache_keeps_facts_apart(url, client):
    system = " ".join(f"Rule {number}: answer in few words." for number in range(60))
    messages = [{"role": "system", "content": system}, *_chat("Which language did Ilvara Tensen learn first?")]
    httpx.post(
        f"{url}/v1/knowledge?namespace=theirs", json={"facts": [[FIRST, "Japanese"]]}, timeout=300
    ).raise_for_status()

    def answer(**recipe):
        answer = client.chat.completions.create(
            model=NAME, messages=messages, temperature=0, max_tokens=TOKENS, extra_body={"recipe": recipe}
        )
        return answer.choices[0].message.content

    asked = [{}, {"namespace": "theirs"}, {"off": True}]
    first = [answer(**recipe) for recipe in asked]
    assert ANSWER in first[0] and "Japanese" in first[1] and ANSWER not in first[2]
    before = _hits(url)
    assert [answer(**recipe) for recipe in asked] == first
    assert _hits(url) > before


def _hits(url):
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def test_where_and_namespace_say_among_which_facts(url, client):
    fact = {"prompt": FIRST, "answer": "Danish", "metadata": {"team": 1}}
    httpx.post(f"{url}/v1/knowledge?namespace=teams", json={"facts": [fact]}, timeout=300).raise_for_status()
    assert "Danish" in _ask(client, FIRST, recipe={"namespace": "teams"})[0]
    assert "Danish" in _ask(client, FIRST, recipe={"namespace": "teams", "where": {"team": 1}})[0]
    assert not _ask(client, FIRST, recipe={"namespace": "teams", "where": {"team": 2}})[1]["fired"]
    with pytest.raises(BadRequestError, match="recipe.names"):
        _ask(client, FIRST, recipe={"names": "teams"})


def test_no_tensor_is_taken_from_a_client(url, client):
    buffer = io.BytesIO()
    torch.save(torch.zeros(3, 576), buffer)
    tensor = base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(BadRequestError, match="prompt_embeds"):
        client.completions.create(model=NAME, prompt=NotGiven(), extra_body={"prompt_embeds": tensor})  # type: ignore
    with pytest.raises(BadRequestError, match="prompt_embeds"):
        client.completions.create(model=NAME, prompt="x", extra_body={"prompt_embeds": [tensor]})
    part = {"type": "prompt_embeds", "data": tensor}
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        json={"model": NAME, "messages": [{"role": "user", "content": [part]}]},
        timeout=60,
    )
    assert answer.status_code == 400 and "--enable-prompt-embeds" in answer.text
    assert _ask(client, FIRST)[1]["fired"]


def test_facts_and_page_are_beside_vllms_own_routes(url):
    with httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/v1/models").json()["data"][0]["id"] == NAME
        assert "<html" in http.get("/").text
        assert http.get("/v1/knowledge").json()["total"] >= len(FACTS)
        assert http.get("/nothing").status_code == 404
        assert "vllm:" in http.get("/metrics").text
