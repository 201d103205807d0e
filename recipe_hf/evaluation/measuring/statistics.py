"""Means over seeds, and how far they can be relied on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from scipy.stats import t


def mean_and_interval(values: Sequence[float]) -> str:
    """The mean, and half the width of its 95% confidence interval (Student's t) if there are several values.

    >>> mean_and_interval([50.0]), mean_and_interval([50.0, 51.0, 52.0])
    ('50.0', '51.0 ± 2.5')
    """
    return f"{mean(values):.1f}" + (f" ± {half_interval(values):.1f}" if len(values) > 1 else "")


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95% confidence interval of the mean; 0 for a single value."""
    freedom = len(values) - 1
    if freedom < 1:
        return 0.0
    # To three decimals, as printed tables have it: figures published before do not change.
    return round(float(t.ppf(0.975, freedom)), 3) * stdev(values) / math.sqrt(len(values))
