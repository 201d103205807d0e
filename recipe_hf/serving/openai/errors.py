"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class OpenAIError(Exception):
    """A request that is refused.

    Attributes:
        status: The status of HTTP.
        param: The field at fault.
        code: What a program may look at.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def body(self) -> dict[str, Any]:
        """The error in JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def of_validation(errors: Sequence[Any]) -> OpenAIError:
    """The error of a body that is not as its model says."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    message = str(first["msg"]).removeprefix("Value error, ")
    return OpenAIError(f"{'.'.join(place)}: {message}" if place else message, param=place[0] if place else None)


class OpenAIRoute(APIRoute):
    """A route whose refusals are OpenAI's, of strangers before their body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route as FastAPI makes it, with what it raises told in OpenAI's way."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                await request.app.state.admit(request)
                return await handle(request)
            except OpenAIError as refused:
                error = refused
            except RequestValidationError as invalid:
                error = of_validation(invalid.errors())
            except HTTPException as refused:
                error = OpenAIError(str(refused.detail), refused.status_code, headers=refused.headers)
            return JSONResponse(error.body(), error.status, error.headers)

        return handler
