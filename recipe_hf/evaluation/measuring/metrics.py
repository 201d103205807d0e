"""A report of one trial: its outcomes, their averages, and both as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from ..asking.questions import KINDS
from .calibration import calibration
from .outcomes import Outcome


@dataclass(frozen=True)
class EditingReport:
    """Outcomes of one evaluation, and their averages in percent.

    Args:
        num_edits: Facts held at once; 1 for many separate edits.
        seed: Seed that drew them.
        outcomes: What happened to each question.
        protocol: Name of the protocol.
        equal_after_removal: Share of prompts to which the model answers, once all facts are removed, exactly as the
            base does; `None` if that was not asked, or facts were not held together.
        general: For each set of general prompts, how many there are and for which a fact was used.
        temperature: `similarity_temperature` of the model.
    """

    num_edits: int
    seed: int
    outcomes: list[Outcome]
    protocol: str = "strict"
    equal_after_removal: float | None = None
    general: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    @property
    def metrics(self) -> dict[str, float]:
        """Mean accuracy of each kind of question asked, and what a retriever did with it if there is one, in percent.

        `_fired`: any fact was used; `locality_fired_on_subject`: one was used whose subject the question names, where
        the data say of all facts used what they are about. For questions that a fact concerns, `_right_fact`: the
        right one was used; `_nearest`: the right one was the best, used or not (recall@1); `_given_right_fact`:
        accuracy where the right one was used. For others, `_fired_own`: the very fact that the question was made from
        was used. `portability_base` is the accuracy of the unedited base. `kind/detail` is the accuracy of a kind
        within a kind. `calibration_error` is explained in
        [`calibration`][recipe_hf.evaluation.measuring.calibration.calibration].
        `retention_first` and `retention_last` are the reliability of the tenth of the facts added first and last.
        """
        percent: dict[str, float] = {}
        for kind in dict.fromkeys(o.kind for o in self.outcomes):
            rows = [o for o in self.outcomes if o.kind == kind]
            percent[kind] = _percent(o.accuracy for o in rows)
            if rows[0].is_right_fact is not None:
                percent |= _look_ups(kind, rows)
            if all(o.base_accuracy is not None for o in rows):
                percent[f"{kind}_base"] = _percent(o.base_accuracy or 0.0 for o in rows)
            for detail in sorted({o.detail for o in rows} - {""}):
                percent[f"{kind}/{detail}"] = _percent(o.accuracy for o in rows if o.detail == detail)
        by_age = sorted((o for o in self.outcomes if o.kind == "reliability"), key=lambda o: o.fact_id or 0)
        if self.num_edits > 1 and (tenth := len(by_age) // 10):
            percent["retention_first"] = _percent(o.accuracy for o in by_age[:tenth])
            percent["retention_last"] = _percent(o.accuracy for o in by_age[-tenth:])
        if any(o.kind in KINDS and o.is_right_fact is not None for o in self.outcomes):
            percent["calibration_error"] = 100 * calibration(self.outcomes, self.temperature)["error"]
        if self.equal_after_removal is not None:
            percent["equal_after_removal"] = 100 * self.equal_after_removal
        for name, found in self.general.items():
            percent[f"general_fired/{name}"] = 100 * len(found["fired"]) / found["prompts"]
        return percent


def _look_ups(kind: str, rows: Sequence[Outcome]) -> dict[str, float]:
    percent = {f"{kind}_fired": _percent(o.retrieved_id is not None for o in rows)}
    if rows[0].concerns:
        right = [o.accuracy for o in rows if o.is_right_fact]
        percent[f"{kind}_right_fact"] = 100 * len(right) / len(rows)
        percent[f"{kind}_nearest"] = _percent(o.nearest_id == o.fact_id for o in rows)
        percent[f"{kind}_given_right_fact"] = _percent(right) if right else 0.0
    else:
        percent[f"{kind}_fired_own"] = _percent(o.retrieved_id == o.fact_id for o in rows)
        if kind == "locality" and all(o.names_subject is not None for o in rows if o.retrieved_id is not None):
            percent["locality_fired_on_subject"] = _percent(bool(o.names_subject) for o in rows)
    return percent


def _percent(values: Iterable[float]) -> float:
    return 100 * mean(map(float, values))


# What a report says of its outcomes, for those who read the JSON.
_DERIVED: dict[str, Callable[[EditingReport], Any]] = {
    "metrics": lambda report: report.metrics,
    "calibration": lambda report: calibration(report.outcomes, report.temperature),
}


def report_to_dict(report: EditingReport) -> dict[str, Any]:
    """A report as plain values, its metrics and calibration among them."""
    head = {name: getattr(report, name) for name in ("num_edits", "seed", "protocol")}
    return head | {name: make(report) for name, make in _DERIVED.items()} | asdict(report)


def report_from_dict(values: Mapping[str, Any]) -> EditingReport:
    """The report that [`report_to_dict`] gave."""
    fields = {name: value for name, value in values.items() if name not in _DERIVED}
    return EditingReport(**fields | {"outcomes": [Outcome(**outcome) for outcome in values["outcomes"]]})
