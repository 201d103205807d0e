"""Structured logs: a line of JSON for each event, without secrets, and without texts unless they are asked for."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from typing import Any
from uuid import uuid4

import transformers.utils.logging
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .settings import ServerSettings

logger = logging.getLogger(__name__)
_GIVEN_ID = re.compile(rb"[\w.-]{1,64}")


class JsonFormatter(logging.Formatter):
    """Makes a line of JSON of a record; `extra={"fields": {...}}` adds to it.

    Args:
        with_texts: Whether an exception's own message, which may quote what a client sent, is part of it.
    """

    def __init__(self, with_texts: bool = False) -> None:
        super().__init__()
        self._with_texts = with_texts

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{moment}.{record.msecs:03.0f}Z", "level": record.levelname.lower()}
        line |= {"logger": record.name, "message": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, trace = record.exc_info
            line["exception"] = f"{kind.__name__}: {error}" if self._with_texts else kind.__name__
            line["trace"] = "".join(traceback.format_tb(trace))
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Makes lines for people of a record.

    Args:
        with_texts: As of [`JsonFormatter`].
    """

    def __init__(self, with_texts: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._with_texts = with_texts

    def formatException(self, ei: Any) -> str:
        """The exception, where it was raised, and what it says if that is wanted."""
        if self._with_texts:
            return super().formatException(ei)
        kind, _, trace = ei
        return "".join(traceback.format_tb(trace)) + kind.__name__


def configure(settings: ServerSettings) -> None:
    """Sends what is logged to standard error, as the settings say. For a program, not for a library."""
    handler = logging.StreamHandler()
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    handler.setFormatter(formatter(settings.log_texts))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    for noisy in ("httpx", "sentence_transformers", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class Observed:
    """ASGI middleware: gives each request an id, counts and times it, and logs that it was answered."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if _GIVEN_ID.fullmatch(given) else uuid4().hex
        started, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - started
            route = _route(scope)
            self._metrics.requests.labels(route=route, status=str(status)).inc()
            self._metrics.request_seconds.labels(route=route).observe(seconds)
            fields = {"request": request_id, "method": scope["method"], "route": route, "status": status}
            principal = scope.get("state", {}).get("principal")
            if principal is not None:
                fields["principal"] = principal.name
            quiet = route in ("/health", "/ready", "/metrics")
            logger.log(
                logging.DEBUG if quiet else logging.INFO,
                "answered",
                extra={"fields": fields | {"seconds": round(seconds, 4)}},
            )


def _route(scope: Scope) -> str:
    """The pattern of a path, and not the path, which clients choose."""
    if "endpoint" not in scope:
        return "other"
    path = str(scope["path"])
    for name, value in scope.get("path_params", {}).items():
        path = re.sub(f"/{re.escape(str(value))}(?=/|$)", f"/{{{name}}}", path, count=1)
    return path
