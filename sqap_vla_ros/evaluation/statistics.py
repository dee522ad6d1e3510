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


def difference_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """95 % interval of the first success rate minus the second when both tried the same things.

    Wilson's limits of the two rates, added in quadrature with their correlation: method 10 of Newcombe, "Improved
    confidence intervals for the difference between binomial proportions based on paired data", Statistics in Medicine
    17, 1998.

    :param both: how often both succeeded
    :param only_first: how often the first succeeded and the second failed
    :param only_second: the other way round
    :param neither: how often both failed
    :return: low and high, -1 to 1; everything is possible without trials
    """
    trials = both + only_first + only_second + neither
    if trials == 0:
        return -1.0, 1.0
    first, second = (both + only_first) / trials, (both + only_second) / trials
    (first_low, first_high), (second_low, second_high) = (
        wilson_interval(both + count, trials) for count in (only_first, only_second))
    correlation = _correlate(both, only_first, only_second, neither)

    def add(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    below = add(first - first_low, second_high - second)
    above = add(first_high - first, second - second_low)
    return max(-1.0, first - second - below), min(1.0, first - second + above)


def _correlate(both: int, only_first: int, only_second: int, neither: int) -> float:
    # Between the two outcomes; a positive one is moved towards 0 by half a trial, as the method asks.
    spread = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if spread == 0:
        return 0.0
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - (both + only_first + only_second + neither) / 2, 0.0)
    return product / math.sqrt(spread)


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
