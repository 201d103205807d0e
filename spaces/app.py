"""The page of recipe-hf as a Space of the Hub: a checkpoint by name, and for each visitor facts of his own, in memory.

RECIPE_HF_CHECKPOINT names the checkpoint; every setting of `recipe-hf serve` may be given in this way.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading

import uvicorn
from fastapi import Request

from recipe_hf import RecipeForCausalLM
from recipe_hf.demo import FACTS
from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.access import Principal, principal
from recipe_hf.serving.generating import TransformersEngine
from recipe_hf.serving.problems import busy

MOST_VISITORS = 500
_SALT = secrets.token_bytes(16)
_visitors: set[str] = set()
_lock = threading.Lock()


def visitor(request: Request) -> Principal:
    """Who asks: known by his address, and told apart from others by nothing that is kept."""
    forwarded = request.headers.get("x-forwarded-for", "").partition(",")[0].strip()
    address = forwarded or (request.client.host if request.client else "")
    name = hashlib.sha256(_SALT + address.encode()).hexdigest()[:12]
    who = request.state.principal = Principal(name, "edit", name)
    request.app.state.rates.count(who)
    with _lock:
        if name not in _visitors:
            if len(_visitors) >= MOST_VISITORS:
                raise busy("As many visitors as there is room for have facts here already; duplicate this Space.")
            request.app.state.model.add_knowledge([(fact.prompt, fact.answer) for fact in FACTS], namespace=name)
            _visitors.add(name)
    return who


def main() -> None:
    """Serves the page."""
    defaults = {"PORT": "7860", "FRAME_ANCESTORS": "https://huggingface.co", "RATE": "120/minute", "MAX_TOKENS": "256"}
    for name, value in defaults.items():
        os.environ.setdefault(f"RECIPE_HF_{name}", value)
    settings = ServerSettings.read()
    if not settings.checkpoint:
        raise SystemExit("RECIPE_HF_CHECKPOINT must name a checkpoint on the Hub, or a directory.")
    model = RecipeForCausalLM.from_pretrained(settings.checkpoint, base_model=settings.base_model)
    app = create_app(settings, model, TransformersEngine(model, settings.max_batch_size, settings.max_waiting))
    # Whoever comes may ask and edit without a key, among facts of his own: this line opens the server to others.
    app.dependency_overrides[principal] = visitor
    uvicorn.run(app, host="0.0.0.0", port=settings.port)


if __name__ == "__main__":
    main()
