"""How well the margin, score minus threshold, tells whether the nearest fact is the one asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .questions import KINDS, Outcome

#: Edges of the bins of the margin, -3 to 3; what lies beyond is counted in the outer bins.
EDGES = [step / 4 for step in range(-12, 13)]
_BINS = 10


def calibration(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Histograms of the margin for each kind of question, and a reliability diagram.

    Training opposes a query's fact to the sentinel in a softmax (paper eq. 14 to 17), so the sigmoid of the margin is
    the model's own estimate that the nearest fact is the one asked for. The diagram compares this estimate, in ten
    bins of equal width, with how often it is so, over edits, rephrasings and unrelated questions.

    Returns:
        `edges` of the bins and for each kind its `counts`; in `diagram`, for each bin that is not empty, the mean
        estimate, the share that is `right`, and `count`; `error`, the expected calibration error: the mean distance
        of the two over all questions.
    """
    rows = [o for o in outcomes if o.kind in KINDS]
    counts = {kind: _counts([o.margin for o in rows if o.kind == kind]) for kind in KINDS}
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for outcome in rows:
        estimate = 1 / (1 + math.exp(-max(-50.0, min(50.0, outcome.margin))))
        right = outcome.concerns and outcome.nearest_id == outcome.fact_id
        bins[min(int(estimate * _BINS), _BINS - 1)].append((estimate, right))
    diagram = [
        {
            "estimate": sum(estimate for estimate, _ in found) / len(found),
            "right": sum(right for _, right in found) / len(found),
            "count": len(found),
        }
        for found in bins
        if found
    ]
    error = sum(abs(b["estimate"] - b["right"]) * b["count"] for b in diagram) / max(len(rows), 1)
    return {"edges": EDGES, "counts": counts, "diagram": diagram, "error": error}


def _counts(margins: Sequence[float]) -> list[int]:
    counts = [0] * (len(EDGES) - 1)
    for margin in margins:
        place = sum(margin >= edge for edge in EDGES) - 1
        counts[max(0, min(place, len(counts) - 1))] += 1
    return counts
