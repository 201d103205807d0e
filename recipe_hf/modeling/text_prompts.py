"""Statements as hidden text: what a base reads of a fact where no prompt encoder is trained for it.

It goes beyond the paper, whose continuous prompts (eq. 7) a base reads only after training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

#: How a statement reads as hidden text. One that ends without a mark gets a full stop.
TEXT_FORM = "{statement}\n"
_ENDS_WITH_A_MARK = re.compile(r"[.!?…。！？।؟][\"'”’»」)\]]*$")


def as_text(statement: str) -> str:
    r"""A statement as hidden text.

    >>> as_text("The capital of France is Paris"), as_text('She said "No."')
    ('The capital of France is Paris.\n', 'She said "No."\n')
    """
    statement = statement.strip()
    mark = "" if _ENDS_WITH_A_MARK.search(statement) else "."
    return TEXT_FORM.format(statement=statement + mark)


@torch.no_grad()
def text_prompts(
    statements: Sequence[str], tokenizer: PreTrainedTokenizerBase, embeddings: nn.Module, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The word embeddings of statements as hidden text.

    Args:
        statements: The statements, at least one.
        tokenizer: The base's tokenizer.
        embeddings: The base's input embeddings. They are called, because some scale what their weight holds.
        device: Where their inputs belong.

    Returns:
        Prompts `[n, l, d_llm]`, and a mask `[n, l]` of the tokens that are there.
    """
    encoded = tokenizer([as_text(statement) for statement in statements], add_special_tokens=False, verbose=False)
    rows = [torch.tensor(ids, device=device) for ids in encoded["input_ids"]]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return embeddings(pad_sequence(rows, batch_first=True)), mask
