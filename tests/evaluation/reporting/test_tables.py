from __future__ import annotations

import json
from statistics import mean

import pytest
from scipy import stats

from recipe_hf.evaluation.measuring.metrics import EditingReport, report_from_dict, report_to_dict
from recipe_hf.evaluation.measuring.outcomes import Outcome
from recipe_hf.evaluation.measuring.statistics import half_interval
from recipe_hf.evaluation.reporting.tables import COLUMNS, markdown_report, markdown_table, summarize


def report(seed: int, reliability: float) -> EditingReport:
    outcomes = [
        Outcome("reliability", "q", "a", 1, True, 2.0, 1.0, reliability),
        Outcome("generality", "q", "a", 1, False, 2.0, 1.0, 0.0),
        Outcome("locality", "q", "a", None, True, 0.5, 1.0, 1.0, concerns=False),
    ]
    return EditingReport(num_edits=1000, seed=seed, outcomes=outcomes)


def test_mean_and_confidence_interval_over_seeds():
    table = summarize([report(0, 0.5), report(1, 0.75), report(2, 1.0)])
    # scipy.stats.t.interval(0.95, 2, 75, scipy.stats.sem([50, 75, 100]))
    assert table[1000]["reliability"] == "75.0 ± 62.1"
    assert table[1000]["generality"] == "0.0 ± 0.0"
    assert table[1000]["right fact, edits"] == "100.0 ± 0.0"
    assert table[1000]["right fact, rephrasings"] == "0.0 ± 0.0"
    assert table[1000]["fired, unrelated"] == "0.0 ± 0.0"


def test_one_seed_has_no_interval_and_the_table_is_markdown():
    lines = markdown_table(summarize([report(0, 0.5)])).splitlines()
    assert (
        lines[0]
        == f"| facts | {' | '.join(COLUMNS[name] for name in COLUMNS if not name.startswith('portability'))} |"
    )
    assert lines[2].startswith("| 1,000 | 50.0 | 0.0 | 100.0 |")


@pytest.mark.parametrize("number", [2, 3, 11, 12, 30])
def test_intervals_are_those_of_students_t(number: int):
    values = [float(n * n % 7) for n in range(number)]
    low, high = stats.t.interval(0.95, number - 1, mean(values), stats.sem(values))
    assert half_interval(values) == pytest.approx((high - low) / 2, rel=0.005)


def test_page_describes_every_metric_that_is_not_a_column():
    outcomes = [Outcome("portability", "q", "a", 1, True, 2.0, 1.0, 0.5, detail="Logical_Generalization")]
    general = {"mmlu.jsonl": {"prompts": 400, "fired": [{}]}}
    reports = [EditingReport(1, 0, outcomes, "generation", None, general), report(0, 0.5)]
    settings = {"dataset": "d", "seeds": [0], "num_questions": None, "as_statements": False}
    page = markdown_report(settings | {"weights": "w", "base_model": "b", "dtype": "float32"}, reports)
    assert "## Protocol `strict`" in page and "## Protocol `generation`" in page
    assert "| portability, logical generalization | 50.0 |" in page
    assert "| general prompts, mmlu.jsonl: a fact was used | 0.2 |" in page
    assert "| generality: right key nearest (recall@1) |" in page


def test_reports_survive_json():
    before = EditingReport(10, 1, report(0, 0.5).outcomes, "paper", 1.0, {"a": {"prompts": 1, "fired": []}})
    values = json.loads(json.dumps(report_to_dict(before)))
    assert report_from_dict(values) == before and values["metrics"] == before.metrics


def test_retention_compares_the_facts_added_first_with_those_added_last():
    outcomes = [
        Outcome("reliability", "q", "a", i, True, 2.0, 1.0, accuracy, fact_id=i)
        for i, accuracy in [(19, 0.0), (0, 1.0), (18, 0.5), (1, 0.5), *((i, 0.0) for i in range(2, 18))]
    ]
    metrics = EditingReport(20, 0, outcomes).metrics
    assert (metrics["retention_first"], metrics["retention_last"]) == (75, 25)
    assert "retention_first" not in EditingReport(1, 0, outcomes).metrics


def test_what_one_number_of_facts_lacks_is_shown_for_the_others():
    few = EditingReport(10, 0, report(0, 0.5).outcomes[:1])
    table = summarize([few, report(0, 0.5)])
    assert table[10] == {"reliability": "50.0", "right fact, edits": "100.0"} | {
        COLUMNS[name]: "–"
        for name in ("generality", "locality", "generality_right_fact", "locality_fired", "locality_fired_on_subject")
    }
    assert table[1000]["generality"] == "0.0" and table[1000]["fired, unrelated"] == "0.0"
    assert markdown_table(table).splitlines()[2].startswith("| 10 | 50.0 | – | – | 100.0 |")


def test_the_fact_a_question_was_made_from_is_told_apart_from_any_other():
    outcomes = [
        Outcome("same_relation", "q", "a", used, used is None, 2.0, 1.0, 0.0, fact_id=1, concerns=False)
        for used in (1, 2, 3, None)
    ]
    metrics = EditingReport(10, 0, outcomes).metrics
    assert (metrics["same_relation_fired"], metrics["same_relation_fired_own"]) == (75, 25)
