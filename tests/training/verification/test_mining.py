from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe_hf.modeling.retriever import Retriever
from recipe_hf.training.verification.mining import mine
from recipe_hf.training.verification.rows import Chat, VerificationData
from recipe_hf.training.verification.written import Statement
from tests.tiny_recipe import tiny_recipe


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return tiny_recipe().retriever


def statement(text: str, *asks: str, source: str = "a", part: str = "training") -> Statement:
    return Statement(source, text, asks, (), part)


def test_asks_become_misses_of_other_statements_of_their_source(retriever: Retriever, tmp_path: Path):
    rows = [
        statement("Ann lives in Oslo", "Where is Ann?"),
        statement("Zork was written by Infocom", "Who wrote Zork?"),
        statement("Snow is white", "How is snow?", source="b"),
    ]
    mined = mine(VerificationData(rows, []), retriever, tmp_path, 0)
    assert mined.misses == [["Who wrote Zork?"], ["Where is Ann?"], []]


def test_statements_that_say_the_same_get_no_misses_of_one_another(retriever: Retriever, tmp_path: Path):
    rows = [
        statement("The river through Gotham is the Sprang", "Which river?"),
        statement("The river through Gotham is the Sprang now", "What flows there?"),
        statement("Water boils at a hundred degrees", "When does it boil?"),
    ]
    misses = mine(VerificationData(rows, []), retriever, tmp_path, 0).misses
    assert misses[:2] == [["When does it boil?"]] * 2 and sorted(misses[2]) == ["What flows there?", "Which river?"]


def test_what_asks_for_both_statements_is_no_miss(retriever: Retriever, tmp_path: Path):
    rows = [statement("Ann lives in Oslo", "Where?", "Who?"), statement("Snow is white", "Where?", "How?")]
    assert mine(VerificationData(rows, []), retriever, tmp_path, 0).misses == [["How?"], ["Who?"]]


def test_what_is_for_development_is_not_trained_on(retriever: Retriever, tmp_path: Path):
    rows = [
        statement("Ann lives in Oslo", "Where is Ann?"),
        statement("Zork was written by Infocom", "Who wrote Zork?", part="development"),
    ]
    chat = [Chat("c", "play a song", "training"), Chat("c", "stop it", "development")]
    mined = mine(VerificationData(rows, chat), retriever, tmp_path, 0)
    assert mined.misses == [[], ["Where is Ann?"]]
    assert mined.near_chat == [[0], [1]]


def test_misses_are_kept_for_the_same_data_and_weights(retriever: Retriever, tmp_path: Path):
    data = VerificationData([statement("Ann lives in Oslo", "Where?"), statement("Snow is white", "How?")], [])
    mine(data, retriever, tmp_path, 0)
    (file,) = tmp_path.iterdir()
    kept = {"misses": [["kept"], []], "near_chat": []}
    file.write_text(json.dumps(kept))
    assert vars(mine(data, retriever, tmp_path, 0)) == kept
    for other in (data._replace(chat=[Chat("c", "hi", "training")]), data):
        assert vars(mine(other, retriever, tmp_path, 1)) != kept
    assert len(list(tmp_path.iterdir())) == 3
