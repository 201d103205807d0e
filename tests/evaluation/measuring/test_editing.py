"""The accuracies of `evaluate_editing` against a slow computation: row by row, without padding or batches."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recipe_hf.datasets import EditExample
from recipe_hf.evaluation.asking import saying
from recipe_hf.evaluation.asking.answers import Answers
from recipe_hf.evaluation.asking.protocols import opens_with
from recipe_hf.evaluation.asking.questions import KINDS
from recipe_hf.evaluation.asking.saying import EXTRA_TOKENS
from recipe_hf.evaluation.asking.trials import Trial
from recipe_hf.evaluation.editors.retrieval import recipe
from recipe_hf.evaluation.measuring.editing import evaluate_editing, run_trial
from recipe_hf.evaluation.measuring.metrics import EditingReport
from recipe_hf.evaluation.measuring.outcomes import Outcome
from recipe_hf.knowledge import KnowledgeBase
from tests.tiny_evaluation import EXAMPLES, REPHRASINGS, UNRELATED_PAIRS, model, predictions, share
from tests.tiny_recipe import PROMPTS, UNRELATED, tiny_recipe, verified_recipe


@torch.no_grad()
def slow_outcome(kind: str, query: str, answer: str, examples: list[EditExample]) -> tuple[int | None, float]:
    """Which example's fact is used, and the accuracy, straight from eq. 6 to 9."""
    retriever = model().retriever
    sentinel = retriever.encode_sentinel()
    (asked,) = retriever.encode_queries([query])
    keys = [retriever.encode_statements([f"{e.prompt} {e.answer}"])[0] for e in examples]
    best = max(range(len(keys)), key=lambda i: float(asked @ keys[i]))
    used = best if asked @ keys[best] > asked @ sentinel else None
    found, right = predictions(query, answer, None if used is None else model().prompt_encoder(keys[used]))
    return used, share(found, predictions(query, answer, None)[0] if kind == "locality" else right)


