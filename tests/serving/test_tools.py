from __future__ import annotations

import json

import pytest

from recipe_hf.serving.openai.tools import CallsApart, read_calls

NAMES = frozenset({"weather", "time"})
CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (CALL, ""),
        (f"[{CALL}]", ""),
        (f"<tool_call>\n{CALL}\n</tool_call>", ""),
        (f"I look.\n<tool_call>{CALL}", "I look."),
        ('{"name": "weather", "parameters": {"city": "Köln"}}', ""),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_calls_are_read_whole_and_piece_by_piece(text, content, size):
    said, (call,) = read_calls(text, NAMES)
    assert (said, call.name, json.loads(call.arguments)) == (content, "weather", {"city": "Köln"})
    apart = CallsApart(NAMES)
    shown = "".join(apart.add(text[at : at + size]) for at in range(0, len(text), size))
    rest, (call,) = apart.end()
    assert (shown + rest).rstrip() == content and call.name == "weather"


@pytest.mark.parametrize(
    "text", ["It is warm.", '{"name": "other", "arguments": {}}', "{", "<tool_call>no</tool_call>", "[1, 2]", "a < b"]
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_call_is_left_as_it_is(text, size):
    assert read_calls(text, NAMES) == (text, [])
    apart = CallsApart(NAMES)
    shown = "".join(apart.add(text[at : at + size]) for at in range(0, len(text), size))
    assert (shown + apart.end()[0], apart.end()[1]) == (text, [])
