"""`recipe-hf convert`: a base LLM, such as a GGUF file, as a directory of safetensors, which loads at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import model_source


def convert_base(
    base_model: str | os.PathLike[str], save_directory: str | os.PathLike[str], dtype: str | None = None
) -> Path:
    """Writes a base, with its tokenizer, chat template and generation config, to a directory, whole or not at all.

    A checkpoint takes the directory as the base that it was made for: the weights are the same.

    Args:
        base_model: Hub id, directory or path of a GGUF file. Of the latter, what is written is dequantised.
        save_directory: Where to: a directory that is empty or not there yet.
        dtype: Precision of the weights, `"float32"`, `"bfloat16"` or `"float16"`; by default that of the base's
            files, which for a GGUF file is float32.

    Returns:
        The directory.

    Raises:
        OSError: If the base or its tokenizer cannot be found, or the directory cannot be written.
        ValueError: If `save_directory` is a file or holds something, or the base is damaged or not one that can be
            prefixed.
    """
    directory = Path(save_directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ValueError(f"save_directory must be an empty directory, or not there yet, got {str(directory)!r}.")
    model_source("base_model", str(base_model))
    import transformers

    from .modeling.frozen_base import load_base, loading, split_gguf

    source, gguf = split_gguf(base_model)
    with loading(f"base_model must have a tokenizer, got {str(base_model)!r}"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **gguf)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if gguf and hasattr(transformers, "GgufConfig"):  # Releases without it always dequantise.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    lm = load_base(base_model, **options)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temporary:
        new = Path(temporary) / directory.name
        lm.save_pretrained(new)
        tokenizer.save_pretrained(new)
        if directory.exists():
            directory.rmdir()  # Not every system renames onto a directory.
        new.replace(directory)
    return directory