@functools.cache
def report(batch_size: int = 32) -> EditingReport:
    return evaluate_editing(model(), EXAMPLES, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_outcomes_equal_a_slow_computation(batch_size: int):
    outcomes = report(batch_size).outcomes
    assert [o.kind for o in outcomes] == [kind for kind in KINDS for _ in EXAMPLES]
    # Facts are drawn in an order of their own.
    chosen = [next(e for e in EXAMPLES if e.prompt == o.query) for o in outcomes[:4]]
    for outcome, example in zip(outcomes, chosen * 3, strict=True):
        query, answer = {
            "reliability": (example.prompt, example.answer),
            "generality": (example.rephrase_prompt, example.answer),
            "locality": (example.locality_prompt, example.locality_answer),
        }[outcome.kind]
        assert (outcome.query, outcome.answer) == (query, answer)
        used, accuracy = slow_outcome(outcome.kind, query, answer, chosen)
        # Ids count from the first fact added.
        assert outcome.retrieved_id == (None if used is None else report().outcomes[used].retrieved_id)
        right = None if outcome.kind == "locality" else example
        assert outcome.is_right_fact == ((None if used is None else chosen[used]) == right)
        assert (outcome.score > outcome.threshold) == (used is not None)
        assert outcome.accuracy == pytest.approx(accuracy)
        assert outcome.names_subject == (None if used is None else chosen[used].subject in query)


def test_examples_cover_what_can_happen():
    by_kind = {kind: [o for o in report().outcomes if o.kind == kind] for kind in KINDS}
    assert all(o.is_right_fact for o in by_kind["reliability"])
    assert {(o.retrieved_id is None, o.is_right_fact) for o in by_kind["generality"]} == {
        (False, True),
        (False, False),
        (True, False),
    }
    assert {o.retrieved_id is None for o in by_kind["locality"]} == {True, False}
    assert any(0 < o.accuracy < 1 for o in by_kind["reliability"])
    assert any(o.accuracy < 1 for o in by_kind["locality"])


def test_retriever_sees_the_prompt_only(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    look_up = model().retrieve
    monkeypatch.setattr(model(), "retrieve", lambda texts: seen.extend(texts) or look_up(texts))
    evaluate_editing(model(), EXAMPLES)
    assert set(seen) == {*PROMPTS, *REPHRASINGS, *(prompt for prompt, _ in UNRELATED_PAIRS)}


def test_metrics_are_averages_in_percent():
    metrics = report().metrics
    for kind in KINDS:
        values = [o.accuracy for o in report().outcomes if o.kind == kind]
        assert metrics[kind] == pytest.approx(100 * sum(values) / 4)
    assert (metrics["reliability_right_fact"], metrics["reliability_fired"]) == (100, 100)
    assert (metrics["generality_right_fact"], metrics["generality_fired"], metrics["locality_fired"]) == (50, 75, 50)
    right = [o.accuracy for o in report().outcomes if o.kind == "generality" and o.is_right_fact]
    assert metrics["generality_given_right_fact"] == pytest.approx(100 * sum(right) / 2)


def test_facts_used_for_unrelated_questions_that_name_their_subject():
    assert report().metrics["locality_fired_on_subject"] == 50
    other = [replace(e, subject="Nobody" if e.prompt == PROMPTS[0] else e.subject) for e in EXAMPLES]
    metrics = evaluate_editing(model(), other).metrics
    assert (metrics["locality_fired"], metrics["locality_fired_on_subject"]) == (50, 25)
    nobodys = [replace(e, subject="") for e in EXAMPLES]
    assert "locality_fired_on_subject" not in evaluate_editing(model(), nobodys).metrics


def test_a_row_told_twice_is_one_fact():
    other = replace(EXAMPLES[0], answer=EXAMPLES[1].answer)
    report = evaluate_editing(model(), [EXAMPLES[0], other, EXAMPLES[0], EXAMPLES[2]])
    asked = [o for o in report.outcomes if o.kind == "reliability" and o.query == EXAMPLES[0].prompt]
    assert [(o.answer == EXAMPLES[0].answer, o.is_right_fact) for o in asked].count((True, True)) in (0, 2)
    assert len({o.fact_id for o in asked if o.answer == EXAMPLES[0].answer}) == 1


def test_one_edit_means_each_fact_alone():
    found = evaluate_editing(model(), EXAMPLES, num_edits=1)
    assert found.num_edits == 1 and len(found.outcomes) == 12
    for example in EXAMPLES:
        (fact_id,) = [o.fact_id for o in found.outcomes if o.query == example.prompt and o.kind == "reliability"]
        about = {(o.kind, o.query): o for o in found.outcomes if o.fact_id == fact_id}
        for alone in evaluate_editing(model(), [example], beside=()).outcomes:
            outcome = about[alone.kind, alone.query]
            assert (outcome.retrieved_id is None) == (alone.retrieved_id is None)
            assert (outcome.score, outcome.threshold) == pytest.approx((alone.score, alone.threshold), rel=1e-4)
            assert (outcome.accuracy, outcome.output) == (alone.accuracy, alone.output)
    # Held together, the rephrasing of the second fact finds that of the fourth.
    assert found.metrics["generality_nearest"] == 100 > report().metrics["generality_nearest"]


@torch.no_grad()
def greedy(prompt: str, prefix: Tensor | None, length: int) -> list[int]:
    """A plain greedy loop without padding, cache or batch."""
    lm = model().lm
    embeds = lm.get_input_embeddings()(torch.tensor([model().tokenizer(prompt)["input_ids"]]))
    embeds = embeds if prefix is None else torch.cat([prefix[None], embeds], 1)
    said: list[int] = []
    while len(said) < length:
        said.append(int(lm(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
        embeds = torch.cat([embeds, lm.get_input_embeddings()(torch.tensor([[said[-1]]]))], 1)
    return said


@pytest.mark.parametrize("batch_size", [1, 5])
def test_generation_equals_a_slow_loop(batch_size: int):
    outcomes = evaluate_editing(model(), EXAMPLES, batch_size=batch_size, protocol="generation").outcomes
    decode = model().tokenizer.decode
    chosen = [next(e for e in EXAMPLES if e.prompt == o.query) for o in outcomes[:4]]
    keys = {o.fact_id: f"{e.prompt} {e.answer}" for o, e in zip(outcomes[:4], chosen, strict=True)}
    for outcome in outcomes:
        length = len(outcome.answer) + 1 + EXTRA_TOKENS  # One token to a byte, and the space before the answer.
        prefix = None
        if outcome.retrieved_id is not None:
            with torch.no_grad():
                key = model().retriever.encode_statements([keys[outcome.retrieved_id]])
                prefix = model().prompt_encoder(key)[0]
        said, unedited = greedy(outcome.query, prefix, length), greedy(outcome.query, None, length)
        assert outcome.output == decode(said).strip()
        if outcome.kind == "locality":
            assert outcome.accuracy == float(said == unedited) and outcome.expected == decode(unedited).strip()
        else:
            assert outcome.accuracy == float(opens_with(decode(said), [outcome.answer]))
            assert outcome.expected == outcome.answer
    assert any(o.accuracy < 1 for o in outcomes if o.kind == "locality")
    assert any(o.output for o in outcomes)


def test_generation_takes_any_of_several_right_answers():
    (said,) = [o.output for o in evaluate_editing(model(), [EXAMPLES[0]], protocol="generation").outcomes[:1]]
    follows = {"Alias": ((EXAMPLES[0].prompt, ("z" * len(EXAMPLES[0].answer), said)),)}
    example = replace(EXAMPLES[0], portability=follows)
    outcomes = evaluate_editing(model(), [example], protocol="generation", portability=True).outcomes
    assert [o.accuracy for o in outcomes if o.kind == "portability"] == [1.0]


def test_under_the_protocol_of_the_paper_the_retriever_sees_the_answer_but_its_last_token(monkeypatch):
    seen: list[str] = []
    look_up = model().retrieve
    monkeypatch.setattr(model(), "retrieve", lambda texts: seen.extend(texts) or look_up(texts))
    evaluate_editing(model(), EXAMPLES[:1], protocol="paper")
    example = EXAMPLES[0]
    assert seen[:3] == [
        f"{example.prompt} {example.answer[:-1]}",
        f"{example.rephrase_prompt} {example.answer[:-1]}",
        f"{example.locality_prompt} {example.locality_answer[:-1]}",
    ]


def test_unknown_protocol():
    with pytest.raises(ValueError, match="protocol must be one of strict, paper, generation, got 'lenient'"):
        evaluate_editing(model(), EXAMPLES, protocol="lenient")


def test_all_unrelated_questions_are_asked_by_kind():
    unrelated = (*EXAMPLES[0].unrelated, (UNRELATED[3], "dogs"))
    example = replace(EXAMPLES[0], unrelated=unrelated, unrelated_kinds=("Relation_Specificity", "Forgetfulness"))
    found = evaluate_editing(model(), [example, EXAMPLES[1]], portability=True)
    asked = [(o.query, o.detail) for o in found.outcomes if o.kind == "locality"]
    assert sorted(asked) == sorted(
        [
            (unrelated[0][0], "Relation_Specificity"),
            (unrelated[1][0], "Forgetfulness"),
            (EXAMPLES[1].locality_prompt, ""),
        ]
    )
    (forgotten,) = [o.accuracy for o in found.outcomes if o.detail == "Forgetfulness"]
    assert found.metrics["locality/Forgetfulness"] == 100 * forgotten
    assert sum(o.kind == "locality" for o in evaluate_editing(model(), [example, EXAMPLES[1]]).outcomes) == 2


def share_equal_after_removal(num_edits: int) -> float | None:
    trial = Trial.draw(EXAMPLES, num_edits, ends_with_removal=True)
    (found,) = run_trial(recipe(model()), trial, ["strict"], Answers(3))
    return found.equal_after_removal


def test_after_removal_the_base_answers():
    assert share_equal_after_removal(4) == 1
    assert share_equal_after_removal(1) is None and report().equal_after_removal is None


def test_facts_that_stay_are_noticed_after_removal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(KnowledgeBase, "remove", lambda *_: None)
    assert share_equal_after_removal(4) == 0


def test_questions_that_the_data_lack_are_not_asked():
    bare = replace(EXAMPLES[0], rephrasings=(), unrelated_is_made_up=True)
    outcomes = evaluate_editing(model(), [bare, EXAMPLES[1]]).outcomes
    assert Counter(o.kind for o in outcomes) == {"reliability": 2, "generality": 1, "locality": 1}
    assert {o.query for o in outcomes} == {
        bare.prompt,
        EXAMPLES[1].prompt,
        EXAMPLES[1].rephrase_prompt,
        EXAMPLES[1].locality_prompt,
    }
    assert not {"generality", "locality"} & set(evaluate_editing(model(), [bare]).metrics)


def test_portability_asks_every_question_and_expects_its_first_answer():
    follows = {
        "Reasoning": ((PROMPTS[1], ("a b", "four")), (UNRELATED[0], ("four",))),
        "Alias": ((PROMPTS[0], ("c",)),),
    }
    examples = [replace(EXAMPLES[0], portability=follows), EXAMPLES[1]]
    report = evaluate_editing(model(), examples, portability=True)
    found = {o.query: o for o in report.outcomes if o.kind == "portability"}
    assert {query: o.answer for query, o in found.items()} == {
        PROMPTS[1]: "a b",
        UNRELATED[0]: "four",
        PROMPTS[0]: "c",
    }
    for outcome in found.values():
        used, accuracy = slow_outcome("portability", outcome.query, outcome.answer, examples)
        assert (outcome.retrieved_id is None) == (used is None) and outcome.is_right_fact == (used == 0)
        assert outcome.accuracy == pytest.approx(accuracy)
        assert outcome.base_accuracy == pytest.approx(share(*predictions(outcome.query, outcome.answer, None)))
    assert report.metrics["portability_base"] == pytest.approx(
        100 * sum(o.base_accuracy or 0 for o in found.values()) / 3
    )
    assert all(o.base_accuracy is None for o in report.outcomes if o.kind != "portability")
    assert report.metrics["portability"] == pytest.approx(100 * sum(o.accuracy for o in found.values()) / 3)
    assert "portability" not in evaluate_editing(model(), examples).metrics


def test_facts_told_as_statements_have_the_prompts_of_the_paper():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = tiny_recipe(num_answer_prompt_tokens=2)
    both.load_state_dict(model().state_dict(), strict=False)
    as_statements = evaluate_editing(both, EXAMPLES, as_statements=True)
    assert [o.accuracy for o in as_statements.outcomes] == pytest.approx([o.accuracy for o in report().outcomes])
    assert [o.is_right_fact for o in as_statements.outcomes] == [o.is_right_fact for o in report().outcomes]
    told = evaluate_editing(both, EXAMPLES).outcomes
    assert [o.accuracy for o in told] != pytest.approx([o.accuracy for o in report().outcomes])


def test_edits_and_questions_are_chosen_by_number_and_seed():
    def key(outcome: Outcome) -> tuple[str, str, int | None, float]:
        return outcome.kind, outcome.query, outcome.retrieved_id, outcome.accuracy

    def prompts(**kwargs: int) -> list[str]:
        return [o.query for o in evaluate_editing(model(), EXAMPLES, **kwargs).outcomes if o.kind == "reliability"]

    assert prompts(num_edits=2, seed=1) == prompts(num_edits=2, seed=1)
    assert len({tuple(prompts(num_edits=2, seed=seed)) for seed in range(5)}) > 1
    assert prompts(num_questions=2) == prompts()[:2]
    # All four facts compete, though two are asked about.
    few = evaluate_editing(model(), EXAMPLES, num_questions=2).outcomes
    assert [key(o) for o in few] == [key(o) for n, o in enumerate(report().outcomes) if n % 4 < 2]


def test_facts_beside_are_held_and_not_asked_about():
    found = evaluate_editing(model(), EXAMPLES[:2], beside=EXAMPLES[2:])
    assert found.num_edits == 4
    assert sorted(o.query for o in found.outcomes if o.kind == "reliability") == sorted(PROMPTS[:2])
    # The rephrasing and the unrelated question of EXAMPLES[2] are prompts of others; here, its own fact is held.
    asked = evaluate_editing(model(), [EXAMPLES[1], EXAMPLES[3]], beside=[EXAMPLES[2]])
    assert any(o.kind == "locality" and o.query == PROMPTS[2] and o.retrieved_id == 2 for o in asked.outcomes)


def test_own_knowledge_is_as_before():
    own = model().knowledge
    ids = model().add_knowledge(["Zork is a game.", "Gotham is a city."])
    before = list(own), model().retrieve(PROMPTS + UNRELATED)
    evaluate_editing(model(), EXAMPLES)
    assert model().knowledge is own
    assert (list(own), model().retrieve(PROMPTS + UNRELATED)) == before
    model().remove_knowledge(ids)


def test_own_knowledge_is_as_before_when_evaluation_fails(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    own, ids = model().knowledge, model().add_knowledge(["Zork is a game."])
    monkeypatch.setattr(saying, "answer_logits", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate_editing(model(), EXAMPLES)
    assert model().knowledge is own and [fact.id for fact in own] == ids
    model().remove_knowledge(ids)


@pytest.mark.parametrize("num_edits", [0, -1, 5])
def test_number_of_edits_out_of_range(num_edits: int):
    with pytest.raises(ValueError, match=f"num_edits must be between 1 and the 4 examples at hand, got {num_edits}"):
        evaluate_editing(model(), EXAMPLES, num_edits)


def test_no_questions():
    with pytest.raises(ValueError, match="num_questions must be at least 1, got 0"):
        evaluate_editing(model(), EXAMPLES, num_questions=0)


def test_model_without_tokenizer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model(), "tokenizer", None)
    with pytest.raises(RuntimeError, match="has no tokenizer"):
        evaluate_editing(model(), EXAMPLES)


@pytest.mark.parametrize(("offset", "fired"), [(9.0, 100), (-9.0, 0)])
@pytest.mark.parametrize("num_edits", [1, None])
def test_the_verifier_decides_for_facts_held_together_and_alone(num_edits, offset: float, fired: float):
    edited = verified_recipe(offset)
    trial = Trial.draw(EXAMPLES, num_edits, general={"chat": ["Good morning!"]})
    (found,) = run_trial(recipe(edited), trial, ["strict"], Answers())
    shares = [found.metrics[name] for name in ("reliability_fired", "locality_fired", "general_fired/chat")]
    assert shares == [fired] * 3


def test_facts_told_twice_are_each_right_alone():
    outcomes = evaluate_editing(model(), [EXAMPLES[0], replace(EXAMPLES[0])], num_edits=1).outcomes
    assert [o.is_right_fact for o in outcomes if o.kind == "reliability"] == [True, True]
