"""What the programs that train have in common: their arguments, and how an error ends them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..errors import EXPECTED, existing_file, one_line
from .yaml_config import YamlConfig, parse_yaml

C = TypeVar("C", bound=YamlConfig)

ConfigFile = Annotated[Path, typer.Option("--config", help="YAML file of the run.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output directory.")]
Assignments = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Takes the place of any field of the file: --set NAME.NAME=VALUE, read as YAML; may be given again.",
    ),
]


def option_for(field: str, *names: str) -> Any:
    """An option, by default named as its argument is, that takes the place of a field of the file."""
    return typer.Option(*names, help=f"Takes the place of {field} in the file.", show_default=False)


def program(name: str) -> typer.Typer:
    """A program of one command; `name` is that of its script."""
    # Without rich, which turns a closed pipe into an exit of its own.
    return typer.Typer(name=name, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def read_config(kind: type[C], path: Path, options: Mapping[str, Any], assignments: Sequence[str] = ()) -> C:
    """The configuration of a file, with what the command line sets.

    Args:
        kind: The configuration's class.
        path: The file.
        options: Values of fields by dotted name; those that are `None` were not given.
        assignments: Texts `NAME=VALUE`, which come after the options.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If an assignment is none, and as [`YamlConfig.from_yaml`] does.
    """
    changes = {name: value for name, value in options.items() if value is not None}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set must be NAME=VALUE, got {assignment!r}.")
        changes[name] = parse_yaml(value, f"--set {assignment}")
    return kind.from_yaml(existing_file("--config", path), changes)


def run_script(app: typer.Typer) -> None:
    """Runs a program; what a user can bring about is told in one line, or in whole with RECIPE_HF_TRACEBACK=1."""
    name = str(app.info.name)
    try:
        app(prog_name=name)
    except EXPECTED as error:
        if os.environ.get("RECIPE_HF_TRACEBACK"):
            raise
        sys.exit(f"{name}: {one_line(error)}")
