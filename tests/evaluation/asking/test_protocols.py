from __future__ import annotations

import pytest

from recipe_hf.evaluation.asking.protocols import PROTOCOLS, find_protocol, normalize_answer, opens_with


def test_only_the_protocol_of_the_paper_shows_answers_and_only_generation_forces_none():
    assert [name for name, p in PROTOCOLS.items() if p.shows_answer] == ["paper"]
    assert [name for name, p in PROTOCOLS.items() if not p.forced] == ["generation"]


def test_unknown_protocol():
    with pytest.raises(ValueError, match="protocol must be one of strict, paper, generation, got 'Strict'"):
        find_protocol("Strict")


@pytest.mark.parametrize(
    ("output", "answers", "expected"),
    [
        (" the United States, of", ["United States"], True),
        ("Theodore", ["odore"], False),
        ("New York City", ["New York"], True),
        ("New", ["New York"], False),
        ("it is Rome", ["Rome"], False),
        ("Rome", ["Oslo", "Rome"], True),
        ("", ["Rome"], False),
        ("U.S.", ["US"], True),
        ("anything", ["the"], False),
        ("The The", ["The"], True),
        ("x", ["...", "x"], True),
    ],
)
def test_opens_with(output: str, answers: list[str], expected: bool):
    assert opens_with(output, answers) is expected


def test_normalized():
    assert normalize_answer(" An  apple a day; the Theatre.") == "apple day theatre"
