from __future__ import annotations

from dataclasses import replace

import torch

from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.asking.probes import make_probes, template
from recipe_hf.evaluation.asking.questions import Question
from recipe_hf.modeling.queries import read_queries
from tests.tiny_recipe import base_tokenizer

HOMES = [
    EditExample(
        f"The home of {name} is", home, name, (), ((f"{name}'s sister lives in", "Bern"),), ground_truth="Paris"
    )
    for name, home in [("Ann", "Oslo"), ("Bo", "Rome"), ("Cy", "Lima")]
]
JOBS = [
    EditExample(f"{name} works as a", job, name, (), ((f"{name}'s father was a", "monk"),), ground_truth="cook")
    for name, job in [("Dee", "pilot"), ("Eli", "nurse")]
]
TOWNS = [EditExample("Who lives in Oslo?", "Ann", "Oslo", (), (("Who lives in Rome?", "Bo"),))]
ALL = [*HOMES, *JOBS, *TOWNS]
PROBES = make_probes(ALL, base_tokenizer())


def ask(kind: str, examples: list[EditExample] = ALL) -> dict[int, Question]:
    found = {q.about: q for q in PROBES[kind]([(e, i) for i, e in enumerate(examples)])}
    assert {q.kind for q in found.values()} <= {kind}
    return found


def test_distracted_puts_another_facts_unrelated_question_first():
    for position, question in ask("distracted").items():
        example = ALL[position]
        first, _, last = question.text.rpartition(". ")
        assert last == example.prompt and question.answers == (example.answer,) and question.concerns
        assert first in [f"{e.locality_prompt} {e.locality_answer}" for e in ALL if e is not example]


def test_distracting_text_is_never_made_up():
    made_up = [replace(e, unrelated_is_made_up=True) for e in ALL]
    assert list(make_probes(made_up, base_tokenizer())["distracted"]([(e, 0) for e in made_up])) == []


def test_negated_puts_not_after_the_last_verb_behind_the_subject():
    texts = {position: q.text for position, q in ask("negated").items()}
    assert texts == {i: f"The home of {e.subject} is not" for i, e in enumerate(HOMES)}
    asked = [
        EditExample("The Who Is is a band that was formed in", "Oslo", "The Who Is"),
        EditExample("What is the home of Ann? It is", "Oslo", "Ann"),
        EditExample("What is the home of Ann?", "Oslo", "Ann"),
    ]
    found = list(PROBES["negated"]([(e, i) for i, e in enumerate(asked)]))
    assert [q.text for q in found] == [
        "The Who Is is a band that was not formed in",
        "What is the home of Ann? It is not",
    ]
    assert not any(q.concerns for q in found)


def test_same_subject_is_asked_for_another_relation():
    found = ask("same_subject")
    assert found and not any(q.concerns for q in found.values())
    for position, question in found.items():
        example = ALL[position]
        assert question.text in {template(e).replace("{}", example.subject) for e in ALL} - {e.prompt for e in ALL}
        assert question.text != example.prompt


def test_same_relation_is_asked_of_another_subject():
    found = ask("same_relation")
    assert found and not any(q.concerns for q in found.values())
    for position, question in found.items():
        example = ALL[position]
        others = {template(example).replace("{}", e.subject) for e in ALL if e.subject != example.subject}
        assert question.text in others - {e.prompt for e in ALL}
        assert question.answers == (example.ground_truth or example.answer,)


def test_relations_that_share_an_answer_may_be_paraphrases_and_are_not_exchanged():
    shared = [replace(e, ground_truth="Oslo") for e in (*HOMES, *JOBS)]
    probes = make_probes(shared, base_tokenizer())
    for kind in ("same_subject", "same_relation"):
        assert list(probes[kind]([(e, i) for i, e in enumerate(shared)])) == []


def test_what_is_asked_about_a_fact_does_not_depend_on_the_others_asked():
    for kind in PROBES:
        everything = ask(kind)
        for position, question in everything.items():
            (alone,) = PROBES[kind]([(ALL[position], position)])
            assert alone == question


def test_chat_is_looked_up_by_the_message_that_the_model_would_read():
    tokenizer = base_tokenizer()
    for position, question in ask("chat").items():
        assert question.query == ALL[position].prompt
        ids = torch.tensor([tokenizer(question.text)["input_ids"]])
        assert read_queries(tokenizer, ids) == [question.query]
        assert question.text.endswith("<|im_start|>assistant\n")


def test_without_a_chat_template_there_are_no_chats():
    assert "chat" not in make_probes(ALL, base_tokenizer(chat_template=None))


def test_facts_without_a_subject_are_left_out():
    nameless = [replace(e, subject="") for e in ALL]
    probes = make_probes(nameless, base_tokenizer())
    for kind in ("negated", "same_subject", "same_relation"):
        assert list(probes[kind]([(e, i) for i, e in enumerate(nameless)])) == []
