"""How well margin and probability tell whether the nearest fact is the one asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...modeling.outputs import probability_of
from ..asking.questions import KINDS
from .outcomes import Outcome

#: Edges of the bins of the margin, -3 to 3; what lies beyond is counted in the outer bins.
EDGES = [step / 4 for step in range(-12, 13)]
_BINS = 10


def calibration(outcomes: Sequence[Outcome], temperature: float = 1.0) -> dict[str, Any]:
    """Histograms of the margin for each kind of question, and a reliability diagram.

    The diagram compares the model's own estimate that the best fact is the one asked for (`Retrieval.probability`), in
    ten bins of equal width, with how often it is so, over edits, rephrasings and unrelated questions.

    Args:
        outcomes: What happened to each question.
        temperature: `similarity_temperature` of the model, by which records without estimates go.

    Returns:
        `edges` of the bins and for each kind its `counts`; in `diagram`, for each bin that is not empty, the mean
        estimate, the share that is `right`, and `count`; `error`, the expected calibration error: the mean distance
        of the two over all questions.
    """
    rows = [o for o in outcomes if o.kind in KINDS]
    counts = {kind: _counts([o.margin for o in rows if o.kind == kind]) for kind in KINDS}
    estimates = [
        (
            probability_of(o.margin, temperature) if o.probability is None else o.probability,
            o.concerns and o.nearest_id == o.fact_id,
        )
        for o in rows
    ]
    return {"edges": EDGES, "counts": counts, **reliability_diagram(estimates)}


def reliability_diagram(estimates: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Compares probabilities, in ten bins of equal width, with how often what they are of is so.

    Args:
        estimates: Probabilities, and whether it is so.

    Returns:
        `diagram` and `error`, as in [`calibration`].
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for estimate, right in estimates:
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
    error = sum(abs(b["estimate"] - b["right"]) * b["count"] for b in diagram) / max(len(estimates), 1)
    return {"diagram": diagram, "error": error}


def _counts(margins: Sequence[float]) -> list[int]:
    counts = [0] * (len(EDGES) - 1)
    for margin in margins:
        place = sum(margin >= edge for edge in EDGES) - 1
        counts[max(0, min(place, len(counts) - 1))] += 1
    return counts
