"""Shares with their uncertainty, and percentiles: the few numbers every report needs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from sqap_vla_ros.data import StageTimes

_Z95 = 1.959963984540054
TOTAL = "total"


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson, "Probable inference", JASA 1927).

    :return: low and high, 0 to 1; everything is possible without trials
    """
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, _Z95**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = _Z95 / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def summarize_times(times: Iterable[StageTimes]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile in ms of each stage, in the order run, and of their sum."""
    columns: dict[str, list[float]] = {}
    for entry in times:
        for stage, milliseconds in {**entry.milliseconds, TOTAL: entry.total_ms}.items():
            columns.setdefault(stage, []).append(milliseconds)
    # A stage that joined late would otherwise come after the sum.
    order = [stage for stage in columns if stage != TOTAL] + [stage for stage in columns if stage == TOTAL]
    return {stage: {name: round(float(np.percentile(columns[stage], level)), 3)
                    for name, level in (("p50", 50), ("p95", 95))} for stage in order}
