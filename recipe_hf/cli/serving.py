"""`recipe-hf serve`: a checkpoint and its facts behind an OpenAI-compatible API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .app import Dtype, app, load_model

Option = typer.Option


@app.command()
def serve(
    checkpoint: Annotated[
        str | None, typer.Argument(help="Directory or Hub id of a checkpoint.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, Option(help="YAML file of settings, which options and RECIPE_HF_… override.", show_default=False)
    ] = None,
    base_model: Annotated[
        str | None, Option(help="The frozen base; by default the one the checkpoint names.", show_default=False)
    ] = None,
    knowledge: Annotated[
        str | None,
        Option(
            help="File that keeps the facts, or the URL of a Qdrant server. Without it, those of the checkpoint are "
            "served, and cannot be changed.",
            show_default=False,
        ),
    ] = None,
    collection: Annotated[str | None, Option(help="Collection of that Qdrant server.", show_default=False)] = None,
    read_only: Annotated[
        bool | None, Option("--read-only", help="Leave changes of facts to another process.", show_default=False)
    ] = None,
    host: Annotated[
        str | None, Option(help="Address to listen on, by default 127.0.0.1; others need keys.", show_default=False)
    ] = None,
    port: Annotated[int | None, Option(help="Port, by default 8000.", show_default=False)] = None,
    keys: Annotated[Path | None, Option(help="File that `recipe-hf keys add` makes.", show_default=False)] = None,
    served_model_name: Annotated[
        str | None, Option(help="What clients call the model; by default its directory.", show_default=False)
    ] = None,
    device_map: Annotated[
        str | None, Option(help="Where the base goes, as in transformers.", show_default=False)
    ] = None,
    dtype: Dtype = None,
    max_batch_size: Annotated[int | None, Option(help="Rows generated at once.", show_default=False)] = None,
    max_waiting: Annotated[int | None, Option(help="Rows that may wait; more get 429.", show_default=False)] = None,
    log_level: Annotated[Literal["debug", "info", "warning", "error"] | None, Option(show_default=False)] = None,
    log_format: Annotated[Literal["json", "text"] | None, Option(show_default=False)] = None,
) -> None:
    """Serves a checkpoint: OpenAI's API, facts over HTTP, and a page. All settings: docs/serving.md."""
    given: dict[str, Any] = dict(locals())
    try:
        from ..serving.settings import ServerSettings

        settings = ServerSettings.read(**given)
        if not settings.checkpoint:
            raise ValueError("CHECKPOINT must be given, as an argument or a setting.")
        from ..serving.logs import configure
        from ..serving.running import listening, open_knowledge, run
    except ImportError as error:
        raise ImportError(
            f"`recipe-hf serve` needs more packages: pip install 'recipe-hf[serve]' ({error})."
        ) from error
    configure(settings)
    listener = listening(settings)
    from ..modeling.loading import checkpoint_directory

    directory = checkpoint_directory(settings.checkpoint, argument="CHECKPOINT")
    model = load_model(directory, settings.base_model, dtype=settings.dtype, device_map=settings.device_map)
    facts = open_knowledge(settings, model.config.knowledge_dim)
    if facts is None:
        settings = settings.model_copy(update={"read_only": True})
    else:
        model.knowledge = facts
    run(settings, model, listener)
