"""`recipe-hf keys add`, `list` and `revoke`: who may use a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .app import app, say

if TYPE_CHECKING:
    from ..serving.keys import Keys

keys_app = typer.Typer(no_args_is_help=True, help="Keys of a server's clients: add, list and revoke them.")
app.add_typer(keys_app, name="keys")

File = Annotated[
    Path,
    typer.Option("--keys", envvar="RECIPE_HF_KEYS", help="File of the keys, that `recipe-hf serve --keys` is given."),
]
_FILE = Path("keys.json")


def _keys(path: Path) -> Keys:
    from ..serving.keys import Keys

    return Keys(path)


@keys_app.command()
def add(
    role: Annotated[
        Literal["ask", "edit", "admin"], typer.Option(help="What it may do: ask, edit facts too, or manage all.")
    ],
    namespace: Annotated[
        str | None, typer.Option(help="Whose facts it sees, and no others; by default all.", show_default=False)
    ] = None,
    name: Annotated[str, typer.Option(help="Whose key it is, for `list`.", show_default=False)] = "",
    keys: File = _FILE,
) -> None:
    """Adds a key and prints it, once: only a hash of it is kept. Running servers take it at once."""
    token, key = _keys(keys).add(role, namespace, name)
    say(token)
    say(f"Key {key.id} is in {keys}. It is not shown again.", err=True)


@keys_app.command("list")
def list_(keys: File = _FILE) -> None:
    """Lists the keys: id, role, namespace, when added, and whose."""
    for key in _keys(keys).list():
        namespace = "any namespace" if key.namespace is None else f"namespace {key.namespace!r}"
        say(f"{key.id}  {key.role:<5}  {namespace}  {key.created_at[:19]}  {key.name}".rstrip())


@keys_app.command()
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Id, as `list` shows it.", show_default=False)],
    keys: File = _FILE,
) -> None:
    """Takes a key back: running servers refuse it from the next request on."""
    key = _keys(keys).revoke(id_)
    say(f"revoked {key.id} ({key.role})")
