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

"""Numbers against published and hand-computed ones."""

import numpy as np
import pytest

from sqap_vla_ros.evaluation.statistics import measure_jerk, measure_path, summarize_counts, wilson_interval


def test_rate_lies_in_its_interval_at_the_ends_too():
    for trials in range(1, 400):
        assert wilson_interval(0, trials)[0] == 0.0 and wilson_interval(trials, trials)[1] == 1.0
        for successes in range(0, trials + 1, max(trials // 7, 1)):
            low, high = wilson_interval(successes, trials)
            assert 0.0 <= low <= successes / trials <= high <= 1.0


def test_jerk_of_a_cubic_path_is_its_third_derivative():
    times = 0.1 * np.arange(12)
    positions = np.stack((2.0 * times**3, -times**3, 0.5 * times**2), axis=1)  # jerk (12, -6, 0) m/s^3
    assert measure_jerk(np.diff(positions, axis=0), 0.1) == pytest.approx(np.hypot(12.0, 6.0))


def test_jerk_of_even_motion_is_zero_and_of_two_steps_unknown():
    steps = np.tile([0.01, 0.02, 0.0], (5, 1))
    assert measure_jerk(steps, 0.1) == pytest.approx(0.0)
    assert measure_jerk(steps[:2], 0.1) is None


def test_path_goes_there_and_back():
    steps = np.array([[0.03, 0.0, 0.04], [-0.03, 0.0, -0.04], [0.0, 0.02, 0.0]])
    assert measure_path(steps) == pytest.approx(0.12)
    assert measure_path(np.zeros((0, 3))) == 0.0


def test_counts_are_told_by_median_and_ninetieth_percentile():
    assert summarize_counts([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]) == {"median": 60.0, "p90": 100.0}
    assert summarize_counts([]) is None
