"""New facts that take the place of older ones, on tiny models whose verifier affirms all pairs, or none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from recipe_hf import RecipeForCausalLM
from tests.tiny_recipe import FACTS, edited_recipe, verified_recipe

NEW = "The river through Gotham is the Dart."


def superseding(threshold: float) -> RecipeForCausalLM:
    model = verified_recipe()
    model.config.supersede_threshold = threshold
    return model


def test_what_is_superseded_goes_to_the_history():
    model = superseding(-1e3)
    (new,) = model.add_knowledge([NEW], on_conflict="supersede")
    assert [fact.statement for fact in model.knowledge] == [NEW]
    assert {(past.id, past.reason, past.replaced_by) for past in model.knowledge.history()} == {
        (old, "replaced", new) for old in range(len(FACTS))
    }
    model.knowledge.restore(0)
    assert {fact.statement for fact in model.knowledge} == {NEW, "The CEO of Acme is Ann Lee"}


def test_what_is_not_stays():
    model = superseding(1e3)
    model.add_knowledge([NEW], on_conflict="supersede")
    assert len(model.knowledge) == 1 + len(FACTS) and not model.knowledge.history()


def test_facts_given_together_count_as_given_one_after_the_other():
    model = superseding(-1e3)
    model.remove_knowledge(range(len(FACTS)))
    first, second, third = model.add_knowledge([NEW, ("Zork was", "a game"), "Dogs bark."], on_conflict="supersede")
    assert [fact.id for fact in model.knowledge] == [third]
    assert [past.replaced_by for past in model.knowledge.history() if past.id in (first, second)] == [second, third]


def test_a_fact_whose_time_has_not_come_takes_no_place():
    model = superseding(-1e3)
    model.add_knowledge([{"statement": NEW, "valid_from": "2999-01-01"}], on_conflict="supersede")
    assert len(model.knowledge) == 1 + len(FACTS)


def test_the_place_of_a_fact_whose_time_has_not_come_is_not_taken():
    model = superseding(-1e3)
    later = {"statement": NEW, "valid_from": "2999-01-01"}
    model.add_knowledge([later, "Dogs bark."], on_conflict="supersede")
    assert [fact.statement for fact in model.knowledge] == [NEW, "Dogs bark."]


def test_nothing_is_kept_to_go_back_through():
    model = superseding(1e3)
    grown = {True: [], False: []}
    model.retriever.mlp_q.register_forward_hook(lambda *of: grown[of[-1].requires_grad].append(1))
    model.add_knowledge([NEW], on_conflict="supersede")
    assert grown[False] and not grown[True]


def test_report_keeps_both_and_names_them(caplog: pytest.LogCaptureFixture):
    model = superseding(-1e3)
    with caplog.at_level(logging.WARNING, "recipe_hf"):
        model.add_knowledge([NEW], on_conflict="report")
    assert len(model.knowledge) == 1 + len(FACTS)
    assert f"{NEW!r} answers what 'The CEO of Acme is Ann Lee' does: both are kept." in caplog.text


@pytest.mark.parametrize("on_conflict", ["supersede", "report"])
def test_without_a_verifier_that_tells_it_is_refused(on_conflict: str):
    for model in (edited_recipe(), verified_recipe()):
        with pytest.raises(ValueError, match=f"on_conflict='{on_conflict}' needs a checkpoint with a verifier"):
            model.add_knowledge([NEW], on_conflict=on_conflict)
        assert len(model.knowledge) == len(FACTS)


def test_of_the_same_prompt_it_is_a_replacement_still(tmp_path: Path):
    model = superseding(1e3)
    model.knowledge.copy_to(tmp_path / "facts.db").close()
    model.open_knowledge(tmp_path / "facts.db")
    model.add_knowledge([("The CEO of Acme is", "Cy Dahl")], on_conflict="supersede")
    assert [past.statement for past in model.knowledge.history()] == ["The CEO of Acme is Ann Lee"]
