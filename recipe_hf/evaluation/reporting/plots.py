"""A page of plots of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..asking.protocols import PROTOCOLS
from ..asking.questions import KINDS
from ..measuring.calibration import EDGES, calibration
from ..measuring.metrics import EditingReport
from ..measuring.statistics import half_interval

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_NAMES = {"reliability": "edits", "generality": "rephrasings", "locality": "unrelated questions"}
Panel = tuple[str, Callable[[Any], None]]


def check_matplotlib() -> None:
    """Checks that plots can be drawn.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("Plots need matplotlib: install it with pip install 'recipe-hf[plots]'.") from error


def plot_page(path: str | Path, title: str, reports: Sequence[EditingReport]) -> None:
    """Draws accuracy, retrieval, gate, calibration, retention and probes.

    The retriever's panels are those of the first protocol that does not show it the answer.

    Args:
        path: File to write; its suffix says the format.
        title: Title of the page.
        reports: The reports of a run.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(reports)
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(15, 4.4 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14)
    for number, (heading, draw) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 3, number)
        axes.set_title(heading, fontsize=11)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
    figure.savefig(str(path), dpi=110)


def _panels(reports: Sequence[EditingReport]) -> list[Panel]:
    by_protocol: dict[str, list[EditingReport]] = {}
    for report in sorted(reports, key=lambda r: r.num_edits):
        by_protocol.setdefault(report.protocol, []).append(report)
    panels: list[Panel] = [
        (f"Accuracy, {name}", _curves(chosen, {kind: kind for kind in (*KINDS, "portability")}))
        for name, chosen in by_protocol.items()
    ]
    honest = [name for name in by_protocol if not PROTOCOLS[name].shows_answer]
    name = (honest or list(by_protocol))[0]
    chosen = by_protocol[name]
    nearest = {f"{kind}_nearest": words for kind, words in _NAMES.items()} | {"portability_nearest": "portability"}
    panels.append((f"Right key is nearest (recall@1), {name}", _curves(chosen, nearest)))
    metrics = chosen[-1].metrics
    general = {m: f"general: {m.partition('/')[2]}" for m in metrics if m.startswith("general_fired/")}
    fired = {f"{kind}_fired": words for kind, words in _NAMES.items()}
    panels.append((f"A fact is used (gate fires), {name}", _curves(chosen, fired | general)))
    largest = [r for r in chosen if r.num_edits == chosen[-1].num_edits]
    held = f"{largest[0].num_edits:,} fact{'s' if largest[0].num_edits > 1 else ''}, {name}"
    outcomes = [outcome for report in largest for outcome in report.outcomes]
    data = calibration(outcomes, largest[0].temperature)
    panels.append((f"Score minus threshold, {held}", lambda axes: _margins(axes, data["counts"])))
    panels.append((f"Calibration, {held}", lambda axes: _diagram(axes, data)))
    if "retention_first" in metrics:
        ages = {"retention_first": "added first (tenth)", "retention_last": "added last (tenth)"}
        panels.append((f"Retention: reliability, {name}", _curves(chosen, ages)))
    skipped = {*KINDS, "portability"}
    kinds = {o.kind: o.concerns for o in outcomes if o.kind not in skipped}
    if kinds:
        panels.append((f"Probes, {held}", lambda axes: _bars(axes, [r.metrics for r in largest], kinds)))
    return panels


def _curves(reports: Sequence[EditingReport], names: Mapping[str, str]) -> Callable[[Any], None]:
    """Metrics against the number of facts, with confidence intervals."""

    def draw(axes: Any) -> None:
        numbers = sorted({report.num_edits for report in reports})
        metrics = {number: [r.metrics for r in reports if r.num_edits == number] for number in numbers}
        drawn = 0
        for (name, words), colour, marker in zip(names.items(), _COLOURS, "osD^v*", strict=False):
            values = {number: [m[name] for m in metrics[number] if name in m] for number in numbers}
            points = [number for number in numbers if values[number]]
            if points:
                axes.errorbar(
                    points,
                    [mean(values[number]) for number in points],
                    [half_interval(values[number]) for number in points],
                    label=words,
                    color=colour,
                    marker=marker,
                    markersize=5,
                    capsize=3,
                )
                drawn += 1
        axes.set_xscale("log")
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.minorticks_off()
        axes.margins(x=0.08)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("facts held")
        axes.set_ylabel("percent")
        if drawn:
            axes.legend(fontsize=8, framealpha=0.8)

    return draw


def _margins(axes: Any, counts: Mapping[str, Sequence[int]]) -> None:
    for (kind, found), colour in zip(counts.items(), _COLOURS, strict=False):
        if total := sum(found):
            shares = [100 * count / total for count in found]
            axes.stairs(shares, EDGES, label=_NAMES[kind], color=colour, fill=True, alpha=0.25)
            axes.stairs(shares, EDGES, color=colour, linewidth=1.5)
    axes.axvline(0, color="black", linewidth=1, linestyle="--")
    axes.set_xlabel("margin; a fact is used right of the dashed line")
    axes.set_ylabel("percent of the questions")
    axes.legend(fontsize=8, framealpha=0.8)


def _diagram(axes: Any, data: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="perfectly calibrated")
    bins = data["diagram"]
    axes.plot([b["estimate"] for b in bins], [b["right"] for b in bins], "o-", color=_COLOURS[0], label="observed")
    for number, b in enumerate(bins):
        above = (0, 7 + 9 * (number % 2))  # Neighbours may lie close.
        axes.annotate(f"{b['count']:,}", (b["estimate"], b["right"]), above, textcoords="offset points", fontsize=8)
    axes.set_xlabel("sigmoid of margin / temperature (numbers: questions in the bin)")
    axes.set_ylabel("share whose nearest fact is the right one")
    axes.set_xlim(-0.05, 1.08)
    axes.set_ylim(-0.05, 1.12)
    axes.legend(fontsize=8, loc="upper left", title=f"expected error {data['error']:.3f}", title_fontsize=8)


def _bars(axes: Any, metrics: Sequence[Mapping[str, float]], kinds: Mapping[str, bool]) -> None:
    places = range(len(kinds))
    for shift, suffix, words, colour in ((-0.2, "", "accuracy", _COLOURS[0]), (0.2, "_fired", "fired", _COLOURS[1])):
        values = [mean(m[f"{kind}{suffix}"] for m in metrics if kind in m) for kind in kinds]
        bars = axes.bar([place + shift for place in places], values, 0.38, label=words, color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    labels = [f"{kind.replace('_', ' ')}\n({'fact' if concerned else 'no fact'})" for kind, concerned in kinds.items()]
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_ylim(0, 118)
    axes.set_xlabel("in brackets: what should be used")
    axes.set_ylabel("percent")
    axes.legend(fontsize=8, ncols=2, loc="upper right")
