"""Errors over HTTP: problem details, and no more than a client may know; OpenAPI as it is described."""

from __future__ import annotations

import logging
import os
import sqlite3

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.keys import Keys
from recipe_hf.serving.problems import as_problem
from tests.running_server import serving
from tests.tiny_recipe import edited_recipe, tiny_recipe

URL = "/v1/knowledge"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def running():
    with serving(create_app(ServerSettings(rate=None), edited_recipe())) as running:
        yield running


def test_every_error_is_a_problem(running):
    with running.http() as client:
        for answer, status in (
            (client.get("/v1/knowledge/nothing/here"), 404),
            (client.patch(URL), 405),
            (client.get(f"{URL}/x"), 422),
            (client.get(URL, params={"limit": 0}), 422),
            (client.post(URL, content=b"{", headers=JSON), 422),
            (client.post(URL, content=b"[" * 100_000, headers=JSON), 400),
            (client.post(URL, content=b"1" * 5000, headers=JSON), 400),
            (client.post(URL, json={"facts": ["a"], "path": "/etc/passwd"}), 422),
            (client.post(URL, content=b'{"facts": [{"statement": "\\ud800"}]}', headers=JSON), 422),
            (client.post(URL, content=b'{"facts": [{"statement": "a", "metadata": {"a": NaN}}]}', headers=JSON), 422),
            (client.get(f"{URL}/12345678901234567890"), 422),
            (client.get(f"{URL}/99"), 404),
        ):
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            body = answer.json()
            assert {"type", "title", "status", "detail"} <= body.keys() and body["status"] == status
            assert "Traceback" not in answer.text and ".py" not in answer.text
        assert client.get(URL, params={"limit": 0}).json()["errors"][0]["at"] == "query.limit"


def test_what_a_client_may_not_know_is_not_told(caplog):
    secrets = ("/srv/facts.db",)
    for error, status in (
        (ValueError("/srv/facts.db is damaged (x): `recipe-hf salvage /srv/facts.db NEW` …"), 503),
        (OSError(5, "The store cannot be read", "/srv/facts.db"), 503),
        (OSError(28, "The disk is full", "/srv/facts.db"), 507),
        (BlockingIOError(11, "locked", "/srv/facts.db"), 503),
        (PermissionError("/srv/facts.db was opened to be read only"), 403),
        (RuntimeError("/srv/facts.db was opened by process 1"), 500),
    ):
        problem = as_problem(error, secrets)
        assert problem.status_code == status and "/srv" not in problem.detail
    assert "/srv/facts.db is damaged" in caplog.text  # The log says it.
    assert as_problem(ValueError("k must be a positive integer, got 0."), secrets).status_code == 422
    assert as_problem(KeyError("id must be that …"), secrets).detail == "id must be that …"


def test_a_store_that_fails_is_told_of_without_its_path(tmp_path, caplog):
    path = tmp_path / "facts.db"
    model = tiny_recipe()
    model.open_knowledge(path)
    (id_,) = model.add_knowledge(["Dogs bark."])
    with serving(create_app(ServerSettings(knowledge=str(path)), model)) as running, running.http() as client:
        with sqlite3.connect(path) as other:
            other.execute("UPDATE facts SET statement = 'Dogs purr.'")
        other.close()
        for answer in (client.get(f"{URL}/{id_}"), client.get(URL)):
            assert answer.status_code == 503 and str(tmp_path) not in answer.text
        os.rename(path, tmp_path / "away.db")
        answer = client.post(URL, json={"facts": ["Cats purr."]})
        assert answer.status_code == 503 and str(tmp_path) not in answer.text
        os.rename(tmp_path / "away.db", path)
    assert "is damaged" in caplog.text


def test_keys_are_in_no_log(tmp_path, caplog):
    token, _ = Keys(tmp_path / "keys").add("admin")
    caplog.set_level(logging.DEBUG)
    app = create_app(ServerSettings(keys=tmp_path / "keys"), edited_recipe())
    with serving(app, log_level="trace") as running, running.http() as client:
        for headers in ({"Authorization": f"Bearer {token}"}, {"Authorization": f"Bearer {token}-wrong"}):
            client.get(URL, headers=headers)
            client.post(URL, json={"facts": [""]}, headers=headers)
    secret = token.split("-", 2)[2]
    ours = [record for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
    assert ours and not [record for record in ours if secret in record.getMessage()]


def test_openapi_is_what_the_server_does(running):
    """Requests made by schemathesis of the schema: every answer is one that the schema describes."""
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json").include(path_regex=f"^{URL}")
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        negative_data_rejection,
    ]
    options = {"max_examples": 8, "deadline": None, "database": None, "derandomize": True}
    num_operations = 0
    for operation in schema.get_all_operations():
        num_operations += 1

        @settings(**options, suppress_health_check=[*HealthCheck])
        @given(case=operation.ok().as_strategy())
        def ask(case):
            case.call_and_validate(base_url=running.url, checks=checks, timeout=60)

        ask()
    assert num_operations == 12
