"""Knowledge editors that are compared under one interface."""

from .base import Editor, Inputs
from .registry import ABLATIONS, BASELINES, EDITORS, EditorKind, EditorOptions

__all__ = ["ABLATIONS", "BASELINES", "EDITORS", "Editor", "EditorKind", "EditorOptions", "Inputs"]
