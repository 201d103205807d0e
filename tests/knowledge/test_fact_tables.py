"""Facts as tables of other libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from recipe_hf.knowledge.facts import parse_facts

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"prompt": "The CEO of Acme is", "answer": "Ann Lee", "metadata": {"year": 2026}, "valid_from": "2026-05-01"},
    {"prompt": "The code of Namibia is", "answer": "NA", "metadata": None, "valid_from": None},
]


def of_pandas(rows: Rows) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows)


def of_pandas_with_its_own_types(rows: Rows) -> Any:
    table = of_pandas(rows).convert_dtypes()
    return table.astype({"valid_from": "datetime64[ns]"}) if "valid_from" in table else table


def records_of_pandas(rows: Rows) -> Any:
    return of_pandas_with_its_own_types(rows).to_dict("records")


def of_pyarrow(rows: Rows) -> Any:
    return pytest.importorskip("pyarrow").Table.from_pylist(rows)


def batch_of_pyarrow(rows: Rows) -> Any:
    return of_pyarrow(rows).to_batches()[0]


def of_polars(rows: Rows) -> Any:
    pytest.importorskip("pyarrow")
    return pytest.importorskip("polars").DataFrame(rows)


def of_datasets(rows: Rows) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list([*rows, *rows]).select(range(len(rows)))


TABLES = [of_pandas, of_pandas_with_its_own_types, of_pyarrow, batch_of_pyarrow, of_polars, of_datasets]


@pytest.mark.parametrize("as_table", [*TABLES, records_of_pandas])
def test_rows_are_facts(as_table: Callable[[Rows], Any]):
    assert parse_facts(as_table(ROWS)) == parse_facts(ROWS)
    statements: Rows = [{"statement": "Water is wet."}, {"statement": "Ice is cold."}]
    assert parse_facts(as_table(statements)) == parse_facts(statements)


@pytest.mark.parametrize("as_table", [*TABLES, records_of_pandas])
def test_a_row_without_a_text_is_named(as_table: Callable[[Rows], Any]):
    with pytest.raises(ValueError, match=r"facts\[1\] must have a statement, or a prompt and an answer, got"):
        parse_facts(as_table([{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": None}]))


@pytest.mark.parametrize("as_table", TABLES)
@pytest.mark.parametrize(
    "row", [{"question": "a", "target": "b"}, {"prompt": "a"}, {"statement": "a", "source": "b"}, {"0": "a", "1": "b"}]
)
def test_a_table_of_something_else_is_refused_by_its_columns(as_table: Callable[[Rows], Any], row: dict[str, str]):
    with pytest.raises(ValueError) as refusal:
        parse_facts(as_table([row, row]))
    assert "facts must be a table with the columns prompt and answer, or statement, and" in str(refusal.value)
    assert str(refusal.value).endswith(f"got one with {list(row)}.")


def test_tables_without_facts_and_with_columns_twice():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="facts must hold at least one fact, got none"):
        parse_facts(pandas.DataFrame({"statement": []}))
    for columns in (["prompt", "answer", "answer"], [0, 1, 2]):
        with pytest.raises(ValueError, match="facts must be a table with the columns"):
            parse_facts(pandas.DataFrame([["a", "b", "c"]], columns=columns))


def test_metadata_of_pandas_stay_as_they_are():
    metadata: list[Any] = [{"a": 1}, {"b": [None, "x"]}, {}]
    rows = [{"statement": f"Fact {i}.", "metadata": it} for i, it in enumerate(metadata)]
    assert [fact.metadata for fact in parse_facts(of_pandas(rows))] == metadata


@pytest.mark.parametrize("collection", [list, set, iter, lambda facts: dict.fromkeys(facts).keys()])
def test_any_other_collection_is_one_of_facts(collection: Callable[[Any], Any]):
    facts = ["Water is wet.", ("Ice is", "cold")]
    assert sorted(fact.statement for fact in parse_facts(collection(facts))) == ["Ice is cold", "Water is wet."]
    numpy, pandas = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    for column in (numpy.array(facts[:1]), pandas.Series(facts[:1]), pandas.Index(facts[:1])):
        assert [(fact.statement, type(fact.statement)) for fact in parse_facts(column)] == [("Water is wet.", str)]


def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    table = of_pyarrow(ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"Arrow tables need pyarrow: pip install 'recipe-hf\[parquet\]'"):
        parse_facts(table)
    assert len(parse_facts(of_pandas(ROWS))) == 2
