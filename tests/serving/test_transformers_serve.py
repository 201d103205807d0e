"""`transformers serve` and `transformers chat` with a checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.command import environment
from tests.running_server import free_port, until_it_answers
from tests.tiny_recipe import GREEDY, PROMPTS, UNRELATED, batch_of, edited_recipe, tiny_base

_CODE = "import recipe_hf; from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with facts, whose base is a directory beside it."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_base().save_pretrained(directory / "base")
    model = edited_recipe()
    model.config.base_model_name_or_path = str(directory / "base")
    model.save_pretrained(directory / "recipe")
    return directory / "recipe"


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-c", _CODE, "serve", str(checkpoint), "--port", str(port), "--device", "cpu"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        yield until_it_answers(f"http://localhost:{port}", process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_transformers_serve_answers_with_facts(checkpoint, url):
    model = edited_recipe()
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        for text in (PROMPTS[0], UNRELATED[0]):
            batch = batch_of(model, [text])
            out = model.generate(**batch, **GREEDY)
            expected = model.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            options = {"prompt": text, "max_tokens": 6, "temperature": 0, "extra_body": {"seed": 0}}
            assert client.completions.create(model=str(checkpoint), **options).choices[0].text == expected


def test_transformers_chat_talks_to_it(checkpoint, url):
    command = [sys.executable, "-c", _CODE, "chat", str(checkpoint), url, "max_new_tokens=4", "do_sample=False"]
    # Its client refuses all addresses when it is told not to ask the Hub.
    options = {"env": environment(HF_HUB_OFFLINE="0"), "capture_output": True, "text": True, "timeout": 300}
    said = subprocess.run(command, input="Hello\nn\n!exit\n", **options)
    assert said.returncode == 0, said.stderr
    assert f"<{checkpoint}>:" in said.stdout


def test_continuous_batching_is_refused_and_the_model_still_generates():
    model = edited_recipe()
    batch = batch_of(model, PROMPTS[:1])
    before = model.generate(**batch, **GREEDY)
    for refused in (model.generate_batch, model.init_continuous_batching, model.continuous_batching_context_manager):
        with pytest.raises(NotImplementedError, match="continuous batching cannot prefix facts; use generate"):
            refused(inputs=[[1, 2]])
    assert model.generate(**batch, **GREEDY).tolist() == before.tolist()
