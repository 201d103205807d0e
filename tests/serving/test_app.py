from __future__ import annotations


def test_the_tiny_server_answers(server):
    with server.http() as client:
        assert client.get("/openapi.json").json()["info"]["title"] == "recipe-hf"
