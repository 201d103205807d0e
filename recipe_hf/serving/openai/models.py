"""`/v1/models`: the model that is served."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request

from ..access import Asks
from .errors import OpenAIError, OpenAIRoute

router = APIRouter(route_class=OpenAIRoute)
_started = int(time.time())


@router.get("/models")
def list_models(request: Request, principal: Asks) -> dict[str, Any]:
    """The models: one."""
    return {"object": "list", "data": [_model(request)]}


@router.get("/models/{name:path}")
def get_model(request: Request, name: str, principal: Asks) -> dict[str, Any]:
    """That model."""
    check_model(request, name)
    return _model(request)


def check_model(request: Request, name: str | None) -> None:
    """Checks that a model is the one that is served.

    Raises:
        OpenAIError: If it is another.
    """
    served = request.app.state.settings.model_name
    if name not in (None, "", served):
        message = f"The model `{name}` does not exist; this server has `{served}`."
        raise OpenAIError(message, 404, param="model", code="model_not_found")


def _model(request: Request) -> dict[str, Any]:
    state = request.app.state
    about = {"id": state.settings.model_name, "object": "model", "created": _started, "owned_by": "recipe-hf"}
    return about | {"max_model_len": state.model.max_text_length}
