"""One prompt, spelled in several ways, has one fact."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.engine import State
from recipe_hf.knowledge.facts import Fact, parse_facts
from tests.engines import ENGINES, open_base

DIM = 8
PROMPT = "The caf\u00e9 of Zo\u00eb is"
SPELLINGS = [
    PROMPT,
    unicodedata.normalize("NFD", PROMPT),
    "The caf\u00e9 of\u200b Zo\u00eb is",
    "\ufeffThe  cafe\u0301 of Zo\u00eb\u00ad is ",
]
BEFORE = [" ".join(spelling.split()) for spelling in SPELLINGS]  # As older versions compared them.


def keys(n: int = 1) -> torch.Tensor:
    return torch.ones(n, DIM)


@pytest.fixture(params=ENGINES)
def base(request: pytest.FixtureRequest, tmp_path: Path):
    with open_base(request.param, tmp_path, DIM) as base:
        yield base


@pytest.mark.parametrize("first", SPELLINGS)
@pytest.mark.parametrize("second", SPELLINGS)
def test_a_prompt_in_another_spelling_is_replaced(base: KnowledgeBase, first: str, second: str):
    (old,) = base.add([(first, "1")], keys())
    assert base.add([(second, "2")], keys(), "keep") == [old]
    with pytest.raises(ValueError, match=r"facts\[0\] must have a new prompt .*, which fact 0 has"):
        base.add([(second, "2")], keys(), "error")
    (new,) = base.add([(second, "2")], keys())
    assert [fact.id for fact in base] == [new] and base[new].prompt == second
    for spelling in SPELLINGS:
        (past,) = base.history(spelling)
        assert (past.id, past.prompt, past.replaced_by) == (old, first, new)
    assert base.history("The cafe of Zoe is") == []


def test_in_one_batch_and_as_statements(base: KnowledgeBase):
    assert base.add([(spelling, "x") for spelling in SPELLINGS], keys(4)) == [0, 1, 2, 3]
    assert base.add(SPELLINGS, keys(4)) == [4, 5, 6, 7]
    assert [fact.id for fact in base] == [3, 7] and len(base.history(PROMPT)) == 6
    assert base.restore(0) == 8 and [fact.id for fact in base] == [7, 8]


def written_before(base: KnowledgeBase) -> None:
    """Fills it as older versions did, which held a fact for each spelling."""
    with base._store.change():
        for i, (spelling, about) in enumerate(zip(SPELLINGS, BEFORE, strict=True)):
            (fact,) = parse_facts([(spelling, str(i))])
            base._space.insert(
                Fact(**vars(fact), id=i, created_at="2026-01-01T00:00:00.000000+00:00"), keys()[0].numpy()
            )
            if hasattr(base._store, "server"):
                base._store.unit.rows[i].columns["about"] = about
            else:
                base._store.execute("UPDATE facts SET about = ? WHERE id = ?", (about, i))
        base._space.state = State(size=4, next_id=4)


def test_what_older_versions_wrote_is_replaced_and_listed(base: KnowledgeBase, tmp_path: Path):
    written_before(base)
    base.save(tmp_path / "saved")
    assert list(KnowledgeBase.load(tmp_path / "saved")) == list(base)
    base.add([(PROMPT, "new")], keys())
    assert [fact.id for fact in base] == [2, 3, 4]  # Those with invisible characters are found by their own spelling.
    assert [past.id for past in base.history(SPELLINGS[1])] == [0, 1]
    base.add([(SPELLINGS[3], "new"), (SPELLINGS[2], "newest")], keys(2))
    assert [fact.answer for fact in base] == ["newest"]
    assert [past.id for past in base.history(SPELLINGS[3])] == [0, 1, 3, 4, 5]
