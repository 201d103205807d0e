"""What requests to vLLM's own routes ask of the facts: read from their bodies, before vLLM answers them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import one_line
from ...knowledge.checks import check_namespace, checked_where
from .answers import Telling
from .asking import Asking, current

#: vLLM's routes whose requests may say `recipe`, and whose answers do.
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


class Options(BaseModel):
    """`recipe` in a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    namespace: str | None = None
    where: dict[str, Any] | None = None
    off: bool = False


class Body(BaseModel):
    """What of a request's body concerns facts; the rest is vLLM's."""

    recipe: Options = Field(default_factory=Options)
    use_beam_search: bool = False


class AskingMiddleware:
    """Makes known to the engine what a request asks of the facts, and tells in the answer what was found.

    Args:
        app: vLLM's application.
        max_body_bytes: Largest body of a request.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _path(scope).endswith(ROUTES):
            await self._app(scope, receive, send)
            return
        messages = await self._read(receive)
        if messages is None:
            await _refuse(413, f"the body must be at most {self._max_body_bytes} bytes.")(scope, receive, send)
            return
        try:
            asking = _asking(b"".join(message.get("body", b"") for message in messages))
        except ValueError as error:
            await _refuse(400, one_line(error))(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        token = current.set(asking)
        try:
            await self._app(scope, replay, Telling(send, asking))
        finally:
            current.reset(token)

    async def _read(self, receive: Receive) -> list[Message] | None:
        """The messages that bring the body; None if it is too large."""
        messages: list[Message] = []
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                return None
            more = message.get("more_body", False)
        return messages


def _path(scope: Scope) -> str:
    return str(scope["path"]).rstrip("/")


def _asking(body: bytes) -> Asking:
    """What a body asks. What is wrong in it beside that, vLLM says.

    Raises:
        ValueError: If `recipe` is not as described.
    """
    if not any(name in body for name in (b"recipe", b"use_beam_search", b"\\u")):
        return Asking()
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return Asking()
    if not isinstance(found, dict):
        return Asking()
    try:
        asked = Body.model_validate({name: found[name] for name in Body.model_fields if found.get(name) is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}, got {first['input']!r}.") from error
    options = asked.recipe
    if options.namespace is not None:
        check_namespace(options.namespace)
    where = None if options.where is None else checked_where(options.where)
    return Asking(options.namespace, where, options.off, asked.use_beam_search)


def _refuse(status: int, message: str) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    error = {"message": message, "type": "invalid_request_error", "param": "recipe", "code": status}
    return JSONResponse({"error": error}, status)
