"""Facts in files of other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from recipe_hf.modeling.facts import parse_facts
from recipe_hf.modeling.knowledge import KnowledgeBase
from recipe_hf.modeling.knowledge.exchange import read_facts

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
    assert read_facts(tmp_path / "facts.txt") == ["A statement.", ["prompt", "answer"]]


def test_bad_files(base: KnowledgeBase, tmp_path: Path):
    with pytest.raises(ValueError, match=r"path must end in .jsonl or .parquet, got '.*facts.csv'"):
        base.export(tmp_path / "facts.csv")
    (tmp_path / "facts.jsonl").write_text('"A."\nnot json\n')
    with pytest.raises(ValueError, match=r"facts.jsonl, line 2: not JSON"):
        read_facts(tmp_path / "facts.jsonl")
    (tmp_path / "facts.parquet").write_text("no table")
    with pytest.raises(ValueError, match="facts.parquet is not a Parquet file of facts"):
        read_facts(tmp_path / "facts.parquet")


def test_without_pyarrow_it_says_what_to_install(base: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "facts.parquet").write_text("whatever")
    for use in (lambda: base.export(tmp_path / "facts.parquet"), lambda: read_facts(tmp_path / "facts.parquet")):
        with pytest.raises(ImportError, match=r"Parquet files need pyarrow: pip install 'recipe-hf\[parquet\]'"):
            use()
    base.export(tmp_path / "facts.jsonl")
