"""`recipe` in requests and answers of an application that knows nothing of it, as vLLM's does not."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from recipe_hf import Retrieval
from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.keys import Keys
from recipe_hf.serving.vllm.asking import current
from recipe_hf.serving.vllm.middleware import AskingMiddleware
from tests.tiny_recipe import edited_recipe

HIT = Retrieval(3, "The CEO of Acme is Ann Lee", 2.5, 1.0, True, 0.9, answer="Ann Lee", num_prompt_tokens=7)
MISS = Retrieval(3, "The CEO of Acme is Ann Lee", 0.5, 1.0, False, 0.1)
TOLD = {
    "fired": True,
    "facts": [
        {"id": 3, "statement": "The CEO of Acme is Ann Lee", "score": 2.5, "threshold": 1.0, "probability": 0.9}
    ],
    "num_prompt_tokens": 7,
}


async def _look_up(body):
    """What an engine does for the prompts of a request."""
    asking = current.get()
    for number, ids in enumerate(body.get("prompts", [[1, 2]])):
        asking.prompt(ids).retrieval = MISS if number else HIT
    return asking


def _app(**settings):
    app = FastAPI()
    app.state.asked = []

    @app.post("/v1/chat/completions")
    @app.post("/v1/chat/completions/batch")
    @app.post("/inference/v1/generate")
    @app.post("/v1/load_lora_adapter")
    @app.post("/invocations")
    async def chat(request: Request):
        body = {} if "multipart" in request.headers.get("content-type", "") else await request.json()
        if body.get("stream"):
            return StreamingResponse(_events(request, body), media_type="text/event-stream")
        request.app.state.asked.append(await _look_up(body))
        if body.get("fails"):
            return JSONResponse({"error": {}}, 400)
        return JSONResponse({"id": "1", "choices": [{"n": number} for number in body.get("choices", [])]})

    async def _events(request, body):
        yield 'data: {"choices": ["before"]}\n\n'
        request.app.state.asked.append(await _look_up(body))
        yield 'data: {"error": "none"}\n\n'
        yield 'data: {"choices": [1]}\n\ndata: {"choices": [2]}\n\n'
        yield "data: [DONE]\n\n"

    @app.post("/tokenize")
    @app.post("/sleep")
    async def tokenize(request: Request):
        return {"asking": current.get() is not None, "body": await request.json()}

    @app.get("/health")
    @app.get("/metrics")
    async def health():
        return "vllm"

    facts = create_app(ServerSettings(max_body_bytes=1000, **settings), edited_recipe())
    app.mount("", facts)
    app.add_middleware(AskingMiddleware, facts=facts)
    return app


@pytest.fixture(scope="module")
def shared():
    return _app()


@pytest.fixture
def app(shared):
    shared.state.asked.clear()
    return shared


def _send(app, path="/v1/chat/completions", content=None, key=None, method="POST", headers=(), **body):
    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        sent = dict(headers) | ({} if key is None else {"Authorization": f"Bearer {key}"})
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=sent) as client:
            return await client.request(method, path, content=json.dumps(body) if content is None else content)

    return asyncio.run(send())


@pytest.fixture
def post(app):
    return partial(_send, app)


def test_an_answer_says_what_was_found(post):
    answer = post()
    assert answer.json() == {"recipe": TOLD, "id": "1", "choices": []}
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_each_of_several_prompts_is_told_in_its_choices(post, app):
    answer = post(prompts=[[1], [1, 2]], choices=[0, 1, 2, 3]).json()
    assert answer["recipe"] == TOLD
    assert [choice["recipe"]["fired"] for choice in answer["choices"]] == [True, True, False, False]
    assert answer["choices"][3] == {"n": 3, "recipe": {"fired": False, "facts": [], "num_prompt_tokens": 0}}
    assert [each.asked.ids for each in app.state.asked[0].looked] == [[1], [1, 2]]


def test_the_tokens_of_beams_are_one_prompt(post, app):
    post(prompts=[[1], [2], [1, 2], [2, 3], [1, 2, 3]], use_beam_search=True)
    assert [each.asked.ids for each in app.state.asked[0].looked] == [[1], [2]]


def test_a_stream_says_it_once_in_the_first_choices_after_the_look_up(post):
    events = [line[6:] for line in post(stream=True).text.split("\n\n") if line]
    assert [json.loads(event) for event in events[:-1]] == [
        {"choices": ["before"]},
        {"error": "none"},
        {"recipe": TOLD, "choices": [1]},
        {"choices": [2]},
    ]
    assert events[-1] == "[DONE]"


def test_errors_stay_as_they_are(post):
    answer = post(fails=True)
    assert (answer.status_code, answer.json()) == (400, {"error": {}})


def test_answers_for_which_nothing_was_looked_up_stay_as_they_are(post):
    assert post("/tokenize", text="recipe").json() == {"asking": True, "body": {"text": "recipe"}}


def test_a_request_says_among_which_facts(post, app):
    answer = post(recipe={"namespace": "theirs", "where": {"team": 1}, "off": True})
    assert answer.json()["recipe"] == {"fired": False, "facts": [], "num_prompt_tokens": 0}
    (asking,) = app.state.asked
    assert (asking.namespace, asking.where, asking.off) == ("theirs", {"team": 1}, True)


def test_escapes_do_not_hide_it(post, app):
    post(content=rb'{"\u0072ecipe": {"namespace": "theirs"}}')
    assert app.state.asked[0].namespace == "theirs"


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"namespaces": "x"}, "recipe.namespaces: "),
        ({"namespace": 1}, "recipe.namespace: "),
        ({"off": "yes"}, "recipe.off: "),
        ({"where": [1]}, "recipe.where: "),
        ({"where": {"a": float("nan")}}, "where must be"),
        ({"namespace": "\ud800"}, "namespace"),
        ("on", "recipe: "),
    ],
)
def test_what_is_wrong_in_it_is_said(post, app, recipe, says):
    answer = post(recipe=recipe)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert not app.state.asked


@pytest.mark.parametrize("content", [b"recipe", b'["recipe"]', b'{"recipe": ', b"[" * 900 + b'"recipe"'])
def test_what_is_no_request_is_left_to_the_application(post, content):
    assert post(content=content).status_code == 500


def test_a_body_that_is_too_large_is_refused(post, app):
    answer = post(content=b" " * 1001)
    assert answer.status_code == 413
    assert "at most 1000 bytes" in answer.json()["error"]["message"]
    assert not app.state.asked


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """An application with keys, and the keys: of roles, and one of a namespace."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    keys = Keys(path)
    made = {role: keys.add(role)[0] for role in ("ask", "edit", "admin")} | {"theirs": keys.add("ask", "theirs")[0]}
    return _app(keys=path), made


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/knowledge", "/tokenize", "/sleep"])
def test_nothing_is_answered_without_a_key(guarded, path):
    app, _ = guarded
    for key in (None, "wrong"):
        assert _send(app, path, key=key).status_code == 401
    assert not app.state.asked


