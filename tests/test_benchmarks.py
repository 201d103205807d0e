"""The benchmarks of docs/performance.md run, at a small size, and put their tables between the marks there."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_recipe import FACTS, UNRELATED, tiny_base, tiny_recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("the benchmarks are not in a source distribution")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return Path(shutil.copy(ROOT / "docs/performance.md", tmp_path))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_recipe().save_pretrained(tmp_path / "recipe")
    return tmp_path / "recipe"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    facts = [*FACTS, *((f"The size of {name} is", "two") for name in "abcdefgh")]
    questions = [[(text, "yes")] for text in UNRELATED] + [[]] * len(facts)
    rows = [
        {"prompt": prompt, "answer": answer, "unrelated": asked}
        for (prompt, answer), asked in zip(facts, questions, strict=False)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(document: Path, name: str) -> list[list[str]]:
    """The rows of the one table between the marks of `name`."""
    text = document.read_text(encoding="utf-8")
    assert text.count(f"<!-- {name} -->") == text.count(f"<!-- end of {name} -->") == 1
    section = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("with_keys", [False, True])
def test_generation(document: Path, checkpoint: Path, data: Path, tmp_path: Path, with_keys: bool):
    base = tmp_path / "base"
    tiny_base().save_pretrained(base)
    tiny_recipe().tokenizer.save_pretrained(base)
    keys = tmp_path / "keys"
    keys.mkdir()
    for name, size in (("0", 3), ("1", 8)):
        np.save(keys / f"{name}.npy", np.zeros((size, 64), np.float16))
    generation = importlib.import_module("generation")
    for size in (10, 12):  # The second replaces the table of the first.
        generation.main(
            facts=[size],
            checkpoint=checkpoint,
            base_model=str(base),
            data=[data],
            keys=keys if with_keys else None,
            batch_size=[1],
            new_tokens=3,
            triples=2,
            asked=5,
            document=document,
        )
    rows = rows_of(document, "generation")
    assert [row[:3] for row in rows] == [["12", "hits", "1"], ["12", "misses", "1"]]
    assert all(float(row[4].partition("%")[0]) > 0 for row in rows)


def test_adding_facts(document: Path, checkpoint: Path, data: Path):
    importlib.import_module("adding_facts").main(
        checkpoint=checkpoint, data=data, facts=[1, 20], single=2, batch=3, turns=2, document=document
    )
    rows = rows_of(document, "adding facts")
    assert [row[0] for row in rows] == ["1"] * 5 + ["20"] * 5
    assert all(row[3].endswith(")") for row in rows if row[1] != "plain loop")


@pytest.mark.slow
def test_memory(document: Path, checkpoint: Path):
    importlib.import_module("memory").main(facts=2000, checkpoint=checkpoint, document=document)
    rows = rows_of(document, "memory")
    assert len(rows) == 4
    stored = [float(row[3].removesuffix(" KB")) for row in rows]
    assert stored[1] > 0.25 and stored[0] == stored[2] == stored[3] == 0  # A key is 64 float32 numbers.
