"""Numbers against published and hand-computed ones."""

import numpy as np
import pytest

from sqap_vla_ros.evaluation.statistics import difference_interval, measure_jerk, summarize_counts, wilson_interval


@pytest.mark.parametrize(("counts", "low", "high"), [
    # Worked examples of Fagerland, Lydersen, Laake, "Statistical Analysis of Contingency Tables", 2017, chapter 8.
    ((1, 1, 7, 12), -0.5069, -0.0256), ((59, 6, 16, 80), -0.1186, -0.0046)])
def test_difference_interval(counts, low, high):
    assert difference_interval(*counts) == pytest.approx((low, high), abs=1e-4)
    both, first, second, neither = counts
    assert difference_interval(both, second, first, neither) == pytest.approx((-high, -low), abs=1e-4)


def test_rate_lies_in_its_interval_at_the_ends_too():
    for trials in range(1, 400):
        assert wilson_interval(0, trials)[0] == 0.0 and wilson_interval(trials, trials)[1] == 1.0
        for successes in range(0, trials + 1, max(trials // 7, 1)):
            low, high = wilson_interval(successes, trials)
            assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_difference_without_correlation_adds_wilson_limits_in_quadrature():
    # All succeed with one, half with the other: no correlation can be told.
    low, high = difference_interval(10, 10, 0, 0)
    (first_low, first_high), (second_low, second_high) = wilson_interval(20, 20), wilson_interval(10, 20)
    assert low == pytest.approx(0.5 - np.hypot(1 - first_low, second_high - 0.5))
    assert high == pytest.approx(0.5 + np.hypot(first_high - 1, 0.5 - second_low))


def test_difference_of_equal_outcomes_is_zero_within_its_interval():
    low, high = difference_interval(95, 0, 0, 5)
    assert low == pytest.approx(-high) and 0.0 < high < 0.05
    assert difference_interval(0, 0, 0, 0) == (-1.0, 1.0)


def test_jerk_of_a_cubic_path_is_its_third_derivative():
    times = 0.1 * np.arange(12)
    positions = np.stack((2.0 * times**3, -times**3, 0.5 * times**2), axis=1)  # jerk (12, -6, 0) m/s^3
    assert measure_jerk(np.diff(positions, axis=0), 0.1) == pytest.approx(np.hypot(12.0, 6.0))


def test_jerk_of_even_motion_is_zero_and_of_two_steps_unknown():
    steps = np.tile([0.01, 0.02, 0.0], (5, 1))
    assert measure_jerk(steps, 0.1) == pytest.approx(0.0)
    assert measure_jerk(steps[:2], 0.1) is None


def test_counts_are_told_by_median_and_ninetieth_percentile():
    assert summarize_counts([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]) == {"median": 60.0, "p90": 100.0}
    assert summarize_counts([]) is None
