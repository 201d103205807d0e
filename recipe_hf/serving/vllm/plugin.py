"""The endpoint plugin: vLLM's server with facts.

`VLLM_PLUGINS=recipe` names it, `RECIPE_HF_CHECKPOINT` the checkpoint, `RECIPE_HF_KNOWLEDGE` where the facts are. vLLM
serves on without a plugin that cannot be imported: so nothing is imported here that may be missing, but in what vLLM
calls, whose errors stop it.
"""

from __future__ import annotations

import copy
import logging
from argparse import Namespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

    from ..settings import ServerSettings
    from .model import PromptingModel

# vLLM shows what is logged below its own name.
logger = logging.getLogger("vllm.plugins.recipe")


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
            ImportError: If a package of the extra `serve` is missing.
            OSError: If the checkpoint or the facts cannot be found.
            ValueError: If a setting or a file is not as it must be.
        """
        from ..app import create_app
        from ..running import open_knowledge
        from .middleware import AskingMiddleware
        from .model import PromptingModel

        settings = _settings(app.state.args)
        model = PromptingModel.from_pretrained(settings.checkpoint, base_model=False)
        self._model = model = model.to(_device(settings))
        model.knowledge = open_knowledge(settings, model.config.knowledge_dim) or model.knowledge
        facts = create_app(settings, model)
        app.mount("", facts)
        app.add_middleware(AskingMiddleware, facts=facts)

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Puts the facts before the engine.

        Raises:
            OSError: If the base's files cannot be found.
            ValueError: If the base is not the checkpoint's, or the engine takes no embeddings.
        """
        from starlette.concurrency import run_in_threadpool

        from .generating import generate_with_facts
        from .lookups import Lookups

        model = self._model
        if engine_client is None or model is None:
            return
        config: Any = engine_client.model_config
        if model.config.prompt_form != "text" and not config.enable_prompt_embeds:
            raise ValueError("--enable-prompt-embeds must be given to vLLM: facts reach the base that way.")
        await run_in_threadpool(_attach_base, model, config)
        _read_chats_as(state.online_renderer, engine_client.renderer, model)
        _refuse_embeddings(state.online_renderer, engine_client.renderer)
        engine: Any = engine_client
        engine.generate = generate_with_facts(engine_client, Lookups(model))
        logger.info("Facts of %s are put before %s.", model.name_or_path, config.model)


def _settings(args: Namespace) -> ServerSettings:
    """The settings that the environment gives, for the address that vLLM listens on: all, unless it is told one."""
    from ..settings import ServerSettings

    host = "127.0.0.1" if getattr(args, "uds", None) else args.host or "0.0.0.0"
    settings = ServerSettings.read(host=host, port=args.port, root_path=args.root_path)
    if not settings.checkpoint:
        raise ValueError("RECIPE_HF_CHECKPOINT must name a RECIPE checkpoint, got none.")
    return settings


def _device(settings: ServerSettings) -> torch.device:
    """Where prompts are looked up."""
    import torch

    try:
        return torch.device(settings.device_map or "cpu")
    except RuntimeError as error:
        raise ValueError(
            f"RECIPE_HF_DEVICE_MAP must be a device under vLLM, such as 'cuda', got {settings.device_map!r}."
        ) from error


def _attach_base(model: PromptingModel, config: Any) -> None:
    from .embeddings import load_embeddings

    hub_kwargs = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    model.attach_embeddings(load_embeddings(config.model, **hub_kwargs))


def _read_chats_as(online_renderer: Any, renderer: Any, model: PromptingModel) -> None:
    """Lets the model read chats as vLLM writes them: by the template that it was given, or the base's."""
    template = online_renderer.chat_template or getattr(renderer.get_tokenizer(), "chat_template", None)
    if template is not None and model.tokenizer is not None:
        model.tokenizer.chat_template = template


def _refuse_embeddings(*renderers: Any) -> None:
    """Lets nothing of a client's be read as a tensor (CVE-2025-62164, GHSA-mrw7-hf4f-83pf).

    What reads requests knows the engine as if it took none, and refuses them as vLLM does without the option.
    """
    for renderer in renderers:
        renderer.model_config = copy.copy(renderer.model_config)
        renderer.model_config.enable_prompt_embeds = False
