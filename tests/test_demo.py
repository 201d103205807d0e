from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from recipe_hf import demo
from tests.tiny_recipe import FACTS, UNRELATED, tiny_recipe, verified_recipe


@pytest.fixture
def model():
    return tiny_recipe()


@pytest.fixture(scope="module")
def printed() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "FACTS", [demo.DemoFact(prompt, answer, prompt) for prompt, answer in FACTS])
        patch.setattr(demo, "UNRELATED", UNRELATED)
        patch.setattr(demo, "NEAR", UNRELATED[:2])
        console = Console(file=StringIO(), width=demo.PLAIN_WIDTH, highlight=False)
        demo.run_with(tiny_recipe(), console)
    return console.file.getvalue()


def test_unrelated_prompts_give_the_base_models_tokens(printed):
    assert f"unrelated prompts: {len(UNRELATED)} of {len(UNRELATED)} get the base model's tokens" in printed
    assert "CHANGED" not in printed


def test_removal_gives_the_base_models_tokens(model):
    console = Console(file=StringIO(), width=demo.PLAIN_WIDTH)
    demo.show_removal(model, console, *model.add_knowledge(FACTS[:1]))
    _, before, after = console.file.getvalue().strip().splitlines()
    assert after.endswith("(the base model's tokens again)")
    assert before.split(":", 1)[1].strip() not in after
    assert len(model.knowledge) == 0


def test_every_prompt_shows_the_fact_it_used(printed):
    ids = re.findall(r"fact (\d): \d+%", printed)
    assert ids == [str(id_) for id_ in range(len(FACTS))] * 2


def test_output_fits_a_plain_terminal(printed):
    assert max(map(cell_len, printed.splitlines())) <= demo.PLAIN_WIDTH


def test_times_are_given_with_the_ratio_to_the_base(printed):
    assert "one fact added: " in printed and printed.count("(ratio ") == 2


def test_changed_answer_to_an_unrelated_prompt_is_not_hidden(model, monkeypatch):
    monkeypatch.setattr(demo, "FACTS", [demo.DemoFact(prompt, answer, prompt) for prompt, answer in FACTS])
    monkeypatch.setattr(demo, "UNRELATED", [FACTS[0][0], *UNRELATED])
    monkeypatch.setattr(demo, "NEAR", UNRELATED[:1])
    console = Console(file=StringIO(), width=demo.PLAIN_WIDTH)
    model.add_knowledge(FACTS)
    demo.show_answers(model, console)
    assert "CHANGED" in console.file.getvalue()
    assert f"unrelated prompts: {len(UNRELATED)} of {len(UNRELATED) + 1} get the" in console.file.getvalue()


def test_counts_without_the_verifier_stand_beside(model, monkeypatch):
    monkeypatch.setattr(demo, "FACTS", [demo.DemoFact(prompt, answer, prompt) for prompt, answer in FACTS])
    monkeypatch.setattr(demo, "UNRELATED", UNRELATED)
    monkeypatch.setattr(demo, "NEAR", [FACTS[0][0]])
    console = Console(file=StringIO(), width=demo.PLAIN_WIDTH)
    edited = verified_recipe(offset=-9.0)
    before = [fact.statement for fact in edited.knowledge]
    demo.show_parts(edited, console)
    lines = [line for line in console.file.getvalue().splitlines() if "told as" in line]
    assert len(lines) == 4
    assert [" 1 of 1" in line for line in lines] == [True, False] * 2
    assert edited.verifier is not None and [fact.statement for fact in edited.knowledge] == before


def test_facts_are_all_different():
    assert len({fact.prompt for fact in demo.FACTS} | {fact.rephrasing for fact in demo.FACTS}) == 2 * len(demo.FACTS)
    assert all(fact.answer not in fact.prompt for fact in demo.FACTS)
