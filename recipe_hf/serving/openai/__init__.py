"""OpenAI's API over a model with facts: models, chat completions and completions."""

from __future__ import annotations

from fastapi import APIRouter

from . import chat, completions, models

router = APIRouter(prefix="/v1", tags=["OpenAI"])
for part in (models, chat, completions):
    router.include_router(part.router)

__all__ = ["router"]
