"""RECIPE: editing the knowledge of a language model with retrieved continuous prompts (arXiv 2405.03279).

Importing this package imports neither torch nor transformers: its names are loaded when they are first used. Whenever
transformers is imported, before or after, its Auto classes and pipelines know RECIPE checkpoints.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from .publishing import publish_by

if TYPE_CHECKING:
    from .knowledge import KnowledgeBase
    from .modeling.configuration import RecipeConfig
    from .modeling.model import RecipeForCausalLM
    from .modeling.outputs import Retrieval

    __version__: str

__all__ = ["KnowledgeBase", "RecipeConfig", "RecipeForCausalLM", "Retrieval", "__version__"]

_MODULES = {
    "KnowledgeBase": ".knowledge",
    "RecipeConfig": ".modeling.configuration",
    "RecipeForCausalLM": ".modeling.model",
    "Retrieval": ".modeling.outputs",
}


def __getattr__(name: str) -> Any:
    value: Any
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name], __name__), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("recipe-hf")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@when_imported("transformers.models.auto.configuration_auto")
def _register(_: ModuleType) -> None:
    import_module(".modeling.configuration", __name__)  # It registers itself, at its end.


@when_imported("transformers.cli.serving.model_manager")
def _let_serve(manager: Any) -> None:
    # `transformers serve` looks a checkpoint's class up in what it has imported as transformers.
    manager.transformers.RecipeForCausalLM = __getattr__("RecipeForCausalLM")


# What lower modules need of higher ones, which they do not import.


@when_imported(f"{__name__}.modeling.configuration")
def _introduce_model(configuration: Any) -> None:
    configuration.model_by(lambda: import_module(".modeling.model", __name__))


def _hub() -> Any:
    return import_module(".hub", __name__)


publish_by(_hub)
