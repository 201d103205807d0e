"""vLLM with facts told as text, behind keys: it is given no embeddings, and clients need to be known. Needs vLLM."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import httpx
from openai import AuthenticationError, OpenAI, PermissionDeniedError

from recipe_hf import RecipeForCausalLM
from recipe_hf.serving.keys import Keys
from tests.real_models import SMOLLM2, needs_real_models
from tests.serving.vllm.vllm_server import CHECKPOINT, NAME, ROOT, vllm_server

pytestmark = [needs_real_models, pytest.mark.slow]

LINES = (ROOT / "benchmarks" / "unseen_wordings.jsonl").read_text().splitlines()[:6]
ROWS = [json.loads(line) for line in LINES]
PROMPTS = [text for row in ROWS for text in (row["prompt"], row["rephrasings"][1], row["unrelated"][0])]
TOKENS = 12


@pytest.fixture(scope="module")
def model():
    """The model, whose checkpoint is saved with its facts."""
    model = RecipeForCausalLM.from_pretrained(CHECKPOINT, base_model=SMOLLM2, prompt_form="text")
    model.add_knowledge([(row["prompt"], row["answer"]) for row in ROWS])
    return model


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """The URL of a server, and keys: one of a namespace too."""
    directory = tmp_path_factory.mktemp("vllm")
    model.save_pretrained(directory / "checkpoint")
    keys = Keys(directory / "keys")
    made = {role: keys.add(role)[0] for role in ("ask", "admin")} | {"theirs": keys.add("ask", "theirs")[0]}
    settings = {"CHECKPOINT": str(directory / "checkpoint"), "KEYS": str(keys.path)}
    with vllm_server(directory / "log", **{f"RECIPE_HF_{name}": value for name, value in settings.items()}) as url:
        yield url, made


@pytest.fixture
def client(server):
    url, keys = server
    with OpenAI(base_url=f"{url}/v1", api_key=keys["ask"], max_retries=0, timeout=900) as client:
        yield client


def test_chats_and_texts_are_answered_as_by_the_model(client, model):
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    rendered = [model.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    expected, fired = [], []
    for texts in (rendered, PROMPTS):
        batch = model.tokenizer(texts, return_tensors="pt", padding=True)
        out = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, return_dict_in_generate=True)
        new = out.sequences[:, batch["input_ids"].shape[1] :]
        expected += model.tokenizer.batch_decode(new, skip_special_tokens=True)
        fired += [hit.fired for hit in out.retrievals]
    options = {"model": NAME, "temperature": 0, "max_tokens": TOKENS}
    answers = [client.chat.completions.create(messages=chat, **options) for chat in chats]
    completions = client.completions.create(prompt=PROMPTS, **options)
    told = [answer.choices[0].message.content for answer in answers]
    assert told + [choice.text for choice in completions.choices] == expected
    assert [a.recipe["fired"] for a in answers] + [choice.recipe["fired"] for choice in completions.choices] == fired
    assert 4 < sum(fired) < len(fired) - 4  # Hits and misses, both of them some.
    assert completions.usage.prompt_tokens == sum(len(ids) for ids in model.tokenizer(PROMPTS)["input_ids"])


def test_who_may(server, client):
    url, keys = server
    theirs = client.with_options(api_key=keys["theirs"])
    options = {"model": NAME, "prompt": PROMPTS[0], "max_tokens": 2}
    assert client.completions.create(**options).recipe["fired"]
    assert not theirs.completions.create(**options).recipe["fired"]
    with pytest.raises(PermissionDeniedError, match="theirs"):
        theirs.completions.create(**options, extra_body={"recipe": {"namespace": ""}})
    with pytest.raises(AuthenticationError):
        client.with_options(api_key="none").completions.create(**options)
    bearer = {"Authorization": f"Bearer {keys['admin']}"}
    assert [httpx.get(f"{url}/metrics", headers=headers).status_code for headers in ({}, bearer)] == [401, 200]
    assert httpx.get(f"{url}/v1/knowledge").status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200
