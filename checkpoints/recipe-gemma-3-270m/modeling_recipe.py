"""The code of this checkpoint is the library recipe-hf."""

try:
    from recipe_hf import RecipeConfig, RecipeForCausalLM
except ImportError as error:
    raise ImportError("This checkpoint needs the library recipe-hf: pip install recipe-hf") from error

__all__ = ["RecipeConfig", "RecipeForCausalLM"]
