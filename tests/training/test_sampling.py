from __future__ import annotations

from dataclasses import replace

import pytest

from recipe_hf.datasets import EditExample
from recipe_hf.training.config import SamplingConfig
from recipe_hf.training.sampling import FactSampler
from tests.tiny_training import EXAMPLES

ANSWERS = {e.answer for e in EXAMPLES} | {e.locality_answer for e in EXAMPLES}
SUBJECTS = {e.subject for e in EXAMPLES}


def sampler(resampling: float = 0.7, subjects: float = 0.3, seed: int = 0) -> FactSampler:
    return FactSampler(EXAMPLES, SamplingConfig(answer_resampling=resampling, subject_share=subjects), seed)


def many(sampler: FactSampler, variants: int | None = None, steps: int = 200):
    return [fact for step in range(steps) for fact in sampler.draw(step, 10, variants)]


@pytest.mark.parametrize("variants", [None, 3])
def test_draws_follow_from_seed_and_step_alone(variants: int | None):
    used = sampler()
    drawn = [used.draw(step, 8, variants) for step in range(6)]
    assert [sampler().draw(step, 8, variants) for step in reversed(range(6))] == drawn[::-1]
    assert len({tuple(fact.number for fact in facts) for facts in drawn}) == 6
    assert sampler(seed=1).draw(0, 8, variants) != drawn[0]


def test_facts_of_a_step_differ_and_are_numbered():
    facts = sampler().draw(3, len(EXAMPLES))
    assert sorted(fact.number for fact in facts) == list(range(len(EXAMPLES)))
    assert all(fact.example is EXAMPLES[fact.number] for fact in facts)


def test_without_resampling_answers_are_the_facts_own():
    assert all(fact.answer == fact.example.answer for fact in many(sampler(resampling=0.0)))


def test_share_of_resampled_answers_and_of_subjects():
    facts = many(sampler(resampling=0.6, subjects=0.25))
    from_subjects = sum(fact.answer in SUBJECTS for fact in facts) / len(facts)
    assert from_subjects == pytest.approx(0.6 * 0.25, abs=0.03)
    # A tenth of the answers drawn from the data set happen to be the fact's own.
    changed = sum(fact.answer != fact.example.answer for fact in facts) / len(facts)
    assert changed == pytest.approx(0.6 * (0.25 + 0.75 * 0.9), abs=0.03)


def test_all_drawn_answers_are_announced():
    announced = set(sampler().answers)
    assert announced == ANSWERS | SUBJECTS
    assert {fact.answer for fact in many(sampler(resampling=1.0, subjects=0.5))} == announced


def test_answer_variants_bound_the_answers_of_a_fact():
    def distinct(variants: int | None) -> list[int]:
        by_fact: dict[int, set[str]] = {}
        for fact in many(sampler(resampling=1.0, subjects=0.5), variants):
            by_fact.setdefault(fact.number, set()).add(fact.answer)
        return [len(answers) for answers in by_fact.values()]

    bounded = distinct(3)
    assert max(bounded) == 3 and min(bounded) >= 1 and len(bounded) == len(EXAMPLES)
    assert min(distinct(None)) > 10


def test_variants_differ_between_facts():
    answers = {fact.number: fact.answer for fact in many(sampler(resampling=1.0, subjects=1.0), 1)}
    assert len(set(answers.values())) > len(EXAMPLES) / 3


def test_answers_of_the_same_template_are_those_of_facts_whose_prompt_differs_in_the_subject_only():
    examples = [
        EditExample(f"The {relation} of S{i} is", f"{relation}-{i}", f"S{i}", ("r",), (("l", "a"),))
        for relation in ("capital", "language")
        for i in range(5)
    ]
    chosen = FactSampler(
        examples, SamplingConfig(answer_resampling=1.0, subject_share=0.0, same_template_share=1.0), 0
    )
    drawn = [fact for step in range(20) for fact in chosen.draw(step, 10)]
    assert all(fact.answer.split("-")[0] in fact.example.prompt for fact in drawn)
    assert len({fact.answer for fact in drawn}) == len(examples)


