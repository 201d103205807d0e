"""Where the real models are that `make models` brings: in models/, or where RECIPE_TEST_MODELS says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODELS = Path(os.environ.get("RECIPE_TEST_MODELS", Path(__file__).parent.parent / "models"))
#: The base: converted, which loads at once, and as the GGUF file that it was made of.
SMOLLM2 = MODELS / "smollm2-135m-instruct"
SMOLLM2_GGUF = MODELS / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = MODELS / "minilm"

needs_real_models = pytest.mark.skipif(
    not SMOLLM2.is_dir(), reason="needs the real models, in models/ or RECIPE_TEST_MODELS: make models"
)
