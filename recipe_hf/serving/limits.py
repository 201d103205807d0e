"""How large what a client sends may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..knowledge.facts import NewFact, canonical
from .problems import Problem, respond

MAX_FACTS = 1000
MAX_TEXT = 8192
MAX_METADATA = 16384
MAX_DEPTH = 32
MAX_QUESTIONS = 16
MAX_NAMES = 32
MAX_NEAREST = 100
MAX_PAGE = 1000
MAX_NAMESPACE = 256


def check_size(place: str, fact: NewFact) -> None:
    """Refuses a fact that is too large to be taken from a client.

    Raises:
        ValueError: If a text is too long, or there are too many metadata, or too deep ones: what is too deep to be
            answered would spoil every list that it is in.
    """
    for name in ("statement", "prompt", "answer"):
        text = getattr(fact, name)
        if text is not None and len(text) > MAX_TEXT:
            raise ValueError(f"{place}.{name} must be of at most {MAX_TEXT} characters, got {len(text)}.")
    size = len(canonical(fact.metadata))
    if size > MAX_METADATA:
        raise ValueError(f"{place}.metadata must be of at most {MAX_METADATA} characters of JSON, got {size}.")
    level: list[Any] = [fact.metadata]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inner(outer)]
    if level:
        raise ValueError(f"{place}.metadata must be nested at most {MAX_DEPTH} levels deep, got more.")


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


class BodyLimit:
    """Refuses bodies that are too large, as soon as that is known.

    Args:
        app: The application.
        limit: Most bytes of a body.
        of_imports: The same for files of facts.
    """

    def __init__(self, app: ASGIApp, limit: int, of_imports: int) -> None:
        self._app, self._limit, self._of_imports = app, limit, of_imports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._of_imports if scope["path"].endswith("/v1/knowledge/import") else self._limit
        # The connection is closed, or else the rest of the body would still be read.
        close = {"Connection": "close"}
        too_large = Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body must be of at most {limit} bytes.", close)
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said[:20]) > limit:
            await respond(too_large.status_code, str(too_large.detail), close)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        await self._app(scope, counted, send)