def test_what_a_key_opens(guarded):
    app, keys = guarded
    assert _send(app, "/health", method="GET").json() == "vllm"
    assert _send(app, key=keys["ask"]).json()["recipe"] == TOLD
    assert _send(app, "/tokenize", key=keys["ask"]).status_code == 200
    for method, path in (("POST", "/sleep"), ("GET", "/metrics"), ("POST", "/v1/load_lora_adapter")):
        answers = [_send(app, path, key=keys[role], method=method) for role in ("ask", "edit", "admin")]
        assert [answer.status_code for answer in answers] == [403, 403, 200]


def test_a_key_of_a_namespace_asks_in_it_alone(guarded):
    app, keys = guarded
    app.state.asked.clear()
    for recipe in ({}, {"namespace": "theirs"}):
        assert _send(app, key=keys["theirs"], recipe=recipe).status_code == 200
    for path in ("/v1/chat/completions/batch", "/inference/v1/generate", "/invocations"):
        assert _send(app, path, key=keys["theirs"]).status_code == 200
    multipart = {"content-type": "multipart/form-data; boundary=x"}
    assert _send(app, key=keys["theirs"], content=b"--x--", headers=multipart).status_code == 200
    assert [asking.namespace for asking in app.state.asked] == ["theirs"] * 6
    answer = _send(app, key=keys["theirs"], recipe={"namespace": ""})
    assert answer.status_code == 403 and "theirs" in answer.json()["error"]["message"]
    assert len(app.state.asked) == 6


def test_other_machines_are_not_answered_without_keys(app):
    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://elsewhere") as client:
            return await client.post("/v1/chat/completions", json={})

    assert asyncio.run(send()).status_code == 403
