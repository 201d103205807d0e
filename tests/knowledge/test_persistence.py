"""Copies with all namespaces, and knowledge bases that know no width yet."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from recipe_hf.knowledge import KnowledgeBase
from tests.engines import ENGINES, content, open_base, random_keys

DIM = 8


def everything(base: KnowledgeBase) -> dict:
    return {name: content(base.namespace(name)) for name in base.namespaces()}


@pytest.fixture(params=ENGINES)
def base(request: pytest.FixtureRequest, tmp_path: Path):
    with open_base(request.param, tmp_path, DIM) as base:
        base.add([("a", "1"), ("b", "1")], random_keys(2))
        base.namespace("acme").add(["x", "y"], random_keys(2, seed=1), encoder_fingerprint="weights")
        base.namespace("acme").remove(0)
        yield base


@pytest.mark.parametrize("name", ["", "acme", "empty"])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda base: pickle.loads(pickle.dumps(base)), "copy_to"]
)
def test_copies_have_all_namespaces(base: KnowledgeBase, tmp_path: Path, name: str, duplicate: Callable | str):
    original, before = base.namespace(name), everything(base)
    made = original.copy_to(tmp_path / "copy.db") if duplicate == "copy_to" else duplicate(original)
    with made:
        assert everything(made) == before and list(made) == list(original)
        assert made.namespace("acme").search(random_keys(2, seed=1)[1:])[0].item() == 1
        made.namespace("acme").clear()
        made.add(["new"], random_keys(1))
    assert everything(base) == before


def test_one_namespace_is_copied_alone_where_it_is_named(base: KnowledgeBase, tmp_path: Path):
    with base.namespace("acme").copy_to(tmp_path / "copy.db", "other") as made:
        assert made.namespaces() == ["other"] and list(made) == list(base.namespace("acme"))
    with base.copy_to(tmp_path / "copy.db", "") as made:
        assert made.namespaces() == ["", "other"] and list(made) == list(base)
    with pytest.raises(ValueError, match="path must be that of an empty knowledge base, got .*copy.db, which has"):
        base.copy_to(tmp_path / "copy.db")
    with KnowledgeBase.open(tmp_path / "copy.db") as made:
        assert made.namespaces() == ["", "other"]


def test_without_a_width_it_is_saved_and_loaded(tmp_path: Path):
    with KnowledgeBase.open(tmp_path / "facts.db") as base:
        base.save(tmp_path / "saved")
    loaded = KnowledgeBase.load(tmp_path / "saved")
    assert loaded.dim is None and len(loaded) == 0
    assert loaded.add(["x"], random_keys(1)) == [0] and loaded.dim == DIM


def test_a_bad_namespace_leaves_no_file_behind_and_no_width(tmp_path: Path):
    with pytest.raises(ValueError, match="namespace must be a string, got 3"):
        KnowledgeBase.open(tmp_path / "facts.db", DIM, namespace=3)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    KnowledgeBase.open(tmp_path / "facts.db").close()
    with pytest.raises(ValueError, match="namespace must be a string, got 3"):
        KnowledgeBase.open(tmp_path / "facts.db", DIM, namespace=3)  # type: ignore[arg-type]
    with KnowledgeBase.open(tmp_path / "facts.db") as base:
        assert base.dim is None
