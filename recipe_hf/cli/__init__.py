"""The command `recipe-hf`. Whatever needs a model is imported inside its command.

The order of the imports is that of the commands in `recipe-hf --help`.
"""

from . import checkpoints, comparison, evaluation, facts, keys, measuring, parts, serving
from .app import app

__all__ = ["app", "checkpoints", "comparison", "evaluation", "facts", "keys", "measuring", "parts", "serving"]
