"""Calls of tools in what a model says, where it says them in plain JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

_TAG = "<tool_call>"
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; its arguments are JSON."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid4().hex[:24]}")

    def as_openai(self) -> dict[str, Any]:
        """The call as OpenAI's API has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def tool_names(tools: Iterable[Any]) -> frozenset[str]:
    """The names of tools as OpenAI's API defines them."""
    functions = [tool.get("function") for tool in tools]
    return frozenset(
        str(function["name"]) for function in functions if isinstance(function, dict) and "name" in function
    )


def read_calls(text: str, names: frozenset[str]) -> tuple[str, list[ToolCall]]:
    """What a text says beside its calls of the tools of these names, and those calls.

    Read are JSON objects with `name` and `arguments` (or `parameters`) within `<tool_call>`, as Qwen and others write
    them, and texts that are one such object, or a list of them, as Llama's are. Other text is left as it is.
    """
    if _TAG in text:
        calls = [call for told in _TAGGED.findall(text) for call in _calls(told, names)]
        return (text[: text.index(_TAG)].rstrip(), calls) if calls else (text, [])
    calls = _calls(text, names)
    return ("", calls) if calls else (text, [])


class CallsApart:
    """Text that comes piece by piece: what cannot be a call is handed on, what may be one is held back."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._text = ""
        self._shown = 0

    def add(self, text: str) -> str:
        """What can be shown now."""
        self._text += text
        if not self._names:
            end = len(self._text)
        elif self._text.lstrip()[:1] in ("", "{", "["):
            end = 0
        elif (end := self._text.find(_TAG)) < 0:
            begun = (n for n in range(len(_TAG) - 1, 0, -1) if self._text.endswith(_TAG[:n]))
            end = len(self._text) - next(begun, 0)
        shown = self._text[self._shown : end]
        self._shown = max(end, self._shown)
        return shown

    def end(self) -> tuple[str, list[ToolCall]]:
        """What was held back: text, and calls."""
        text, calls = read_calls(self._text[self._shown :], self._names)
        return text, calls


def _calls(told: str, names: frozenset[str]) -> list[ToolCall]:
    try:
        values = json.loads(told)
    except (ValueError, RecursionError):
        return []
    values = values if isinstance(values, list) else [values]
    calls = [_call(value, names) for value in values]
    return [call for call in calls if call is not None] if all(calls) else []


def _call(value: Any, names: Sequence[str] | frozenset[str]) -> ToolCall | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))
