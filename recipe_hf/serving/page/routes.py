"""The routes of the page: its files, and what it has to know of the server and of who asks."""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePath
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from ..access import Asks

_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors "
)


_FILES = {file.name: file.read_bytes() for file in (files(__package__) / "static").iterdir() if file.is_file()}

router = APIRouter(include_in_schema=False)


@router.get("/")
def page(request: Request) -> Response:
    """The page itself."""
    return file(request, "index.html")


@router.get("/page/session")
def session(request: Request, principal: Asks) -> dict[str, Any]:
    """Who asks, what he may do here, and what the model can."""
    state = request.app.state
    any_namespace = principal.namespace is None
    return {
        "name": principal.name,
        "role": principal.role,
        "namespace": principal.namespace,
        "namespaces": sorted(filter(None, state.model.knowledge.namespaces())) if any_namespace else None,
        "has_keys": state.keys is not None,
        "read_only": state.settings.read_only,
        "has_chat_template": getattr(state.model.tokenizer, "chat_template", None) is not None,
        "tells_what_supersedes": state.model.tells_what_supersedes,
    }


@router.get("/page/{name}")
def file(request: Request, name: str) -> Response:
    """One of its files."""
    if name not in _FILES:
        raise HTTPException(404)
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _POLICY + request.app.state.settings.frame_ancestors,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(_FILES[name], media_type=_TYPES[PurePath(name).suffix], headers=headers)
