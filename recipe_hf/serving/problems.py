"""Errors as problem details (RFC 9457): the text that Python's error has, and nothing of how the server is made."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ..errors import one_line

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 2
READ_ONLY = "The facts are read only on this server."
_UNEXPECTED = "An error of the server: its log says more."
_OF_THE_SERVER = "The facts cannot be read or written now; the log of the server says why."


class Invalid(BaseModel):
    """One part of a request that is not as described."""

    at: str = Field(description="Where it is, such as `body.facts`.")
    detail: str = Field(description="What is wrong with it.")


class ProblemDetails(BaseModel):
    """What went wrong, after RFC 9457."""

    type: str = "about:blank"
    title: str = Field(description="What the status means.")
    status: int
    detail: str = Field(description="What is wrong, as Python's error says it.")
    errors: list[Invalid] | None = Field(None, description="The parts that are not as described.")


class Problem(HTTPException):
    """An error with a status and a text of its own."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(int(status), detail, headers)


def busy(detail: str, status: int = HTTPStatus.SERVICE_UNAVAILABLE, after: int = RETRY_AFTER) -> Problem:
    """A problem that passes by itself."""
    return Problem(status, detail, {"Retry-After": str(after)})


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route declares in OpenAPI: that it may answer with problems of these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {
        int(status): {"model": ProblemDetails, "description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def respond(status: int, detail: str, headers: Any = None, errors: list[Invalid] | None = None) -> JSONResponse:
    """The response of a problem."""
    # What cannot be written as UTF-8 was sent by the client, as an escape of JSON.
    text = detail.encode("utf-8", "backslashreplace").decode()
    problem = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=text, errors=errors)
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(content, status, dict(headers or {}), MEDIA_TYPE)


def as_problem(error: Exception, secrets: tuple[str, ...] = ()) -> Problem:
    """What a client is told of an error: what it did wrong, or that the server has one.

    Args:
        error: The error.
        secrets: Texts that a client must not see, such as where the facts are kept: an error that names one is about
            the server.
    """
    text = one_line(error)
    if isinstance(error, (ValueError, KeyError)) and not any(secret in text for secret in secrets):
        return Problem(HTTPStatus.NOT_FOUND if isinstance(error, KeyError) else HTTPStatus.UNPROCESSABLE_ENTITY, text)
    if isinstance(error, PermissionError):
        return Problem(HTTPStatus.FORBIDDEN, READ_ONLY)
    logger.error("An error of the server: %s", text, exc_info=error)
    if isinstance(error, BlockingIOError):
        return busy("The facts are being changed by another program: try again later.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Problem(HTTPStatus.INSUFFICIENT_STORAGE, "The disk of the server is full, and nothing was changed.")
    if isinstance(error, (OSError, ValueError)):
        return busy(_OF_THE_SERVER)
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, _UNEXPECTED)


class TellingRoute(APIRoute):
    """A route whose errors in Python are told as problems. `app.state.secrets` are the texts that nobody may see.

    `app.state.admit` refuses strangers before their body is read.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def telling(request: Request) -> Response:
            try:
                await request.app.state.admit(request)
                return await handle(request)
            except (HTTPException, RequestValidationError):
                raise
            except (ValueError, KeyError, OSError) as error:
                raise as_problem(error, request.app.state.secrets) from error

        return telling


def add_problems(app: FastAPI) -> None:
    """Makes an application answer every error with problem details."""

    def http_problem(request: Request, error: Any) -> JSONResponse:
        return respond(error.status_code, str(error.detail), error.headers)

    def invalid(request: Request, error: Any) -> JSONResponse:
        errors = [
            Invalid(at=".".join(map(str, each["loc"])), detail=each["msg"].removeprefix("Value error, "))
            for each in error.errors()
        ]
        detail = "; ".join(f"{each.at}: {each.detail}" for each in errors)
        return respond(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=errors)

    def unexpected(request: Request, error: Exception) -> JSONResponse:
        return respond(HTTPStatus.INTERNAL_SERVER_ERROR, _UNEXPECTED)

    app.add_exception_handler(HTTPException, http_problem)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
