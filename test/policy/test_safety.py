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

"""Limits at and beyond their borders."""

import numpy as np
import pytest

from sqap_vla_ros.errors import InferenceError, InputError
from sqap_vla_ros.policy.safety import age_s, check_finite, check_fresh, limit_gripper, limit_step

CAPS = {"max_linear_m_s": 0.5, "max_angular_rad_s": 2.0}


def check(age_ns):
    check_fresh("camera/image_raw", 10**18, 10**18 + age_ns, max_age_s=0.5, max_future_s=0.1)


def test_fresh_within_the_limits():
    for age_ns in (0, 500_000_000, -100_000_000):
        check(age_ns)
    assert age_s(10**18, 10**18 + 250_000_000) == 0.25


def test_stale_and_future_stamps_are_refused():
    with pytest.raises(InputError, match=r"camera/image_raw is 0.501 s old; the oldest allowed is 0.5 s"):
        check(501_000_000)
    with pytest.raises(InputError, match=r"0.101 s ahead of the node's clock; allowed are 0.1 s"):
        check(-101_000_000)
    with pytest.raises(InputError, match="old"):
        check(10**18)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_everywhere(bad):
    values = np.zeros(6)
    values[4] = bad
    with pytest.raises(InferenceError, match="the action has 1 of 6 values"):
        check_finite("the action", values)
    with pytest.raises(InferenceError):
        limit_step(values, **CAPS)
    with pytest.raises(InferenceError):
        limit_gripper(bad)
    check_finite("the action", np.zeros(6))


def test_a_step_within_its_caps_is_untouched():
    velocity = np.array([0.3, 0.4, 0.0, 0.0, 2.0, 0.0])
    limited, clamped = limit_step(velocity, **CAPS)
    np.testing.assert_array_equal(limited, velocity)
    assert clamped is False


@pytest.mark.parametrize(("velocity", "factor"), [
    ([0.6, 0.8, 0.0, 0.0, 0.0, 0.1], 0.5), ([0.1, 0.0, 0.0, 0.0, 0.0, 8.0], 0.25),
    ([5.0, 0.0, 0.0, 8.0, 0.0, 0.0], 0.1)])
def test_one_factor_keeps_the_direction(velocity, factor):
    limited, clamped = limit_step(np.array(velocity), **CAPS)
    np.testing.assert_allclose(limited, factor * np.array(velocity), rtol=1e-12)
    assert clamped is True


def test_random_steps_end_within_the_caps():
    rng = np.random.default_rng(0)
    for velocity in rng.normal(size=(500, 6)) * rng.uniform(0, 4, (500, 1)):
        limited, clamped = limit_step(velocity, **CAPS)
        assert np.linalg.norm(limited[:3]) <= 0.5 * (1 + 1e-12)
        assert np.linalg.norm(limited[3:]) <= 2.0 * (1 + 1e-12)
        assert limited @ velocity == pytest.approx(np.linalg.norm(limited) * np.linalg.norm(velocity))
        assert clamped == (np.linalg.norm(velocity[:3]) > 0.5 or np.linalg.norm(velocity[3:]) > 2.0)


def test_caps_of_zero_stop_the_robot():
    limited, clamped = limit_step(np.ones(6), max_linear_m_s=0.0, max_angular_rad_s=2.0)
    np.testing.assert_array_equal(limited, np.zeros(6))
    assert clamped is True
    assert limit_step(np.zeros(6), max_linear_m_s=0.0, max_angular_rad_s=0.0)[1] is False


@pytest.mark.parametrize(("opening", "limited", "clamped"), [
    (0.0, 0.0, False), (1.0, 1.0, False), (0.37, 0.37, False), (-0.01, 0.0, True), (1.5, 1.0, True)])
def test_gripper_range(opening, limited, clamped):
    assert limit_gripper(opening) == (limited, clamped)
