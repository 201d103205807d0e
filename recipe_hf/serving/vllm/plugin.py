"""The endpoint plugin: vLLM's server with facts.

`VLLM_PLUGINS=recipe` names it, `RECIPE_HF_CHECKPOINT` the checkpoint, `RECIPE_HF_KNOWLEDGE` where the facts are.
"""

from __future__ import annotations

import copy
import logging
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient

from ..app import create_app
from ..settings import ServerSettings
from .embeddings import load_embeddings
from .generating import generate_with_facts
from .lookups import Lookups
from .middleware import AskingMiddleware
from .model import PromptingModel

logger = logging.getLogger(__name__)


class RecipePlugin:
    """Serves a checkpoint's facts beside vLLM's own routes, and lets these answer with them.

    It looks prompts up in the process of the API server. The engine, wherever its parts run, gets prompts as any
    client of it may send them.
    """

    name = "recipe"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._model: PromptingModel | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Loads the checkpoint, and puts the routes for facts behind vLLM's.

        Raises:
            OSError: If the checkpoint or the facts cannot be found.
            ValueError: If a setting or a file is not as it must be.
        """
        settings = ServerSettings.read()
        if not settings.checkpoint:
            raise ValueError("RECIPE_HF_CHECKPOINT must name a RECIPE checkpoint, got none: set it.")
        self._model = model = PromptingModel.from_pretrained(settings.checkpoint, base_model=False)
        _open_facts(settings, model)
        app.mount("", create_app(settings, model))
        app.add_middleware(AskingMiddleware, max_body_bytes=settings.max_body_bytes)

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Puts the facts before the engine.

        Raises:
            OSError: If the base's files cannot be found.
            ValueError: If the base is not the checkpoint's, or the engine takes no embeddings.
        """
        model = self._model
        if engine_client is None or model is None:
            return
        config: Any = engine_client.model_config
        if model.config.prompt_form != "text" and not config.enable_prompt_embeds:
            raise ValueError("--enable-prompt-embeds must be given to `vllm serve`: facts reach the base that way.")
        await run_in_threadpool(_attach_base, model, config)
        template = getattr(state.online_renderer, "chat_template", None) or getattr(
            engine_client.renderer.get_tokenizer(), "chat_template", None
        )
        if template is not None and model.tokenizer is not None:
            model.tokenizer.chat_template = template
        _refuse_embeddings(state.online_renderer, engine_client.renderer)
        engine: Any = engine_client
        engine.generate = generate_with_facts(engine_client, Lookups(model))
        logger.info("Facts of %s are put before %s.", model.name_or_path, config.model)


def _open_facts(settings: ServerSettings, model: PromptingModel) -> None:
    if settings.knowledge is None:
        return
    if "://" not in settings.knowledge:
        model.open_knowledge(settings.knowledge, read_only=settings.read_only)
        return
    from ...knowledge.qdrant import QdrantKnowledgeBase

    key = None if settings.qdrant_api_key is None else settings.qdrant_api_key.get_secret_value()
    dim = model.config.knowledge_dim
    model.knowledge = QdrantKnowledgeBase(settings.knowledge, settings.collection, dim=dim, api_key=key)


def _attach_base(model: PromptingModel, config: Any) -> None:
    hub_kwargs = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    lm = load_embeddings(config.model, **hub_kwargs)
    model.attach_embeddings(lm)


def _refuse_embeddings(*renderers: Any) -> None:
    """Lets nothing of a client's be read as a tensor (CVE-2025-62164, GHSA-mrw7-hf4f-83pf).

    What reads requests knows the engine as if it took none, and refuses them as vLLM does without the option.
    """
    for renderer in renderers:
        renderer.model_config = copy.copy(renderer.model_config)
        renderer.model_config.enable_prompt_embeds = False
