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

"""Intervals of paired differences against what theory says of them."""

import numpy as np
import pytest

from sqap_vla_ros.evaluation.resampling import resample_difference, resample_ratio


def pair(both, only_first, only_other, neither):
    counts = (both, only_first, only_other, neither)
    return (np.repeat((True, True, False, False), counts).tolist(),
            np.repeat((True, False, True, False), counts).tolist())


def test_difference_is_as_uncertain_as_its_discordant_pairs():
    low, high = resample_difference(*pair(250, 20, 10, 20))
    # Bonett and Price 2012, equation 2, with 21 and 11 of 302: -0.0331 +- 1.96 sqrt((32/302 - 0.0331^2) / 302).
    assert (low, high) == pytest.approx((-0.0696, 0.0034), abs=0.0035)
    assert resample_difference(*pair(250, 20, 10, 20)) == (low, high)
    assert resample_difference(*pair(250, 10, 20, 20)) == pytest.approx((-high, -low), abs=0.0035)
    # Pairs that agree say nothing about the direction, whichever way they agree.
    assert resample_difference(*pair(20, 20, 10, 250)) == pytest.approx((low, high), abs=0.0035)


@pytest.mark.parametrize("count", [1, 10, 300])
def test_methods_that_never_differed_may_still_differ(count):
    low, high = resample_difference([True] * count, [True] * count)
    assert -1.0 <= low < 0.0 < high <= 1.0
    # 1.96 sqrt(2) / (count + 2), in steps of whole scenes.
    assert max(-low, high) == pytest.approx(1.96 * np.sqrt(2) / (count + 2), abs=1.5 / (count + 2))


def test_difference_lies_in_its_interval_at_the_ends():
    assert resample_difference([False] * 9, [True] * 9)[1] == 1.0
    low, high = resample_difference([True], [False])
    assert low == -1.0 and high > -1.0
    assert resample_difference([], []) == (-1.0, 1.0)


def test_ratio_of_means_has_the_interval_of_the_delta_method():
    rng = np.random.default_rng(0)
    first = rng.uniform(1.0, 3.0, 400)
    other = 1.1 * first + rng.normal(0.0, 0.2, 400)
    ratio, low, high = resample_ratio(first, other)
    assert ratio == pytest.approx(other.sum() / first.sum())
    half = 1.96 * np.std(other - ratio * first) / np.sqrt(400) / first.mean()
    assert (low, high) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)
    # Paired: what the scenes do to both does not widen it, as it would if the two had seen others.
    apart = 1.96 * ratio * np.hypot(np.std(first) / first.mean(), np.std(other) / other.mean()) / np.sqrt(400)
    assert high - low < 0.3 * 2 * apart


def test_ratio_of_equal_shares_is_a_point_and_of_too_little_unknown():
    assert resample_ratio([1.0, 2.0, 5.0], [2.0, 4.0, 10.0]) == pytest.approx((2.0, 2.0, 2.0))
    assert resample_ratio([1.0], [2.0]) is None
    assert resample_ratio([0.0, 1.0], [2.0, 1.0]) is None
