"""The application: its routers put together over one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from .. import __version__
from . import health, knowledge, managing, openai, page
from .engine import Engine
from .facts import add_facts
from .logs import Observed
from .metrics import Metrics
from .problems import add_problems
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM


def create_app(settings: ServerSettings, model: RecipeForCausalLM, engine: Engine | None = None) -> FastAPI:
    """The application that serves a model and its facts.

    Args:
        settings: How.
        model: Whose `knowledge` the facts are.
        engine: What generates. Without one there are no chat and completion routes, as under vLLM, which has its own.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if engine is not None:
            await run_in_threadpool(engine.close)
        app.state.changes.receipts.close()

    # /docs from files of this machine: a page that asked another host for them would be blank in a closed network.
    options: Any = {"lifespan": lifespan, "root_path": settings.root_path}
    app = FastAPIOffline(redoc_url=None, title="recipe-hf", version=__version__, **options)
    app.state.settings = settings
    app.state.model = model
    app.state.engine = engine
    app.state.metrics = metrics = Metrics() if engine is None else engine.metrics
    add_problems(app)
    add_facts(app, settings, model)
    parts = [health, knowledge, managing, page] if engine is None else [health, openai, knowledge, managing, page]
    for part in parts:
        app.include_router(part.router)
    app.add_middleware(Observed, metrics=metrics)
    return app
