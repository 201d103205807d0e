"""Two engines behind two API servers of vLLM, which read the facts that another process writes. It needs vLLM."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import httpx

from recipe_hf import RecipeForCausalLM
from tests.real_models import needs_real_models
from tests.serving.vllm.vllm_server import CHECKPOINT, NAME, vllm_server

pytestmark = [needs_real_models, pytest.mark.slow]

PROMPT, ANSWER = "The mother tongue of Ilvara Tensen is", "Finnish"


def _answers(url):
    """What is answered to requests that each come by a connection of their own, so that all servers get some."""
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    return [httpx.post(f"{url}/v1/completions", json=body, timeout=300).raise_for_status().json() for _ in range(12)]


def test_replicas_share_facts_through_one_store(tmp_path):
    file = tmp_path / "facts.db"
    writer = RecipeForCausalLM.from_pretrained(CHECKPOINT, base_model=False)
    with writer.open_knowledge(file):
        (id_,) = writer.add_knowledge([(PROMPT, ANSWER)])
        options = ("--enable-prompt-embeds", "--data-parallel-size", "2", "--api-server-count", "2")
        facts = {"RECIPE_HF_KNOWLEDGE": str(file), "RECIPE_HF_READ_ONLY": "1"}
        with vllm_server(tmp_path / "log", *options, **facts) as url:
            answers = _answers(url)
            assert all(answer["recipe"]["fired"] and ANSWER in answer["choices"][0]["text"] for answer in answers)
            writer.remove_knowledge(id_)
            assert not any(answer["recipe"]["fired"] for answer in _answers(url))
            refused = httpx.post(f"{url}/v1/knowledge", content=json.dumps({"facts": ["A is B."]}), timeout=60)
            assert refused.status_code in (403, 422)
            assert httpx.get(f"{url}/v1/knowledge", timeout=60).json()["total"] == 0
    assert (tmp_path / "log").read_text(errors="replace").count("are put before") == 2  # In each API server.
