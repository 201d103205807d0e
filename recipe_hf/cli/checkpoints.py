"""`recipe-hf demo`, `train`, `adapt`, `train-verifier`, `convert` and `push`: checkpoints made and published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import can_be_hub_id, model_source
from .app import Checkpoint, CheckpointOption, Dtype, app, are_data, count_facts, load_knowledge, say


@app.command()
def demo(
    checkpoint: CheckpointOption = Path("checkpoints/recipe-smollm2-135m"),
    base_model: Annotated[str, typer.Option(help="The frozen base: Hub id, directory or GGUF file.")] = (
        "models/smollm2-135m-instruct"
    ),
) -> None:
    """Adds invented facts to a small real model, shows what changes and what does not, and times it."""
    from ..demo import run

    run(checkpoint, model_source("base_model", base_model))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Trains a checkpoint: the options are those of training/train.py (`recipe-hf train --help`).",
)
def train(ctx: typer.Context) -> None:
    """Hands its arguments to the trainer."""
    from ..training.train import app as trainer

    _hand_over(ctx, trainer)


@app.command()
def adapt(
    base_model: Annotated[
        str, typer.Argument(metavar="BASE", help="Hub id, directory or GGUF file of the base.", show_default=False)
    ],
    retriever: Annotated[
        str,
        typer.Option(help="Checkpoint, a directory or Hub id, whose retriever finds the facts.", show_default=False),
    ],
    output: Annotated[Path, typer.Option(help="Directory of the new checkpoint.", show_default=False)],
    train_file: Annotated[
        list[str],
        typer.Option(
            help="Facts to train on: a file, or org/name:file.json on the Hub; may be given again. "
            "data/counterfact-train.json by default.",
            show_default=False,
            callback=are_data,
        ),
    ] = [],  # noqa: B006
    base_model_name_or_path: Annotated[
        str | None, typer.Option(help="Hub id that the checkpoint names, where BASE is a copy.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", "--push_to_hub", help="Upload the result.")] = False,
    hub_model_id: Annotated[
        str | None, typer.Option("--hub-model-id", "--hub_model_id", help="Repository to upload to.")
    ] = None,
    assignments: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Another field of training/configs/adapt.yaml; may be given again."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Trains the prompts of a base for a trained retriever: a base of 100M takes half an hour on two CPU cores."""
    from ..training.adapting import adapt, adaptation

    options = {
        "model.retriever": retriever,
        "model.base_model_name_or_path": base_model_name_or_path,
        "data.train_file": train_file[0] if len(train_file) == 1 else list(train_file) or None,
        "run.push_to_hub": push_to_hub or None,
        "run.hub_model_id": hub_model_id,
    }
    config = adaptation(model_source("BASE", base_model), output, options, assignments, resume)
    directory = adapt(config, resume)
    say(f"The checkpoint is in {directory}.")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Trains the verifier of a checkpoint (`recipe-hf train-verifier --help` names the options).",
)
def train_verifier(ctx: typer.Context) -> None:
    """Hands its arguments to the verifier's trainer."""
    from ..training.verify import app as trainer

    _hand_over(ctx, trainer)


def _hand_over(ctx: typer.Context, program: typer.Typer) -> None:
    """Runs a program's one command in place of this. As a program, it would end by itself when a pipe is closed."""
    command = typer.main.get_command(program)
    with command.make_context(f"recipe-hf {ctx.info_name}", ctx.args) as own:
        command.invoke(own)


@app.command()
def convert(
    base_model: Annotated[
        str, typer.Argument(metavar="BASE", help="Hub id, directory or GGUF file.", show_default=False)
    ],
    save_directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to: an empty directory, or none yet.", show_default=False)
    ],
    dtype: Dtype = None,
) -> None:
    """Turns a base into a directory of safetensors with its tokenizer, which loads far faster than a GGUF file."""
    from ..convert import convert_base

    convert_base(base_model, save_directory, dtype)
    size = sum(path.stat().st_size for path in save_directory.iterdir())
    say(f"{save_directory} holds {base_model}, {size / 1e6:.0f} MB.")


@app.command()
def push(
    checkpoint: Checkpoint,
    repo_id: Annotated[str, typer.Argument(help="Where to, as ORGANISATION/NAME.", show_default=False)],
    private: Annotated[bool, typer.Option(help="Whether a new repository is private.")] = False,
    include_knowledge: Annotated[bool, typer.Option(help="Whether the facts go with it.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, `main` by default.")] = None,
    create_pr: Annotated[bool, typer.Option(help="Open a pull request instead.")] = False,
    retriever: Annotated[
        str | None, typer.Option(help="Hub id of the retriever of a checkpoint of prompts.", show_default=False)
    ] = None,
    retriever_revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of it.", show_default=False)
    ] = None,
) -> None:
    """Uploads a checkpoint to the Hugging Face Hub: its facts, past ones too, are as public as the repository."""
    if not can_be_hub_id(repo_id):
        raise ValueError(f"REPO_ID must be ORGANISATION/NAME, of letters, digits, '-', '_' and '.', got {repo_id!r}.")
    knowledge = load_knowledge(checkpoint)
    from ..hub import push_checkpoint

    named = {"retriever": retriever, "retriever_revision": retriever_revision}
    hub_kwargs: dict[str, Any] = named | {"private": private or None, "revision": revision, "create_pr": create_pr}
    commit = push_checkpoint(checkpoint, repo_id, include_knowledge=include_knowledge, **hub_kwargs)
    facts = (
        f"{count_facts(len(knowledge))} and {len(knowledge.history())} past ones" if include_knowledge else "no facts"
    )
    say(f"pushed {checkpoint} with {facts}: {commit.pr_url or commit.commit_url}")
