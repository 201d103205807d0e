"""Where in a row's text its continuous prompts stand: before all of it, or behind the token that begins it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def bos_written(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a base's tokenizer writes at the beginning of every text; None if it writes none."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("", verbose=False)["input_ids"][:1] == [bos] else None


def prompt_places(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], prompt_position: str
) -> Tensor | None:
    """Behind how many of each row's tokens a continuous prompt stands, `[len(rows)]`; None for behind none in any row.

    Args:
        tokenizer: The base's tokenizer.
        rows: Token ids of each row, without padding.
        prompt_position: As in [`RecipeConfig`][recipe_hf.modeling.configuration.RecipeConfig].
    """
    bos = bos_written(tokenizer) if prompt_position == "after_bos" else None
    behind = [bos is not None and list(ids[:1]) == [bos] for ids in rows]
    return torch.tensor(behind, dtype=torch.long) if any(behind) else None
