"""Facts in an application: what the routes under /v1/knowledge need, and who may use them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from ..knowledge.files import user_path
from .access import Rates, admit, check_address
from .audit import Audit
from .changes import Changes
from .keys import Keys
from .limits import BodyLimit
from .receipts import Receipts
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM


def add_facts(app: FastAPI, settings: ServerSettings, model: RecipeForCausalLM) -> None:
    """Gives an application its keys, its limits, and what changes facts.

    Raises:
        OSError: If a file beside the facts cannot be written.
        ValueError: If others can reach the server, and there are no keys.
    """
    keys = None if settings.keys is None else Keys(settings.keys)
    check_address(settings.host, keys)
    app.state.keys = keys
    app.state.rates = Rates(settings.rate)
    app.state.admit = admit
    app.state.secrets = _secrets(settings)
    audit = settings.audit or _beside(settings, "-audit.jsonl")
    receipts = None if settings.read_only else _beside(settings, "-receipts")
    app.state.changes = Changes(model, Audit(audit), Receipts(receipts))
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, of_imports=settings.max_import_bytes)


def _beside(settings: ServerSettings, suffix: str) -> Path | None:
    """A file beside that of the facts; None where they are elsewhere."""
    if settings.knowledge is None or "://" in settings.knowledge:
        return None
    path = Path(os.path.realpath(user_path(settings.knowledge)))
    return path.with_name(path.name + suffix)


def _secrets(settings: ServerSettings) -> tuple[str, ...]:
    """What no error may tell a client: where things lie."""
    given = [settings.knowledge, settings.checkpoint, settings.base_model, settings.keys, settings.audit]
    named = [str(each) for each in given if each]
    paths = [os.path.realpath(user_path(each)) for each in named if "://" not in each]
    return tuple(each for each in {*named, *paths} if "/" in each or os.sep in each)
