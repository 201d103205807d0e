"""Knowledge editors under one interface, which `editor.py` describes; `registry.py` names them."""

from .editor import Editor, Found, Prompt, Reading
from .registry import ABLATIONS, BASELINES, EDITORS, EditorKind, EditorOptions

__all__ = ["ABLATIONS", "BASELINES", "EDITORS", "Editor", "EditorKind", "EditorOptions", "Found", "Prompt", "Reading"]
