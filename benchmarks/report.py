"""What the benchmarks share: how a ratio is summed up, and where a table goes in the documentation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

Clock = Callable[[], float]


def wall_clock(device: torch.device | str = "cpu") -> Clock:
    """Seconds that pass, after the device has done its work."""
    if torch.device(device).type != "cuda":
        return time.perf_counter
    return lambda: torch.cuda.synchronize() or time.perf_counter()


def median_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the ends of its 95% confidence interval, by 2,000 bootstrap samples."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def percent_more(ratios: Sequence[float]) -> str:
    """How much more than 1 the median of the ratios is, and its interval."""
    return "{:+.1f}% ({:+.1f} to {:+.1f})".format(*(100 * (value - 1) for value in median_and_range(ratios)))


def times(ratios: Sequence[float]) -> str:
    """The median of the ratios, and its interval."""
    return "{:.3g}x ({:.3g} to {:.3g})".format(*median_and_range(ratios))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], num_left: int = 1) -> str:
    """A Markdown table, whose columns are aligned to the right after the first `num_left`."""
    rule = ["---" if column < num_left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (header, rule, *rows))


def publish(name: str, text: str, document: Path | None) -> None:
    """Prints `text` and, if there is a document, puts it between the marks of `name`, in place of what stood there."""
    print(text)
    if document is None:
        return
    content = document.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} must hold the lines {begin!r} and {end!r}, between which the table goes.")
    document.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")
