from __future__ import annotations

import numpy as np
import pytest

from recipe_hf.knowledge.facts import Fact, PastFact
from recipe_hf.knowledge.rows import COLUMNS, ending, to_fact, to_row
from recipe_hf.knowledge.sqlite.store import FACT_COLUMNS

PRESENT = {"id": 3, "statement": "The sky is blü", "prompt": "The sky is", "answer": "blü", "created_at": "2024"}
FACTS = [
    (Fact(**PRESENT, metadata={"source": "ä"}), None),
    (PastFact(**PRESENT, ended_at="2025", reason="replaced", replaced_by=4), 0),
]


@pytest.mark.parametrize(("fact", "departure"), FACTS)
def test_a_row_is_the_fact_in_its_own_namespace_alone(fact, departure):
    row = to_row("acme", fact, np.ones(8, np.float32), departure)
    assert tuple(row) == COLUMNS
    assert to_fact("acme", row) == fact
    assert to_fact("", row) is None


@pytest.mark.parametrize(("fact", "departure"), FACTS)
def test_a_row_that_was_altered_is_no_fact(fact, departure):
    row = to_row("", fact, None, departure)
    unsummed = {"about", "key_sum"}  # Made of the statement or the prompt; of the key.
    altered = [name for name in row if to_fact("", row | {name: "7"}) is None]
    assert set(altered) == set(row) - unsummed - (
        set() if departure is not None else {"ended_at", "reason", "replaced_by"}
    )


def test_a_present_row_with_its_ending_is_that_of_the_past_fact():
    past, departure = FACTS[1]
    row = to_row("", Fact(**PRESENT), None) | ending(past.ended_at, past.reason, past.replaced_by, departure)
    assert row == to_row("", past, None, departure)


def test_files_keep_the_columns_in_this_order():
    # What SQLite's files and the checksums of older versions rest on.
    assert ", ".join(FACT_COLUMNS) == (
        "namespace, id, statement, prompt, answer, metadata, valid_from, valid_until, created_at, content_sum, about, "
        "ended_at, reason, replaced_by, departure, ending_sum, key_sum, key"
    )
    row = to_row("", FACTS[1][0], np.arange(8, dtype=np.float32), 0)
    assert (row["content_sum"], row["ending_sum"], row["key_sum"]) == (945641959, 293405829, 2047492220)
