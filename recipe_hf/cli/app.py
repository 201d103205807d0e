"""The application `recipe-hf`, and what its commands share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import EXPECTED, one_line


class _Commands(TyperGroup):
    """Prints an error as one line, with exit code 2; RECIPE_HF_TRACEBACK=1 in the environment shows where it arose."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            if os.environ.get("RECIPE_HF_TRACEBACK"):
                raise
            typer.echo(f"recipe-hf: {one_line(error)}", err=True)
            raise typer.Exit(2) from error


class TakesLists(TyperCommand):
    """Lets an option that may be given again take several values at once: `--seeds 0 1 2`, or `--seeds=0 1 2`.

    The values go on until the next option, or a directory, which is the checkpoint.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        repeated: list[str] = []
        option, taken = None, 0
        for argument in args:
            if argument.startswith("--"):
                name, equals, _ = argument.partition("=")
                option, taken = (name if name in lists else None), len(equals)
            elif option is not None:
                if taken and Path(argument).is_dir():
                    option = None
                elif taken:
                    repeated.append(option)
                taken += 1
            repeated.append(argument)
        return super().parse_args(ctx, repeated)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keep a language model's facts current without touching its weights (RECIPE, EMNLP 2024).",
)

Checkpoint = Annotated[Path, typer.Argument(help="Directory of a trained checkpoint.", show_default=False)]
BaseModel = Annotated[
    str | None,
    typer.Option(
        help="The frozen base: a Hub id, a directory or a GGUF file. By default the one the checkpoint names.",
        show_default=False,
    ),
]


Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Precision of the base; by default that of its files.", show_default=False),
]


def checkpoint_directory(checkpoint: Path) -> Path:
    """The checkpoint, if it is one."""
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"CHECKPOINT must be a directory with a config.json, got {str(checkpoint)!r}.")
    return checkpoint


def load_model(
    checkpoint: Path,
    base_model: str | bool | None,
    file: Path | None = None,
    namespace: str = "",
    read_only: bool = True,
    dtype: str | None = None,
) -> Any:
    """The model of a checkpoint, with its own facts or those of a file."""
    checkpoint_directory(checkpoint)
    from transformers.utils.logging import disable_progress_bar

    from ..modeling.model import RecipeForCausalLM

    disable_progress_bar()
    model = RecipeForCausalLM.from_pretrained(checkpoint, base_model=base_model, dtype=dtype)
    if file is not None or namespace:
        model.knowledge = load_knowledge(checkpoint, file, namespace, read_only)
    return model


def load_knowledge(checkpoint: Path, file: Path | None = None, namespace: str = "", read_only: bool = True) -> Any:
    """The facts of a checkpoint, or of a file; no model is loaded."""
    from ..modeling.knowledge import KnowledgeBase

    directory = checkpoint_directory(checkpoint) / "knowledge"
    if namespace and file is None:
        raise ValueError(f"--namespace must come with --knowledge FILE, got --namespace {namespace!r} alone.")
    if file is None and directory.is_dir():
        return KnowledgeBase.load(directory)
    dim = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["knowledge_dim"]
    if file is None:
        return KnowledgeBase(dim)
    return KnowledgeBase.open(file, dim, read_only=read_only, namespace=namespace)


def count_facts(number: int) -> str:
    """A number of facts, in words."""
    return f"{number} fact{'' if number == 1 else 's'}"
