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

from .queries import tokens_before_message

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


def num_text_tokens(statements: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """How many tokens of the base each statement is as hidden text."""
    texts = [as_text(statement) for statement in statements]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return [len(ids) for ids in encoded]


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


def text_places(
    tokenizer: PreTrainedTokenizerBase, input_ids: Tensor | None, attention_mask: Tensor | None, rows: Sequence[int]
) -> Tensor:
    """Behind how many of each row's tokens hidden text stands, `[B]`.

    In a chat that is right before the last user message, inside its turn. Elsewhere it is the beginning, but behind
    the token that the base's tokenizer writes there, because what stands before that one is not read.

    Args:
        tokenizer: The base's tokenizer.
        input_ids: `[B, T]`; None for one row of that first token alone, with which `generate` begins on its own.
        attention_mask: `[B, T]`, 0 for padding.
        rows: The rows that get such text. The others have 0.
    """
    if input_ids is None:
        return torch.ones(1, dtype=torch.long)
    places = torch.zeros(len(input_ids), dtype=torch.long)
    for row in rows:
        real = input_ids[row] if attention_mask is None else input_ids[row][attention_mask[row].bool()]
        ids = real.tolist()
        in_chat = tokens_before_message(tokenizer, ids)
        begins = bool(ids) and ids[0] == tokenizer.bos_token_id
        places[row] = int(begins) if in_chat is None else in_chat
    return places
