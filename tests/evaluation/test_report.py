from __future__ import annotations

import json

from recipe_hf.evaluation.editing import EditingReport, Outcome
from recipe_hf.evaluation.report import COLUMNS, markdown_table, summarize


def report(seed: int, reliability: float) -> EditingReport:
    outcomes = [
        Outcome("reliability", "q", "a", 1, True, 2.0, 1.0, reliability),
        Outcome("generality", "q", "a", 1, False, 2.0, 1.0, 0.0),
        Outcome("locality", "q", "a", None, True, 0.5, 1.0, 1.0),
    ]
    return EditingReport(num_edits=1000, seed=seed, outcomes=outcomes)


def test_mean_and_deviation_over_seeds():
    table = summarize([report(0, 0.5), report(1, 1.0)])
    assert table[1000]["reliability"] == "75.0 ± 35.4"
    assert table[1000]["generality"] == "0.0 ± 0.0"
    assert table[1000]["right fact, edits"] == "100.0 ± 0.0"
    assert table[1000]["right fact, rephrasings"] == "0.0 ± 0.0"
    assert table[1000]["fired, unrelated"] == "0.0 ± 0.0"


def test_one_seed_has_no_deviation_and_the_table_is_markdown():
    lines = markdown_table(summarize([report(0, 0.5)])).splitlines()
    assert lines[0] == f"| facts | {' | '.join(COLUMNS[name] for name in COLUMNS if name != 'portability')} |"
    assert lines[2].startswith("| 1,000 | 50.0 | 0.0 | 100.0 |")


def test_outcomes_survive_json():
    outcome = report(0, 0.5).outcomes[0]
    assert Outcome(**json.loads(json.dumps(outcome.to_dict()))) == outcome