def test_facts_are_drawn_by_their_probabilities():
    probabilities = [0.6, *[0.4 / (len(EXAMPLES) - 2)] * (len(EXAMPLES) - 2), 0.0]
    weighted = FactSampler(EXAMPLES, SamplingConfig(), 0, probabilities=probabilities)
    drawn = [fact.number for step in range(1000) for fact in weighted.draw(step, 1)]
    assert drawn.count(0) / 1000 == pytest.approx(0.6, abs=0.05) and len(EXAMPLES) - 1 not in drawn


def test_unknown_subjects_are_no_answers():
    examples = [EditExample(f"Question {i}?", f"A{i}", unrelated=(("l", "a"),)) for i in range(4)]
    chosen = FactSampler(
        examples, SamplingConfig(answer_resampling=1.0, subject_share=0.5, same_template_share=0.5), 0
    )
    drawn = [(fact.number, fact.answer) for step in range(50) for fact in chosen.draw(step, 4)]
    assert {answer for _, answer in drawn} == set(chosen.answers) == {"A0", "A1", "A2", "A3", "a"}
    # Nothing tells of other facts of the template, so its only answers are the facts' own.
    assert sum(answer == f"A{number}" for number, answer in drawn) > len(drawn) / 4


def test_hard_negatives_share_the_template_of_another_fact_of_the_step():
    examples = [
        replace(e, prompt=f"{e.subject} {verb}") for e in EXAMPLES for verb in ("lives in", "works in", "left")
    ]
    sampler = FactSampler(examples, SamplingConfig(hard_negative_share=0.5), 0)
    shared = 0
    for step in range(50):
        facts = sampler.draw(step, 12)
        assert len({fact.number for fact in facts}) == 12
        drawn = [fact.example.prompt.removeprefix(fact.example.subject) for fact in facts]
        shared += sum(verb == anchor for verb, anchor in zip(drawn[6:], drawn[:6], strict=True))
    assert shared == 300


def test_facts_without_a_like_are_drawn_at_random_instead():
    examples = [replace(e, prompt=f"{e.subject} is number {n} in") for n, e in enumerate(EXAMPLES)]
    facts = FactSampler(examples, SamplingConfig(hard_negative_share=0.5), 0).draw(0, 12)
    assert len({fact.number for fact in facts}) == 12


def test_a_step_asks_one_of_the_rephrasings_and_one_of_the_unrelated_questions():
    example = EditExample("S is", "a", "S", ("r0", "r1", "r2"), (("u0", "x"), ("u1", "y")))
    drawn = [fact.example for fact in many(FactSampler([example] * 10, SamplingConfig(), 0), steps=10)]
    assert {e.rephrasings for e in drawn} == {("r0",), ("r1",), ("r2",)}
    assert {e.unrelated for e in drawn} == {(("u0", "x"),), (("u1", "y"),)}
    assert {replace(e, rephrasings=(), unrelated=()) for e in drawn} == {
        replace(example, rephrasings=(), unrelated=())
    }
    none = replace(example, rephrasings=())
    assert {fact.example.rephrasings for fact in many(FactSampler([none] * 10, SamplingConfig(), 0), steps=1)} == {()}


def test_distractors_are_one_to_four_statements():
    facts = many(FactSampler(EXAMPLES, SamplingConfig(distractor_share=0.4), 0))
    texts = [fact.distractor for fact in facts if fact.distractor]
    assert len(texts) / len(facts) == pytest.approx(0.4, abs=0.03)
    statements = {f"{e.prompt} {e.answer}" for e in EXAMPLES}
    assert {len(text.split(". ")) - 1 for text in texts} == {1, 2, 3, 4}
    assert {part for text in texts for part in text.split(". ")[:-1]} == statements
    assert not any(fact.distractor for fact in many(sampler(), steps=5))


