"""A Qdrant server as its REST client sees it: requests over HTTP, carried out by the client's local mode."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models


class FakeServer(httpx.BaseTransport):
    """Pass it as `transport`; every client of it sees the same points.

    Attributes:
        requests: Method, path and query of each request that came, in order.
        fault: Called with each request before and after it is carried out; may raise.
        version: What it says its version is.
    """

    def __init__(self) -> None:
        self.local = QdrantClient(":memory:")
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.fault: Callable[[str, bool], None] = lambda what, is_done: None
        self.version = "1.16.0"

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        what = f"{request.method} {request.url.path}"
        self.requests.append((request.method, request.url.path, dict(request.url.params)))
        body = json.loads(request.read() or b"null")
        self.fault(what, False)
        if request.url.path == "/":
            return httpx.Response(200, json={"title": "qdrant", "version": self.version})
        result = self.answer(what, body)
        self.fault(what, True)
        content = json.loads(TypeAdapter(Any).dump_json(result))
        return httpx.Response(200, json={"result": content, "status": "ok", "time": 0.0})

    def answer(self, what: str, body: Any) -> Any:
        local = self.local
        if what == "GET /collections":
            return local.get_collections()
        method, name, action = re.fullmatch(r"(\w+) /collections/([^/]+)(.*)", what).groups()
        if (method, action) == ("GET", "/exists"):
            return {"exists": local.collection_exists(name)}
        if (method, action) == ("GET", ""):
            return local.get_collection(name)
        if (method, action) == ("PUT", ""):
            vectors = {key: models.VectorParams(**value) for key, value in body["vectors"].items()}
            return local.create_collection(name, vectors)
        if (method, action) == ("POST", "/points"):
            return local.retrieve(name, body["ids"], with_vectors=body.get("with_vector", False))
        if action == "/points/scroll":
            request = models.ScrollRequest(**body)
            points, following = local.scroll(
                name, request.filter, request.limit, offset=request.offset, with_vectors=request.with_vector
            )
            return {"points": points, "next_page_offset": following}
        if action == "/points/query/batch":
            requests = [models.QueryRequest(**{**search, "params": None}) for search in body["searches"]]
            return local.query_batch_points(name, requests)
        if (method, action) == ("PUT", "/points"):
            insertion = models.PointsList(**body)
            local.upsert(name, insertion.points, update_filter=insertion.update_filter)
        elif action == "/points/batch":
            local.batch_update_points(name, models.UpdateOperations(**body).operations)
            return [{"operation_id": 0, "status": "completed"}] * len(body["operations"])
        elif action == "/points/delete":
            local.delete(name, models.FilterSelector(**body))
        elif action == "/points/payload/delete":
            deletion = models.DeletePayload(**body)
            local.delete_payload(name, deletion.keys, deletion.filter)
        else:
            assert (method, action) == ("PUT", "/index"), what
        return {"operation_id": 0, "status": "completed"}
