"""From token ids to the text that is looked up: what the retriever reads of a prompt."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..knowledge.checks import is_unicode

_SYSTEM, _USER, _ASSISTANT, _NEXT_USER = ("qsystemz", "quserz", "qassistantz", "qnextuserz")


@dataclass(frozen=True)
class ChatMarkers:
    """What a chat template writes around a user message, without outer whitespace.

    Attributes:
        user: Opens a user message.
        end: Comes after a user message.
        system_end: Divides a system message from the user message in the same turn, for templates that join the two;
            empty for others.
    """

    user: str
    end: str
    system_end: str = ""

    def last_user_message(self, text: str) -> str | None:
        """The last user message of a rendered chat, stripped; None if `text` is not a rendered chat."""
        message = self._message_to_the_end(text)
        if message is not None and self.end:
            message = message.partition(self.end)[0]
        return None if message is None else message.strip()

    def last_user_message_start(self, text: str) -> int | None:
        """Where that message begins in `text`."""
        message = self._message_to_the_end(text)
        return None if message is None else len(text) - len(message.lstrip())

    def _message_to_the_end(self, text: str) -> str | None:
        _, found, message = text.rpartition(self.user)
        if not found:
            return None
        before_end = message.partition(self.end)[0] if self.end else message
        joined = before_end.rfind(self.system_end) if self.system_end else -1
        return message if joined < 0 else message[joined + len(self.system_end) :]


_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ChatMarkers | None]] = WeakKeyDictionary()


def chat_markers(tokenizer: PreTrainedTokenizerBase) -> ChatMarkers | None:
    """Learns the markers of a tokenizer's own chat template by rendering probe messages.

    Returns:
        The markers, or None if there is no template, or one whose user messages carry no mark.
    """
    template = getattr(tokenizer, "chat_template", None)
    known = _known.get(tokenizer)
    if known is None or known[0] != template:
        known = (template, _learn_markers(tokenizer) if template else None)
        _known[tokenizer] = known
    return known[1]


def as_chat(tokenizer: PreTrainedTokenizerBase, message: str) -> str:
    """A user's message as the tokenizer's chat template renders it, up to where the assistant's answer begins.

    What the tokenizer itself puts before every text is left out.

    Raises:
        ValueError: If the template has no turn for a user's message.
    """
    must = "tokenizer.chat_template must have a turn for a user's message"
    if not tokenizer.chat_template:
        raise ValueError(f"{must}, got none.")
    opening = str(tokenizer.decode(tokenizer("")["input_ids"]))
    turns = [{"role": "user", "content": message}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise ValueError(f"{must}, got one that refuses it: {error}.") from error
    if message.strip() not in text:
        raise ValueError(f"{must}, got one that leaves it out.")
    return text.removeprefix(opening)


def check_queries(queries: str | Sequence[str], batch: int | None = None) -> list[str]:
    """Checks `queries`: one string, or as many as the batch has rows.

    Raises:
        ValueError: If they are not strings, or not `batch` many.
    """
    if isinstance(queries, (bytes, Mapping)) or not isinstance(queries, Iterable):
        raise ValueError(f"queries must be strings, got {queries!r}.")
    texts = [queries] if isinstance(queries, str) else list(queries)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"queries must be strings, got {type(text).__name__} as queries[{position}].")
        if not is_unicode(text):
            raise ValueError(f"queries must be valid Unicode, got {text!r} as queries[{position}].")
    if batch is not None and len(texts) != batch:
        raise ValueError(f"queries must be as many as the rows of the batch, {batch}, got {len(texts)}.")
    return texts


def read_queries(
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> list[str]:
    """The query of each row: a chat's last user message, or the text as it is.

    The query is read from the tokens where `query_mask` is 1; without it, from those before the first label; without
    either, from all. Padding and special tokens are left out. A row without any text gives an empty query.

    Args:
        tokenizer: The base's tokenizer.
        input_ids: `[B, T]`.
        attention_mask: `[B, T]`, 0 for padding.
        query_mask: `[B, T]`, 1 for what is part of the query.
        labels: `[B, T]`, -100 for what is not a label.

    Raises:
        ValueError: If a mask is not of the shape of `input_ids`.
    """
    chosen = torch.ones_like(input_ids, dtype=torch.bool)
    for name, mask in (("attention_mask", attention_mask), ("query_mask", query_mask), ("labels", labels)):
        if mask is not None and mask.shape != input_ids.shape:
            shapes = list(input_ids.shape), list(mask.shape)
            raise ValueError(f"{name} must have the shape {shapes[0]} of input_ids, got {shapes[1]}.")
    if attention_mask is not None:
        chosen &= attention_mask.bool()
    if query_mask is not None:
        chosen &= query_mask.bool()
    elif labels is not None:
        chosen &= (labels != -100).cumsum(1) == 0
    rows = [ids[keep].tolist() for ids, keep in zip(input_ids, chosen.to(input_ids.device), strict=True)]
    markers = chat_markers(tokenizer)
    return [_read_query(tokenizer, ids, markers) for ids in rows]


def tokens_before_message(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int | None:
    """How many tokens of a rendered chat stand before its last user message; None for any other text."""
    markers = chat_markers(tokenizer)
    start = None if markers is None else markers.last_user_message_start(_decode(tokenizer, list(ids)))
    if start is None:
        return None
    return bisect_right(range(len(ids)), start, key=lambda count: len(_decode(tokenizer, list(ids[: count + 1]))))


def _read_query(tokenizer: PreTrainedTokenizerBase, ids: list[int], markers: ChatMarkers | None) -> str:
    if markers is not None:
        message = markers.last_user_message(_decode(tokenizer, ids))
        if message is not None:
            return message
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _learn_markers(tokenizer: PreTrainedTokenizerBase) -> ChatMarkers | None:
    user = {"role": "user", "content": _USER}
    turns = [user, {"role": "assistant", "content": _ASSISTANT}, {"role": "user", "content": _NEXT_USER}]
    single, prompt, dialogue = (
        _render(tokenizer, messages, add_generation_prompt)
        for messages, add_generation_prompt in (([user], False), ([user], True), (turns, True))
    )
    if single is None or prompt is None:
        return None
    opens, closes = [prompt.partition(_USER)[0]], [prompt.partition(_USER)[2]]
    if dialogue is not None:
        answer_to_user, _, after = dialogue.partition(_ASSISTANT)[2].partition(_NEXT_USER)
        opens.append(answer_to_user)
        closes += [dialogue.partition(_USER)[2].partition(_ASSISTANT)[0], after]
    mark = _common_suffix(opens).strip()
    if not mark:
        return None
    # Some templates mark the end of a user turn; after others only the assistant's beginning tells it.
    end = os.path.commonprefix([single.partition(_USER)[2], *closes]).strip() or os.path.commonprefix(closes).strip()
    mark = mark.removeprefix(end).strip() or mark  # What ends the turn before is not there before the first turn.

    joined = _render(tokenizer, [{"role": "system", "content": _SYSTEM}, user], True)
    system_end = "" if joined is None else joined.partition(_SYSTEM)[2].partition(_USER)[0].strip()
    return ChatMarkers(mark, end, "" if mark in system_end else system_end)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generation_prompt: bool) -> str | None:
    """The chat as it reads when decoded; None if the template refuses it or the contents do not survive."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception:  # A template is a program of the model's author and may raise anything.
        return None
    decoded = _decode(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    return decoded if all(message["content"] in decoded for message in messages) else None


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _common_suffix(texts: list[str]) -> str:
    return os.path.commonprefix([text[::-1] for text in texts])[::-1]
