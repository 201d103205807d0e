"""`/health`, `/ready` and `/metrics`: what those ask who operate a server."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from .access import Asks

router = APIRouter(tags=["operation"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the process answers, also while all its threads are at work."""
    return {"status": "ok"}


@router.get("/ready")
def ready(request: Request) -> JSONResponse:
    """Whether questions can be answered: the engine generates, and the facts can be read."""
    state = request.app.state
    reasons = []
    if state.engine is not None and not state.engine.is_ready():
        reasons.append("the engine is stopped")
    try:
        len(state.model.knowledge)
    except OSError:
        reasons.append("the facts cannot be read")
    if reasons:
        return JSONResponse({"status": "not ready", "reasons": reasons}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics")
def metrics(request: Request, principal: Asks) -> Response:
    """The metrics, for Prometheus. They tell of every namespace."""
    if principal.namespace is not None:
        raise HTTPException(403, "Metrics are of all namespaces: a key of one of them must not read them.")
    state = request.app.state
    knowledge = state.model.knowledge
    state.metrics.facts.set(sum(len(knowledge.namespace(name)) for name in knowledge.namespaces()))
    return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
