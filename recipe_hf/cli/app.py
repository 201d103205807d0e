"""The application `recipe-hf`, and what its commands share."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import EXPECTED, data_source, model_source, one_line

_BROKEN_PIPE = 141  # What a shell reports of a program that SIGPIPE ended.


class UnwrittenOutput(Exception):
    """Standard output cannot be written, to a full disk for instance. The command itself did what it says."""


def _write(writing: Callable[[], object]) -> None:
    """Tells an output that cannot be written from a command that failed."""
    try:
        writing()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwrittenOutput(f"done, but the output cannot be written: {error}") from error


def _discard(*streams: Any) -> None:
    """Leads what streams have still to write, at exit too, to nowhere."""
    for stream in streams:
        if stream is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Commands(TyperGroup):
    """Says an error in one line, with exit code 2; RECIPE_HF_TRACEBACK=1 in the environment shows where it arose.

    What becomes of the output never decides what a command does: characters that the terminal's encoding lacks are
    replaced, and a reader that has gone away ends the command in silence.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # Where others keep the processors busy, threads that spin while they wait take ten times as long; where nobody
        # does, sleeping costs some percent at most. It is read when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                if sys.stdout is not None:
                    _write(sys.stdout.flush)
        except BrokenPipeError as error:
            _discard(sys.stdout, sys.stderr)
            raise typer.Exit(_BROKEN_PIPE) from error
        except UnwrittenOutput as error:
            _discard(sys.stdout)
            typer.echo(f"recipe-hf: {error}", err=True)
            raise typer.Exit(1) from error
        except EXPECTED as error:
            if os.environ.get("RECIPE_HF_TRACEBACK"):
                raise
            typer.echo(f"recipe-hf: {self._as_typed(one_line(error), ctx)}", err=True)
            raise typer.Exit(2) from error

    def _as_typed(self, message: str, ctx: Any) -> str:
        """An error of the library, which begins with an argument's name, with what the command calls that instead."""
        names = {}
        for parameter in getattr(self.commands.get(ctx.invoked_subcommand), "params", ()):
            name = parameter.opts[0]
            names[parameter.name] = name if name.startswith("--") else parameter.metavar or name.upper()
        return re.sub(r"^\w+(?= must |=)", lambda name: names.get(name[0], name[0]), message)


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
    pretty_exceptions_enable=False,
    help="Keep a language model's facts current without touching its weights (RECIPE, EMNLP 2024).",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        say(f"recipe-hf {__version__}")
        raise typer.Exit


@app.callback()
def _application(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Takes the options that are not a command's."""


def _is_checkpoint(checkpoint: Path) -> Path:
    path = checkpoint / "config.json"
    if not path.is_file():
        raise ValueError(f"CHECKPOINT must be a directory with a config.json, got {str(checkpoint)!r}.")
    config = _read_config(checkpoint)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "recipe":
        raise ValueError(
            f"CHECKPOINT must be a RECIPE checkpoint, got {str(checkpoint)!r}, of model type {model_type!r}."
        )
    return checkpoint


def _read_config(checkpoint: Path) -> Any:
    path = checkpoint / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _is_base_model(source: str | None) -> str | None:
    return None if source is None else model_source("--base-model", source)


def are_data(parameter: typer.CallbackParam, sources: Any) -> Any:
    """Checks what an option names data by, as soon as it is read."""
    for source in [sources] if isinstance(sources, str) else sources:
        data_source(parameter.opts[0], source)
    return sources


Checkpoint = Annotated[
    Path, typer.Argument(help="Directory of a trained checkpoint.", show_default=False, callback=_is_checkpoint)
]
CheckpointOption = Annotated[Path, typer.Option("--checkpoint", help="Trained checkpoint.", callback=_is_checkpoint)]
BaseModel = Annotated[
    str | None,
    typer.Option(
        help="The frozen base: a Hub id, a directory or a GGUF file. By default the one the checkpoint names.",
        show_default=False,
        callback=_is_base_model,
    ),
]
Dataset = Annotated[
    list[str],
    typer.Option(
        help="Facts to edit in: files, or org/name:file.json on the Hub.", show_default=False, callback=are_data
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Precision of the base; by default that of its files.", show_default=False),
]
NoVerifier = Annotated[bool, typer.Option("--no-verifier", help="Leave the verifier out: the paper's form.")]


def say(text: str, err: bool = False) -> None:
    """Prints a line, on standard error if `err`.

    Raises:
        BrokenPipeError: If nobody reads on.
        UnwrittenOutput: If it cannot be written.
    """
    _write(lambda: typer.echo(text, err=err))


def report(page: str, output: Path | None) -> None:
    """Writes a table beside the record in `output`, if there is one, and prints it."""
    if output is not None:
        output.with_suffix(".md").write_text(page if page.endswith("\n") else f"{page}\n", encoding="utf-8")
    say(page)


def load_model(
    checkpoint: Path,
    base_model: str | bool | None,
    file: Path | None = None,
    namespace: str = "",
    read_only: bool = True,
    dtype: str | None = None,
    no_verifier: bool = False,
    device_map: str | None = None,
) -> Any:
    """The model of a checkpoint, with its own facts or those of a file.

    Raises:
        OSError: If a part cannot be found.
        ValueError: If a part is damaged, or lacks what a model needs to answer.
    """
    if base_model is None and not _read_config(checkpoint).get("base_model_name_or_path"):
        raise ValueError(f"--base-model must be given: {checkpoint} names no base.")
    # What is loaded stays: to look through it for garbage, over and over and at the end again, takes two seconds.
    gc.disable()
    try:
        from transformers.utils.logging import disable_progress_bar

        from ..modeling.model import RecipeForCausalLM

        disable_progress_bar()
        model = RecipeForCausalLM.from_pretrained(
            checkpoint, base_model=base_model, dtype=dtype, device_map=device_map, verifier=not no_verifier
        )
    finally:
        gc.freeze()
        gc.enable()
    if base_model is not False and model.tokenizer is None:
        raise ValueError(f"--base-model must have a tokenizer beside it, as {checkpoint} has none.")
    if file is not None or namespace:
        model.knowledge = load_knowledge(checkpoint, file, namespace, read_only)
    return model


def load_knowledge(checkpoint: Path, file: Path | None = None, namespace: str = "", read_only: bool = True) -> Any:
    """The facts of a checkpoint, or of a file; no model is loaded."""
    from ..knowledge import KnowledgeBase

    directory = checkpoint / "knowledge"
    if namespace and file is None:
        raise ValueError(f"--namespace must come with --knowledge FILE, got --namespace {namespace!r} alone.")
    if file is None and directory.is_dir():
        return KnowledgeBase.load(directory)
    dim = _read_config(checkpoint).get("knowledge_dim")
    if file is None:
        return KnowledgeBase(dim)
    return KnowledgeBase.open(file, dim, read_only=read_only, namespace=namespace)


def count_facts(number: int) -> str:
    """A number of facts, in words."""
    return f"{number} fact{'' if number == 1 else 's'}"
