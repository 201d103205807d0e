from __future__ import annotations

from datetime import date, datetime

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.facts import Fact, NewFact, comparable, compose_statement, parse_facts
from recipe_hf.knowledge.timestamps import to_timestamp

DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


def test_the_forms_a_fact_may_have():
    parsed = parse_facts(
        [
            "The CEO of Acme is Ann Lee.",
            ("The capital of Oz is", "Emerald City"),
            ["The capital of Oz is", "Emerald City"],
            {"statement": "Water is wet.", "metadata": {"source": "a", "tags": ["x", 1, None]}},
            {"prompt": "Who rules Oz?", "answer": "Ozma"},
            {"prompt": "Who rules Oz?", "answer": "Ozma", "statement": "Ozma rules Oz."},
        ]
    )
    assert [fact.statement for fact in parsed] == [
        "The CEO of Acme is Ann Lee.",
        "The capital of Oz is Emerald City",
        "The capital of Oz is Emerald City",
        "Water is wet.",
        "Who rules Oz? Ozma",
        "Ozma rules Oz.",
    ]
    assert parsed[0] == NewFact(statement="The CEO of Acme is Ann Lee.")
    assert parsed[1] == NewFact(
        statement="The capital of Oz is Emerald City", prompt="The capital of Oz is", answer="Emerald City"
    )
    assert parsed[3].metadata == {"source": "a", "tags": ["x", 1, None]}
    assert all(again is fact for again, fact in zip(parse_facts(iter(parsed)), parsed, strict=True))


def test_a_fact_that_was_held_can_be_told_again():
    base = KnowledgeBase(2)
    base.add([{"prompt": "Who rules Oz?", "answer": "Ozma", "metadata": {"source": "a"}}], torch.ones(1, 2))
    (told,) = parse_facts(base)
    assert type(told) is NewFact
    assert told == parse_facts([{"prompt": "Who rules Oz?", "answer": "Ozma", "metadata": {"source": "a"}}])[0]


@pytest.mark.parametrize(
    ("prompt", "answer"), [("a b", "c"), ("a b ", "c"), ("a b", " c"), (" a b\n", "\tc "), ("a b", "c")]
)
def test_a_statement_has_one_space_between_prompt_and_answer(prompt, answer):
    assert compose_statement(prompt, answer) == "a b c"


def test_prompt_and_answer_stay_as_given():
    (fact,) = parse_facts([("The capital of Oz is ", " Emerald  City")])
    assert (fact.prompt, fact.answer) == ("The capital of Oz is ", " Emerald  City")
    assert fact.statement == "The capital of Oz is Emerald  City"


def test_subject_is_the_prompt_or_else_the_statement():
    spaced, plain, bare = parse_facts([("who  is\tit ", "A"), ("who is it", "B"), "who is it"])
    assert spaced.subject == plain.subject
    assert bare.subject != plain.subject
    assert parse_facts([" who is  it"])[0].subject == bare.subject


@pytest.mark.parametrize(
    "same",
    [
        (
            "Le caf\u00e9 de",
            "Le cafe\u0301 de",
            "Le caf\u200be\u0301 de\u200b",
            "\ufeffLe ca\u00adf\u00e9 \u200b de\u200e",
        ),
        ("\uac00 is", "\u1100\u1161 is"),
        ("\u212b is", "\u00c5 is", "A\u030a is"),
        ("\u2067Ann\u2069 is", "Ann\u00a0is\u3000"),
    ],
)
def test_prompts_that_look_the_same_are_one(same):
    assert {comparable(text) for text in same} == {comparable(same[0])}
    told = [fact for text in same for fact in parse_facts([(text, "x")])]
    assert [fact.prompt for fact in told] == list(same)
    assert len({fact.subject for fact in told}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Polish", "polish"),
        ("x\u00b2", "x2"),
        (
            "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc",
            "\u0646\u0627\u0645\u0647\u0627\u06cc",
        ),  # Persian: the letter, a letter.
        ("\U0001f468\u200d\U0001f4bb", "\U0001f468\U0001f4bb"),
        ("resume", "r\u00e9sum\u00e9"),
        ("a b", "ab"),
    ],
)
def test_prompts_that_look_different_are_two(one, other):
    assert comparable(one) != comparable(other)