def test_a_share_of_facts_is_asked_in_chats():
    chatty = FactSampler(EXAMPLES, SamplingConfig(chat_share=0.3), 0)
    facts = many(chatty)
    assert sum(fact.in_chat for fact in facts) / len(facts) == pytest.approx(0.3, abs=0.03)
    assert not any(fact.in_chat for fact in many(sampler(), steps=5))


def test_shares_of_other_words_other_properties_and_unrelated_texts():
    examples = [
        EditExample(prompt, answer, subject, (f"Of {subject},",), ((f"S{n} is", "x"),), ground_truth=truth)
        for n, subject in enumerate(f"Person {letter}" for letter in "ABCDEFGH")
        for prompt, answer, truth in (
            (f"The mother tongue of {subject} is", "French", "English"),
            (f"{subject} died in", "Rome", "Paris"),
        )
    ]
    chosen = FactSampler(
        examples,
        SamplingConfig(
            rewording_share=0.3, prompt_rewording_share=0.2, other_property_share=0.4, unrelated_text_share=0.2
        ),
        0,
        unrelated_texts=["How to bake?"],
    )
    facts = many(chosen)
    for fact in facts:
        assert fact.example.rephrasings != fact.example.unrelated
        assert fact.example.unrelated_is_made_up == (not fact.example.locality_prompt.startswith("S"))
    unrelated = [fact.example.locality_prompt for fact in facts]
    reworded = [fact for fact in facts if not fact.example.rephrase_prompt.startswith("Of ")]
    assert len(reworded) / len(facts) == pytest.approx(0.3, abs=0.03)
    asked = {fact.example.rephrase_prompt for fact in reworded if fact.number == 0}
    assert "What is Person A's first language?" in asked and "Person A's first language is" in asked
    # One wording in eighteen or more is the prompt itself.
    told = [fact for fact in facts if fact.example.prompt != examples[fact.number].prompt]
    assert len(told) / len(facts) == pytest.approx(0.19, abs=0.03)
    assert all(examples[fact.number].subject in fact.example.prompt for fact in told)
    assert unrelated.count("How to bake?") / len(facts) == pytest.approx(0.2, abs=0.03)
    others = [fact for fact in facts if fact.example.locality_prompt in {e.prompt for e in examples}]
    # Half of the attempts draw the fact's own property, and eight attempts rarely all fail.
    assert len(others) / len(facts) == pytest.approx(0.4, abs=0.03)
    assert all(f.example.locality_prompt == examples[f.number ^ 1].prompt for f in others)


def test_facts_with_the_same_subject_and_the_same_answer_so_far_are_the_same():
    examples = [
        EditExample("X speaks", "French", "X", ground_truth="Greek", unrelated=(("u", "a"),)),
        EditExample("X's mother tongue is", "Welsh", "X", ground_truth="Greek", unrelated=(("X speaks", "Greek"),)),
        EditExample("X died in", "Rome", "X", ground_truth="Oslo", unrelated=(("Y speaks", "Greek"),)),
        EditExample("X is", "old", "X", unrelated=(("u", "a"),)),
        EditExample("X was", "old", "X", unrelated=(("u", ""),)),
    ]
    chosen = FactSampler(examples, SamplingConfig(), 0)
    assert chosen.same_as == [0, 0, 2, 3, 4]
    asked = {fact.number: chosen.asked_for(fact) for fact in chosen.draw(0, 5)}
    assert asked == {0: [], 1: [0, 1], 2: [], 3: [], 4: []}


def test_an_unrelated_question_that_was_made_up_stays_marked():
    example = EditExample("What?", "a", rephrasings=("r", "s"), unrelated=(("u", "x"),), unrelated_is_made_up=True)
    drawn = many(FactSampler([example] * 10, SamplingConfig(other_property_share=1.0), 0), steps=3)
    assert all(fact.example.unrelated_is_made_up for fact in drawn)
