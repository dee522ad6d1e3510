# Copyright 2026 sqap_vla_ros maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Shares with their uncertainty, percentiles and smoothness: the few numbers every report needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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
    # Exactly 0 and 1 at the ends, where rounding would leave the rate outside of its own interval.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == trials else middle + half


def measure_jerk(translations: np.ndarray, period_s: float) -> float | None:
    """Mean size of the commanded jerk, m/s^3: of the third difference of the commanded positions over the period cubed.

    Positions are sums of the steps' translations, so their third difference is the steps' second.

    :param translations: (T, 3), one step each, m
    :param period_s: time between steps, s
    :return: None for fewer than 3 steps, which have no jerk
    """
    if len(translations) < 3:
        return None
    return float(np.linalg.norm(np.diff(translations, n=2, axis=0), axis=1).mean() / period_s**3)


def measure_path(translations: np.ndarray) -> float:
    """Length of the commanded path, m.

    :param translations: (T, 3), one step each, m
    """
    return float(np.linalg.norm(translations, axis=1).sum())


def summarize_counts(counts: Sequence[int]) -> dict[str, float] | None:
    """Median and 90th percentile; None of nothing."""
    if not counts:
        return None
    return {name: round(float(np.percentile(counts, level)), 2) for name, level in (("median", 50), ("p90", 90))}


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
