"""Health, readiness, metrics and logs of a running server."""

from __future__ import annotations

import json
import logging
import time

import pytest

from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.generating import TransformersEngine
from recipe_hf.serving.logs import JsonFormatter, TextFormatter
from tests.running_server import serving
from tests.tiny_recipe import PROMPTS, edited_recipe


@pytest.fixture(scope="module")
def served():
    model = edited_recipe()
    with serving(create_app(ServerSettings(served_model_name="tiny"), model, TransformersEngine(model))) as running:
        yield running


def test_health_and_readiness(served):
    with served.http() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}


def test_a_server_whose_engine_stopped_is_not_ready():
    model = edited_recipe()
    engine = TransformersEngine(model)
    with serving(create_app(ServerSettings(), model, engine)) as running, running.http() as client:
        engine.close()
        answer = client.get("/ready")
        assert answer.status_code == 503 and answer.json()["reasons"] == ["the engine is stopped"]
        assert client.get("/health").status_code == 200
        answer = client.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "server_stopping"


def test_metrics_count_what_happened(served):
    def samples() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    with served.http() as client:
        before = samples()
        client.post("/v1/completions", json={"prompt": PROMPTS[0], "max_tokens": 5, "temperature": 0})
        client.post("/v1/completions", json={"prompt": ""})
        after = samples()
    rise = {name: value - before.get(name, 0) for name, value in after.items()}
    assert rise["recipe_answer_tokens_total"] == 5
    assert rise["recipe_prompt_tokens_total"] == len(served.model.tokenizer(PROMPTS[0])["input_ids"])
    assert rise['recipe_gate_total{fired="true"}'] == 1
    assert rise['recipe_requests_total{route="/v1/completions",status="200"}'] == 1
    assert rise['recipe_requests_total{route="/v1/completions",status="400"}'] == 1
    for name in ("retrieval", "generation", "first_token"):
        assert rise[f"recipe_{name}_seconds_count"] == 1
    assert after["recipe_facts"] == 4


def test_a_request_is_logged_without_what_it_says(served, caplog):
    caplog.set_level(logging.DEBUG)
    headers = {"X-Request-Id": "abc-1", "Authorization": "Bearer s3cret"}
    with served.http() as client:
        body = {"prompt": "a private question", "max_tokens": 3}
        answer = client.post("/v1/completions?hidden=1", json=body, headers=headers)
        assert answer.headers["X-Request-Id"] == "abc-1"
        assert client.get("/nowhere/private", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"
    # An answer is logged when it has been sent, which may be after it has come.
    end = time.monotonic() + 60
    while len(records := [record for record in caplog.records if record.getMessage() == "answered"]) < 2:
        assert time.monotonic() < end
    lines = [json.loads(JsonFormatter().format(record)) for record in records]
    assert (lines[0]["request"], lines[0]["route"], lines[0]["status"]) == ("abc-1", "/v1/completions", 200)
    assert (lines[1]["route"], lines[1]["status"]) == ("other", 404)
    ours = [record for record in caplog.records if record.name.startswith(("recipe_hf", "uvicorn.error"))]
    told = "".join(JsonFormatter().format(record) for record in ours)
    assert "private" not in told and "s3cret" not in told and "hidden" not in told


def test_an_exceptions_own_message_is_logged_only_if_texts_are():
    said = "what the client said"
    try:
        raise ValueError(said)
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "", 1, "failed", None, (type(error), error, error.__traceback__)
        )
    line = json.loads(JsonFormatter().format(record))
    assert line["exception"] == "ValueError" and said not in JsonFormatter().format(record)
    assert "test_operation" in line["trace"]
    assert said in JsonFormatter(with_texts=True).format(record)
    record.exc_text = None  # Where formatters of text keep what they made of an exception.
    assert said not in TextFormatter().format(record) and "ValueError" in TextFormatter().format(record)
    record.exc_text = None
    assert said in TextFormatter(with_texts=True).format(record)
