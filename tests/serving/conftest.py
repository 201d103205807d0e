from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from running_server import Running, serving
from tiny_recipe import edited_recipe

from recipe_hf.serving import ServerSettings, create_app
from recipe_hf.serving.generating import TransformersEngine


@pytest.fixture
def server() -> Iterator[Running]:
    """A server of a tiny model that holds `tiny_recipe.FACTS`, whose prompts fire."""
    model = edited_recipe()
    with serving(create_app(ServerSettings(served_model_name="tiny"), model, TransformersEngine(model))) as running:
        yield running