def test_a_fact_that_ended_before_another_was_added_is_no_conflict():
    def fact(created_at: str, **times: str) -> Fact:
        (new,) = parse_facts([{"prompt": "p", "answer": "a", **times}])
        return Fact(**vars(new), id=0, created_at=to_timestamp(created_at, "created_at"))

    ended = fact("2019-01-01", valid_until="2020-01-01")
    for other, expected in [
        (fact("2019-06-01"), True),
        (fact("2020-01-01"), False),
        (fact("2021-01-01", valid_from="2019-01-01"), False),
        (fact("2018-01-01"), True),
        (fact("2019-06-01", valid_until="2019-03-01"), False),
        (fact("2019-06-01", valid_from="2020-01-01"), False),
    ]:
        assert ended.conflicts_with(other) == other.conflicts_with(ended) == expected


def test_a_time_may_be_a_date():
    for day in (date(2026, 5, 1), datetime(2026, 5, 1), "2026-05-01", "2026-05-01T02:00+02:00"):
        (fact,) = parse_facts([{"statement": "a", "valid_from": day}])
        assert fact.valid_from == "2026-05-01T00:00:00.000000+00:00"


def test_metadata_is_copied():
    metadata = {"tags": ["x"]}
    (fact,) = parse_facts([{"statement": "a", "metadata": metadata}])
    metadata["tags"].append("y")
    assert fact.metadata == {"tags": ["x"]}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([], "facts must hold at least one fact, got none"),
        (None, "facts must be a list.*got None"),
        (7, "facts must be a list.*got 7"),
        ("one statement", "facts must be a list, even for a single fact, got 'one statement'"),
        (("prompt", "answer"), "facts must be a list"),
        ({"statement": "a"}, r"facts must be a list, even for a single fact, got a dict with \['statement'\]"),
        ({"prompt": ["a"] * 99, "answer": ["b"] * 99}, r"got a dict with \['prompt', 'answer'\]"),
        (["fine", ""], r"facts\[1\].statement must be a non-empty string, got ''"),
        (["fine", " \n"], r"facts\[1\].statement must be a non-empty string, got ' \\n'"),
        ([None], r"facts\[0\] must be a statement, a \(prompt, answer\) pair or a dict, got None"),
        ([b"bytes"], r"facts\[0\] must be a statement"),
        ([("a", "b", "c")], r"facts\[0\] must be a statement.*got \('a', 'b', 'c'\)"),
        ([("a", 5)], r"facts\[0\].answer must be a non-empty string, got 5"),
        ([("", "b")], r"facts\[0\].prompt must be a non-empty string, got ''"),
        ([("a", float("nan"))], r"facts\[0\] must have a statement, or a prompt and an answer"),
        ([("a", None)], r"facts\[0\] must have a statement, or a prompt and an answer"),
        ([{"prompt": "a"}], r"facts\[0\] must have a statement, or a prompt and an answer"),
        ([{"statement": "a", "answer": "b"}], r"facts\[0\] must have a statement, or a prompt and an answer"),
        ([{}], r"facts\[0\] must have a statement"),
        ([{"statement": 3}], r"facts\[0\].statement must be a non-empty string, got 3"),
        ([{"statement": "a", "source": "b"}], r"facts\[0\] may have the keys .*, got 'source'"),
        ([{"statement": "a", "metadata": "b"}], r"facts\[0\].metadata must be a dict"),
        ([{"statement": "a", "metadata": {"x": object()}}], r"facts\[0\].metadata must be what JSON can hold"),
        ([{"statement": "a", "metadata": {"x": float("nan")}}], r"facts\[0\].metadata must be what JSON can hold"),
        ([{"statement": "a", "metadata": {1: "x"}}], r"facts\[0\].metadata must be a dict of what JSON can hold"),
        ([{"statement": "a", "metadata": {"x": "\ud800"}}], r"facts\[0\].metadata must be what JSON can hold"),
        (
            [{"statement": "a", "metadata": {"x": DEEP}}],
            r"facts\[0\].metadata must be what JSON can hold, got a dict that",
        ),
        ([10**5000], r"facts\[0\] must be a statement, .* got a int that cannot be shown"),
        (["half a pair \ud800"], r"facts\[0\].statement must be valid Unicode"),
    ],
)
def test_bad_facts_are_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        parse_facts(facts)
