"""What requests to vLLM's own routes may do, and what they ask of the facts, before vLLM answers them."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..access import ROLES, Principal, namespace_of, principal
from ..openai.errors import OpenAIError, of_validation
from ..openai.protocol import RecipeOptions
from ..problems import Problem
from .answers import Telling
from .asking import Asking, current

# What needs no key, and what any key opens, with all below it. The rest of vLLM's routes is for operating it.
_OPEN = {"/health", "/ping", "/version", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
_ASKED = (
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/audio",
    "/inference/v1/generate",
    "/generative_scoring",
    "/invocations",
    "/tokenize",
    "/detokenize",
)

_bearer = HTTPBearer(auto_error=False)


class Body(BaseModel):
    """What of a request's body concerns facts; the rest is vLLM's."""

    recipe: RecipeOptions = RecipeOptions()
    use_beam_search: bool = False


class AskingMiddleware:
    """Lets those ask who may, makes known to the engine what they ask of the facts, and tells them what was found.

    Args:
        app: vLLM's application.
        facts: The application of the facts, mounted behind vLLM's routes, which lets in by itself.
    """

    def __init__(self, app: ASGIApp, facts: FastAPI) -> None:
        self._app = app
        self._facts = facts
        self._max_body_bytes: int = facts.state.settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self._facts.state.keys is not None:
            await send({"type": "websocket.close", "code": 1008})  # These carry sound, and no key.
            return
        if scope["type"] != "http" or self._is_about_facts(scope):
            await self._app(scope, receive, send)
            return
        try:
            who = await self._who(scope)
            is_file = Headers(scope=scope).get("content-type", "").startswith("multipart/")
            messages = [] if scope["method"] != "POST" or is_file else await self._read(receive)
            asking = _asking(b"".join(message.get("body", b"") for message in messages), who)
        except OpenAIError as error:
            response = JSONResponse(error.body(), error.status, error.headers)
            await response(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        token = current.set(asking)
        try:
            await self._app(scope, replay, Telling(send, asking))
        finally:
            current.reset(token)

    def _is_about_facts(self, scope: Scope) -> bool:
        """Whether the application of the facts answers: it is asked last, for what vLLM has no route for."""
        routes = [route for route in scope["app"].routes if getattr(route, "app", None) is not self._facts]
        return all(route.matches(scope)[0] is Match.NONE for route in routes)

    async def _who(self, scope: Scope) -> Principal | None:
        """Who asks; None where nobody needs to be known.

        Raises:
            OpenAIError: If it cannot be told, or who asks may not.
        """
        path = _path(scope)
        if path in _OPEN or scope["method"] == "OPTIONS":
            return None
        request = Request({**scope, "app": self._facts})
        try:
            who = await run_in_threadpool(principal, request, await _bearer(request))
            is_asked = any(path == route or path.startswith(f"{route}/") for route in _ASKED)
            needed = "ask" if is_asked else "admin"
            if ROLES.index(who.role) < ROLES.index(needed):
                raise Problem(
                    HTTPStatus.FORBIDDEN, f"This takes a key with the role {needed}, got one with {who.role}."
                )
        except HTTPException as error:
            raise OpenAIError(str(error.detail), error.status_code, headers=error.headers) from error
        return who

    async def _read(self, receive: Receive) -> list[Message]:
        """The messages that bring the body.

        Raises:
            OpenAIError: If it is too large.
        """
        messages: list[Message] = []
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                raise OpenAIError(f"The body must be of at most {self._max_body_bytes} bytes.", 413)
            more = message.get("more_body", False)
        return messages


def _path(scope: Scope) -> str:
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return path.rstrip("/") or "/"


def _asking(body: bytes, who: Principal | None) -> Asking:
    """What a body asks. What is wrong in it beside that, vLLM says.

    Raises:
        OpenAIError: If `recipe` is not as described, or names facts that who asks must not see.
    """
    try:
        asked = Body.model_validate(_fields(body))
        options = asked.recipe
        namespace = options.namespace if who is None else namespace_of(who, options.namespace)
    except ValidationError as error:
        raise of_validation(error.errors()) from error
    except Problem as error:
        raise OpenAIError(str(error.detail), error.status_code, param="recipe") from error
    return Asking(namespace, options.where, options.off, asked.use_beam_search)


def _fields(body: bytes) -> dict[str, Any]:
    """The fields of a body that concern facts. It is read twice only if it may have them."""
    if not any(name in body for name in (b"recipe", b"use_beam_search", b"\\u")):
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in Body.model_fields if found.get(name) is not None}
