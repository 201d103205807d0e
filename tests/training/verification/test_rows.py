from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipe_hf.training.verification.config import SourceConfig
from recipe_hf.training.verification.rows import load_data
from recipe_hf.training.verification.written import load_families, load_statements, load_updates, part_of
from tests.tiny_verifier import CHAT, pair_rows, write_parts, write_rows

ROOT = Path(__file__).parents[3]
ROW: dict[str, Any] = {
    "statement": "The voting age in Ostrava Minor is 17.",
    "answer": "17",
    "asks": ["From what age may one vote?", "You may vote from", "how old to vote"],
    "misses": {
        "property": "Who may stand?",
        "name": "how old to vote in Ostrava Major",
        "topic": "Voting takes place",
    },
    "kind": "rule",
}


FAMILY = {
    "kind": "rule",
    "statements": [
        {
            "statement": "One may vote in Lund from 17.",
            "answer": "17",
            "asks": ["vote?", "May vote from", "old to vote"],
        },
        {
            "statement": "One may stand in Lund from 21.",
            "answer": "21",
            "asks": ["stand?", "may stand at", "to stand"],
        },
    ],
}


def folded(texts: Any) -> set[str]:
    return {text.strip().lower() for text in texts}


def test_every_statement_is_valid():
    statements = load_statements()
    assert len(statements) == 2800
    assert all(len(row.asks) == 3 and len(row.misses) >= 3 and row.answer in row.text for row in statements)
    assert len(folded(row.text for row in statements)) == 2800
    assert len(folded(ask for row in statements for ask in row.asks)) == 8400


def test_statements_meet_no_exam_file():
    files = sorted((ROOT / "benchmarks").glob("unseen_wordings*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    asked = folded(text for row in rows for text in (row["prompt"], *row["rephrasings"], *row["unrelated"]))
    said = folded(f"{row['prompt']} {row['answer']}" for row in rows)
    assert len(files) == 2 and len(asked) > 300
    statements = load_statements()
    assert not asked & folded(ask for row in statements for ask in row.asks)
    assert not said & folded(row.text.rstrip(".") for row in statements)


def test_what_one_of_a_family_answers_the_others_do_not(tmp_path: Path):
    write_rows(tmp_path / "some.jsonl", [FAMILY])
    vote, stand = load_families(tmp_path)
    assert (vote.text, vote.answer, vote.asks) == (
        "One may vote in Lund from 17.",
        "17",
        ("vote?", "May vote from", "old to vote"),
    )
    assert [text for text, _ in vote.misses] == list(stand.asks) and [text for text, _ in stand.misses] == list(
        vote.asks
    )
    assert vote.part == stand.part == part_of(vote.text)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (FAMILY["statements"][:1], "line 1: field 'statements' must be at least two, got"),
        ([FAMILY["statements"][0], {"statement": "a"}], "line 1, statements[1]: field 'answer' must be a non-empty"),
        ([FAMILY["statements"][0]] * 2, "line 1: 'One may vote in Lund from 17.' must be given once"),
    ],
)
def test_bad_family_is_named_by_file_and_line(tmp_path: Path, statements: Any, message: str):
    write_rows(tmp_path / "some.jsonl", [FAMILY | {"statements": statements}])
    with pytest.raises(ValueError) as caught:
        load_families(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'some.jsonl'}, {message}")


UPDATE = {
    "old": "Bo Roe runs Acme.",
    "retires": ["Ann Lee runs Acme.", "Acme is now run by Ann Lee."],
    "stays": {"property": "Ann Lee chairs Acme.", "name": "Ann Lee runs Acne.", "many": "Bo Roe runs Apex."},
    "kind": "role",
}


def test_updates_are_newer_statements_as_queries(tmp_path: Path):
    write_rows(tmp_path / "some.jsonl", [UPDATE])
    (tmp_path / "families").mkdir()
    write_rows(tmp_path / "families" / "some.jsonl", [FAMILY])
    ceo, vote = load_updates(tmp_path, tmp_path / "families")
    assert ceo.asks == ("→ Ann Lee runs Acme.", "→ Acme is now run by Ann Lee.")
    assert ceo.misses[1] == ("→ Ann Lee runs Acne.", "name") and ceo.part == part_of("Bo Roe runs Acme.")
    assert vote.asks == ("→ May vote from 21.",) and vote.misses == (("→ One may stand in Lund from 21.", "sibling"),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old": ""}, "field 'old' must be a non-empty string, got ''"),
        ({"retires": ["a"]}, "field 'retires' must be at least two texts, got ['a']"),
        ({"stays": ["a", "b", "c"]}, "field 'stays' must be an object of at least three texts, by kind, got"),
    ],
)
def test_bad_update_is_named_by_file_and_line(tmp_path: Path, changes: dict[str, Any], message: str):
    write_rows(tmp_path / "some.jsonl", [UPDATE | changes])
    with pytest.raises(ValueError) as caught:
        load_updates(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'some.jsonl'}, line 1: {message}")


