"""`recipe` in requests and answers of an application that knows nothing of it, as vLLM's does not."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from recipe_hf import Retrieval
from recipe_hf.serving.vllm.asking import current
from recipe_hf.serving.vllm.middleware import AskingMiddleware

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


def _app():
    app = FastAPI()
    app.state.asked = []

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(_events(request, body), media_type="text/event-stream")
        request.app.state.asked.append(await _look_up(body))
        if body.get("fails"):
            return JSONResponse({"error": {}}, 400)
        return JSONResponse({"id": "1", "choices": []})

    async def _events(request, body):
        yield 'data: {"choices": ["before"]}\n\n'
        request.app.state.asked.append(await _look_up(body))
        yield 'data: {"error": "none"}\n\n'
        yield 'data: {"choices": [1]}\n\ndata: {"choices": [2]}\n\n'
        yield "data: [DONE]\n\n"

    @app.post("/tokenize")
    async def tokenize(request: Request):
        return {"asking": current.get() is not None, "body": await request.json()}

    app.add_middleware(AskingMiddleware, max_body_bytes=1000)
    return app


@pytest.fixture
def app():
    return _app()


@pytest.fixture
def post(app):
    async def send(path="/v1/chat/completions", content=None, **body):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post(path, content=json.dumps(body) if content is None else content)

    return lambda *args, **kwargs: asyncio.run(send(*args, **kwargs))


def test_an_answer_says_what_was_found(post):
    answer = post()
    assert answer.json() == {"recipe": TOLD, "id": "1", "choices": []}
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_of_several_prompts_a_list(post, app):
    told = post(prompts=[[1], [1, 2]]).json()["recipe"]
    assert [each["fired"] for each in told] == [True, False]
    assert told[1]["facts"] == []
    assert [each.asked.ids for each in app.state.asked[0].looked] == [[1], [1, 2]]


def test_the_tokens_of_beams_are_one_prompt(post, app):
    told = post(prompts=[[1], [1, 2], [1, 3]], use_beam_search=True).json()["recipe"]
    assert [each.asked.ids for each in app.state.asked[0].looked] == [[1]]
    assert told["facts"] == []  # What was found last stands for all.


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


def test_other_routes_are_left_alone(post):
    body = {"recipe": {"anything": 1}}
    assert post("/tokenize", **body).json() == {"asking": False, "body": body}


def test_a_request_says_among_which_facts(post, app):
    post(recipe={"namespace": "theirs", "where": {"team": 1}, "off": True})
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
        ({"off": "yes"}, "got 'yes'"),
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
def test_what_is_no_request_is_left_to_the_application(app, content):
    async def send():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/chat/completions", content=content)

    assert asyncio.run(send()).status_code == 500


def test_a_body_that_is_too_large_is_refused(post, app):
    answer = post(content=b" " * 1001)
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json()["error"]["message"]
    assert not app.state.asked
