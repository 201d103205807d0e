from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

# Without the extra serve, there is nothing to test.
collect_ignore_glob = [] if find_spec("fastapi") else ["*"]


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of a tiny model that holds `tiny_recipe.FACTS`, whose prompts fire: see `running_server.Running`."""
    from recipe_hf.serving import ServerSettings, create_app
    from recipe_hf.serving.generating import TransformersEngine
    from tests.running_server import serving
    from tests.tiny_recipe import edited_recipe

    model = edited_recipe()
    with serving(create_app(ServerSettings(served_model_name="tiny"), model, TransformersEngine(model))) as running:
        yield running