def test_every_family_and_every_update_is_valid():
    families, updates = load_families(), load_updates()
    assert len(families) > 800 and len(updates) > 400
    assert all(len(row.asks) == 3 and len(row.misses) >= 3 and row.answer in row.text for row in families)
    written = load_statements()
    assert not folded(row.text for row in written) & folded(row.text for row in families)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "18"}, "field 'answer' must be a part of the statement, got '18'"),
        ({"asks": ROW["asks"][:2]}, "field 'asks' must be three different texts, got"),
        ({"misses": {"name": "Who?"}}, "field 'misses' must be an object of at least three texts, by kind, got"),
        ({"misses": ["Who?"]}, "field 'misses' must be an object of at least three texts, by kind, got"),
        ({"misses": {**ROW["misses"], "name": ROW["asks"][0]}}, "field 'misses' must be texts that differ"),
        ({"kind": ""}, "field 'kind' must be a non-empty string, got ''"),
    ],
)
def test_bad_statement_is_named_by_file_and_line(tmp_path: Path, changes: dict[str, Any], message: str):
    other = ROW | {"statement": "Lund has 17 mills.", "asks": ["a?", "b?", "c?"]}
    write_rows(tmp_path / "some.jsonl", [other, ROW | changes])
    with pytest.raises(ValueError) as caught:
        load_statements(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'some.jsonl'}, line 2: {message}")


def test_texts_given_twice_are_named_across_files(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", [ROW])
    again = ROW | {"statement": "Lund has 17 mills.", "asks": [ROW["asks"][0].upper(), "b?", "c?"]}
    write_rows(tmp_path / "b.jsonl", [again])
    with pytest.raises(
        ValueError, match=r"b\.jsonl, line 1: 'FROM WHAT .* must be given once, it is in .*a\.jsonl, li"
    ):
        load_statements(tmp_path)


def test_exam_is_kept_out_of_a_run():
    statements = load_statements()
    sizes = {part: sum(row.part == part for row in statements) for part in ("exam", "development", "training")}
    assert sizes == {"exam": 547, "development": 211, "training": 2042}
    loaded = load_data([SourceConfig(kind="statements", share=1.0)]).statements
    exam = {row.text for row in statements if row.part == "exam"}
    assert {row.text for row in statements} - {row.text for row in loaded} == exam
    asks = {ask for row in statements if row.part == "exam" for ask in row.asks}
    assert not asks & {text for row in loaded for text in (*row.asks, *(miss for miss, _ in row.misses))}


def test_what_is_asked_in_development_is_not_trained_on(tmp_path: Path):
    rows = pair_rows()[:4]
    rows[0]["asks"].append(rows[3]["asks"][0])
    rows[1]["misses"].append(rows[3]["asks"][0])
    path = str(write_rows(tmp_path / "pairs.jsonl", rows))
    found = load_data([SourceConfig(kind="pairs", share=1.0, path=path, num_eval_rows=1)]).statements
    assert [row.part for row in found] == ["training"] * 3 + ["development"]
    assert found[0].asks == tuple(pair_rows()[0]["asks"]) and len(found[1].misses) == 2


def test_sources_are_read_as_their_kind_says(tmp_path: Path):
    parts = write_parts(tmp_path)
    data = load_data(
        [
            SourceConfig(kind="pairs", share=1.0, path=str(parts / "pairs.jsonl"), source="people", max_rows=5),
            SourceConfig(kind="edits", share=1.0, path=str(parts / "edits.json"), half="train"),
            SourceConfig(kind="chat", share=1.0, path=str(parts / "chat.jsonl"), source="songs"),
        ]
    )
    people, edits = ([row for row in data.statements if row.source == source] for source in ("people", "edits"))
    assert len(people) == 5 and len(edits) == 6
    assert people[0].asks == ("Where does Ann Lee live?",) and people[0].answer is None
    edit = edits[0]
    assert edit.text.endswith(f" lives in {edit.answer}") and len(edit.asks) == 2 and edit.misses[0][0].endswith(" is")
    assert all(row.part == ("development" if part_of(row.text) == "development" else "training") for row in edits)
    assert 0 < len(data.chat) < len(CHAT)


def test_unrelated_question_that_asks_for_the_fact_is_no_miss(tmp_path: Path):
    row = {"prompt": "The father of Bo was who?", "target_new": "Al", "subject": "Bo", "ground_truth": ["Cy"]}
    unrelated = [
        {"prompt": "The father of Bo is", "ground_truth": [["Cy"]]},
        {"prompt": "The mother of Bo is", "ground_truth": [["Di"]]},
    ]
    path = tmp_path / "knowedit.json"
    path.write_text(json.dumps([row | {"locality": {"Relation_Specificity": unrelated}, "portability": {}}]))
    (found,) = load_data([SourceConfig(kind="edits", share=1.0, path=str(path))]).statements
    assert [miss for miss, _ in found.misses] == ["The mother of Bo is"]


def test_bad_files_are_named(tmp_path: Path):
    both = pair_rows()[:1]
    both[0]["misses"].append(both[0]["asks"][0])
    path = str(write_rows(tmp_path / "pairs.jsonl", both))
    with pytest.raises(
        ValueError, match=r"pairs\.jsonl, line 1: 'Where does .*' must be either among asks or among mi"
    ):
        load_data([SourceConfig(kind="pairs", share=1.0, path=path)])
    with pytest.raises(ValueError, match=r"pairs\.jsonl holds no row of the source 'animals'"):
        load_data([SourceConfig(kind="pairs", share=1.0, path=path, source="animals")])
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl is no file"):
        load_data([SourceConfig(kind="pairs", share=1.0, path=str(tmp_path / "no.jsonl"))])
