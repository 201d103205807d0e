"""Facts in files of other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.exchange import read_facts
from recipe_hf.knowledge.facts import parse_facts

FACTS = [
    "A statement.",
    ("A prompt  with", "an answer"),
    {"statement": "Żółw \u2028 \x85 \n line", "metadata": {"source": "x", "nested": [1, {"a": None}]}},
    {"prompt": "p", "answer": "q", "statement": "r", "valid_from": "2020-01-01", "valid_until": "2100-01-01T12:00"},
]


@pytest.fixture
def base() -> KnowledgeBase:
    base = KnowledgeBase(4)
    base.add([*FACTS, "Gone.", ("p2", "old")], torch.ones(6, 4))
    base.add([("p2", "new")], torch.ones(1, 4))
    base.remove(4)
    return base


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.parquet", "FACTS.PARQUET"])
@pytest.mark.parametrize("include_history", [False, True])
def test_what_is_written_is_read(base: KnowledgeBase, tmp_path: Path, name: str, include_history: bool):
    base.export(tmp_path / name, include_history=include_history)
    assert parse_facts(read_facts(tmp_path / name)) == parse_facts([*FACTS, ("p2", "new")])
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_the_columns_of_a_table(base: KnowledgeBase, tmp_path: Path):
    from pyarrow import parquet

    base.export(tmp_path / "facts.parquet", include_history=True)
    rows = parquet.read_table(tmp_path / "facts.parquet").to_pylist()
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 6, 5, 4]
    assert json.loads(rows[2]["metadata"]) == FACTS[2]["metadata"]
    assert [(row["reason"], row["replaced_by"]) for row in rows[-2:]] == [("replaced", 6), ("removed", None)]
    KnowledgeBase(4).export(tmp_path / "none.parquet")
    assert read_facts(tmp_path / "none.parquet") == []


def test_tables_and_lines_that_others_wrote(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"prompt": ["a", "b"], "answer": ["1", "2"], "metadata": [{"source": "x"}, None]})
    parquet.write_table(table, tmp_path / "facts.parquet")
    parsed = parse_facts(read_facts(tmp_path / "facts.parquet"))
    assert [(fact.statement, fact.metadata) for fact in parsed] == [("a 1", {"source": "x"}), ("b 2", {})]
    (tmp_path / "facts.txt").write_text('"A statement."\n\n["prompt", "answer"]\n')
    assert read_facts(tmp_path / "facts.txt") == parse_facts(["A statement.", ("prompt", "answer")])


def test_bad_files(base: KnowledgeBase, tmp_path: Path):
    with pytest.raises(ValueError, match=r"path must end in .jsonl or .parquet, got '.*facts.csv'"):
        base.export(tmp_path / "facts.csv")
    (tmp_path / "facts.jsonl").write_text('"A."\nnot json\n')
    with pytest.raises(ValueError, match=r"facts.jsonl, line 2: not JSON"):
        read_facts(tmp_path / "facts.jsonl")
    (tmp_path / "facts.parquet").write_text("no table")
    with pytest.raises(ValueError, match="facts.parquet is not a Parquet file of facts"):
        read_facts(tmp_path / "facts.parquet")


@pytest.mark.parametrize(
    "row",
    [
        {"reason": "press release"},
        {"reason": "removed"},
        {"id": 0, "created_at": "2020-01-01", "reason": "removed"},
        {"ended_at": "2020-01-01"},
        {"replaced_by": 7},
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_only_past_facts_are_left_out(tmp_path: Path, row: dict, suffix: str):
    import pyarrow
    from pyarrow import parquet

    rows, path = [{"prompt": "a", "answer": "b", **row}], tmp_path / f"facts.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps(rows[0]))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match=r"(line|row) 1 may have the keys .*, got '(reason|ended_at|replaced_by)'"):
        read_facts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('["only a prompt"]', r"facts.jsonl, line 4 must be a statement, a \(prompt, answer\) pair or a dict"),
        ('{"prompt": "a", "answer": ""}', r"facts.jsonl, line 4.answer must be a non-empty string, got ''"),
        ("[" * 100_000, r"facts.jsonl, line 4: cannot be read as JSON \(maximum recursion depth"),
        ("9" * 5000, r"facts.jsonl, line 4: cannot be read as JSON \(Exceeds the limit"),
    ],
)
def test_errors_name_the_line(base: KnowledgeBase, tmp_path: Path, line: str, message: str):
    past = json.dumps(base.history()[0].to_dict())
    (tmp_path / "facts.jsonl").write_text(f'"A."\n\n{past}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_facts(tmp_path / "facts.jsonl")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("metadata", "{", r"facts.parquet, row 2.metadata: not JSON"),
        ("valid_from", "soon", r"facts.parquet, row 2.valid_from must be a datetime or a string such as"),
    ],
)
def test_errors_name_the_row(tmp_path: Path, column: str, value: str, message: str):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"statement": ["A.", "B."], column: [None, value]})
    parquet.write_table(table, tmp_path / "facts.parquet")
    with pytest.raises(ValueError, match=message):
        read_facts(tmp_path / "facts.parquet")


def test_a_damaged_table_is_named(base: KnowledgeBase, tmp_path: Path):
    path = tmp_path / "facts.parquet"
    base.export(path)
    data = bytearray(path.read_bytes())
    for start, end in ((4, 60), (len(data) - 200, len(data) - 8)):
        damaged = bytearray(data)
        damaged[start:end] = bytes(255 for _ in range(end - start))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="facts.parquet is not a Parquet file of facts"):
            read_facts(path)
    with pytest.raises(FileNotFoundError, match="missing.parquet"):
        read_facts(tmp_path / "missing.parquet")


def test_without_pyarrow_it_says_what_to_install(base: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "facts.parquet").write_text("whatever")
    for use in (lambda: base.export(tmp_path / "facts.parquet"), lambda: read_facts(tmp_path / "facts.parquet")):
        with pytest.raises(ImportError, match=r"Parquet files need pyarrow: pip install 'recipe-hf\[parquet\]'"):
            use()
    base.export(tmp_path / "facts.jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_fact(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text('"The sky is green."\n', encoding="utf-8-sig")
    assert [fact.statement for fact in read_facts(path)] == ["The sky is green."]
