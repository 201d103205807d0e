"""RECIPE: editing the knowledge of a language model with retrieved continuous prompts (arXiv 2405.03279)."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from .modeling.configuration import RecipeConfig
from .modeling.knowledge import KnowledgeBase
from .modeling.model import RecipeForCausalLM
from .modeling.outputs import Retrieval

__all__ = ["KnowledgeBase", "RecipeConfig", "RecipeForCausalLM", "Retrieval"]

AutoConfig.register("recipe", RecipeConfig, exist_ok=True)
AutoModelForCausalLM.register(RecipeConfig, RecipeForCausalLM, exist_ok=True)
