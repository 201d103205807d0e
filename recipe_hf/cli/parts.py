"""`recipe-hf split`: a checkpoint taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import Checkpoint, app, load_model, say


@app.command()
def split(
    checkpoint: Checkpoint,
    save_directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to: an empty directory, or none yet.", show_default=False)
    ],
    retriever: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint that has the same retriever, as a directory or Hub id: DIR names that, and is the "
            "checkpoint of the prompts.",
            show_default=False,
        ),
    ] = None,
    retriever_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of it on the Hub.", show_default=False)
    ] = None,
) -> None:
    """Splits a checkpoint: DIR/retriever serves any base; DIR/prompts, for one base, names it and has the facts."""
    if save_directory.is_file() or (save_directory.is_dir() and any(save_directory.iterdir())):
        raise FileExistsError(f"save_directory must be an empty directory, or none yet, got {str(save_directory)!r}.")
    if retriever is None and retriever_revision is not None:
        raise ValueError(f"retriever_revision must come with --retriever, got {retriever_revision!r} alone.")
    model = load_model(checkpoint, base_model=False)
    prompts = save_directory
    if retriever is None:
        retriever, prompts = str(save_directory / "retriever"), save_directory / "prompts"
        if model.prompt_encoder is None:
            raise ValueError(f"CHECKPOINT must have prompts to be split, got {str(checkpoint)!r}, which has none.")
        model.save_pretrained(retriever, parts="retriever", include_knowledge=False)
    model.save_pretrained(prompts, parts="prompts", retriever=retriever, retriever_revision=retriever_revision)
    say(f"{prompts} holds the prompts of {checkpoint}, and names the retriever {retriever}.")
