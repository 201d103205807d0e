from __future__ import annotations

import math

import pytest

from recipe_hf.evaluation.measuring.calibration import calibration
from recipe_hf.evaluation.measuring.outcomes import Outcome


def outcome(kind: str, margin: float, right: bool) -> Outcome:
    concerns = kind != "locality"
    return Outcome(
        kind, "q", "a", None, False, 2 + margin, 2.0, 0.0, fact_id=1, nearest_id=1 if right else 0, concerns=concerns
    )


def test_perfect_estimates_have_no_error():
    margin = math.log(3)  # Its sigmoid is 0.75.
    rows = [outcome("reliability", margin, right) for right in (True, True, True, False)]
    (only,) = calibration(rows)["diagram"]
    assert only == {"estimate": pytest.approx(0.75), "right": 0.75, "count": 4}
    assert calibration(rows)["error"] == pytest.approx(0)
    assert calibration(rows, temperature=0.1)["error"] == pytest.approx(0.25, abs=1e-4)
    halved = [outcome("reliability", margin / 2, right) for right in (True, True, True, False)]
    assert calibration(halved, temperature=0.5)["error"] == pytest.approx(0)


def test_estimates_of_unrelated_questions_are_wrong_where_they_are_high():
    # The fact that the question was made from is nearest: all the worse.
    rows = [outcome("locality", 20, True), outcome("generality", 20, True), outcome("reliability", -20, False)]
    data = calibration(rows)
    assert [b["right"] for b in data["diagram"]] == [0, 0.5]
    assert data["error"] == pytest.approx(1 / 3)


def test_margins_are_counted_by_kind_with_the_outermost_beyond():
    rows = [outcome("reliability", m, True) for m in (-99, -3, -0.01, 0, 0.24, 2.99, 3, 99)]
    data = calibration([*rows, outcome("negated", 0, True)])
    edges, counts = data["edges"], data["counts"]["reliability"]
    found = {edge: count for edge, count in zip(edges, counts, strict=False) if count}
    assert found == {-3: 2, -0.25: 1, 0: 2, 2.75: 3}
    assert sum(data["counts"]["locality"]) == 0
