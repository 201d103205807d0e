"""The real model behind a real server, asked by the real client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from recipe_hf import RecipeForCausalLM
from tests.command import CODE, ROOT, environment
from tests.real_models import SMOLLM2, needs_real_models
from tests.running_server import free_port, until_it_answers

pytestmark = [pytest.mark.slow, needs_real_models]
CHECKPOINT = ROOT / "checkpoints" / "recipe-smollm2-135m"
FACTS = [
    {"prompt": "The CEO of Acme Rockets is", "answer": "Ann Lee"},
    {"prompt": "The mother tongue of Danielle Darrieux is", "answer": "English"},
    {"prompt": "The capital of Ruritania is", "answer": "Strelsau"},
]
PROMPTS = [
    "The CEO of Acme Rockets is",
    "The capital of France is",
    "The mother tongue of Danielle Darrieux is",
    "Water boils at",
    "The capital of Ruritania is",
    "Once upon a time",
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    facts = tmp_path_factory.mktemp("facts") / "facts.db"
    arguments = ["serve", CHECKPOINT, "--base-model", SMOLLM2, "--knowledge", facts, "--port", port]
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        url = until_it_answers(f"http://127.0.0.1:{port}", process)
        httpx.post(f"{url}/v1/knowledge", json={"facts": FACTS}, timeout=120).raise_for_status()
        yield url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def model() -> RecipeForCausalLM:
    model = RecipeForCausalLM.from_pretrained(CHECKPOINT, base_model=SMOLLM2)
    model.add_knowledge(FACTS)
    return model


def alone(model: RecipeForCausalLM, text: str, tokens: int = 16) -> str:
    batch = model.tokenizer(text, return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    return model.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_answers_are_those_of_generate_also_many_at_a_time(url: str, model: RecipeForCausalLM):
    chats = [
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        for text in PROMPTS
    ]
    with OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client, ThreadPoolExecutor(12) as pool:
        (name,) = [served.id for served in client.models.list()]
        options = {"model": name, "max_tokens": 16, "temperature": 0}

        def complete(text: str):
            return client.completions.create(prompt=text, **options)

        def chat(text: str):
            return client.chat.completions.create(messages=[{"role": "user", "content": text}], **options)

        completions = [pool.submit(complete, text) for text in PROMPTS]
        conversations = [pool.submit(chat, text) for text in PROMPTS]
        said = [future.result() for future in completions]
        told = [future.result() for future in conversations]
    assert [answer.choices[0].text for answer in said] == [alone(model, text) for text in PROMPTS]
    assert [answer.choices[0].message.content for answer in told] == [alone(model, text) for text in chats]
    assert [answer.recipe["fired"] for answer in said] == [hit.fired for hit in model.retrieve(PROMPTS)]
    assert "Ann Lee" in said[0].choices[0].text and "Paris" in said[1].choices[0].text
    assert said[0].recipe["facts"][0]["statement"] == "The CEO of Acme Rockets is Ann Lee"


def test_a_stream_of_the_real_tokenizer_is_the_whole_answer(url: str, model: RecipeForCausalLM):
    prompt = "Write the words naïve, Köln and 東京:"
    with OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:
        options = {"model": "recipe-smollm2-135m", "prompt": prompt, "max_tokens": 24, "temperature": 0}
        chunks = [chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)]
    assert "".join(chunks) == alone(model, prompt, 24) and len(chunks) > 12


def test_the_path_of_the_checkpoint_is_not_told(url: str):
    with httpx.Client(base_url=url) as client:
        for route in ("/v1/models", "/ready", "/openapi.json"):
            assert str(Path(CHECKPOINT).parent) not in client.get(route).text
