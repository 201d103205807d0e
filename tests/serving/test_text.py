from __future__ import annotations

import pytest

from recipe_hf.serving.text import Decoder, StopStrings
from tests.tiny_recipe import base_tokenizer


@pytest.mark.parametrize("text", ["plain", "Köln 🎈 東京", "e\u0301 \ufffd x", ""])
def test_parts_make_the_whole_and_characters_come_whole(text):
    tokenizer = base_tokenizer()
    decoder = Decoder(tokenizer)
    ids = tokenizer(text)["input_ids"] + tokenizer("🎈")["input_ids"][:2]
    parts = [decoder.add(id) for id in ids] + [decoder.end()]
    assert "".join(parts) == tokenizer.decode(ids)
    assert "🎈" not in text or "🎈" in parts


def test_a_stop_string_ends_the_text_wherever_it_is_cut():
    text = "one two\n\nUser: three"
    for size in range(1, len(text)):
        stop = StopStrings(["\n\nUser:", "zzz"])
        shown = ""
        for at in range(0, len(text), size):
            shown += stop.add(text[at : at + size])
            if stop.found:
                break
        assert stop.found and shown + stop.end() == "one two"


def test_what_only_begins_like_a_stop_string_is_shown_in_the_end():
    stop = StopStrings(["stop"])
    assert [stop.add("a st"), stop.add("ore"), stop.add(" sto"), stop.end()] == ["a ", "store", " ", "sto"]
    assert not stop.found
