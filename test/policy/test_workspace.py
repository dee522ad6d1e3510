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

"""The tool stays in its box, at every rate and under every cap on acceleration."""

import dataclasses
import itertools

import numpy as np
import pytest

from sqap_vla_ros.errors import InferenceError
from sqap_vla_ros.knobs import SafetyKnobs
from sqap_vla_ros.policy.limits import MotionLimiter

S = 1_000_000_000
TICK = S // 50
HORIZON_S = 0.1
BOX = SafetyKnobs(workspace=True, workspace_min_m=(0.1, -0.6, 0.0), workspace_max_m=(0.8, 0.6, 1.0), ramp_in_s=0.0,
                  max_linear_m_s=5.0, max_angular_rad_s=20.0, max_linear_m_s2=1000.0, max_angular_rad_s2=1000.0)
SLOW = dataclasses.replace(BOX, max_linear_m_s=0.6, max_linear_m_s2=2.0)
LOW, HIGH = np.array(BOX.workspace_min_m), np.array(BOX.workspace_max_m)
MIDDLE = (LOW + HIGH) / 2


def motion(*values):
    return np.array(values + (0.0,) * (6 - len(values)))


def begun(tick_s=0.02):
    limiter = MotionLimiter(tick_s)
    limiter.begin(S)
    return limiter


def moving(velocity):
    """A limiter that has just let ``velocity`` out, far from every wall."""
    limiter = begun()
    np.testing.assert_array_equal(limiter.limit(velocity, S, BOX, MIDDLE).velocity, velocity)
    return limiter


def test_a_workspace_needs_to_know_where_the_tool_is():
    with pytest.raises(InferenceError) as refused:
        begun().limit(motion(0.1), S, BOX, None)
    assert str(refused.value) == ("safety.workspace is on and the tool's position is not known; check TF from "
                                  "control.base_frame to control.tool_frame, or turn safety.workspace off")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_position_that_is_not_finite_is_refused_and_changes_nothing(bad):
    limiter = moving(motion(0.1))
    with pytest.raises(InferenceError, match="the tool's position has 2 of 3 values"):
        limiter.limit(motion(0.1), S + TICK, SLOW, np.array([0.3, bad, bad]))
    np.testing.assert_allclose(limiter.limit(motion(0.6), S + TICK, SLOW, MIDDLE).velocity, motion(0.14), rtol=1e-12)


def test_far_from_every_wall_all_is_as_asked():
    velocity = motion(0.3, -0.2, 0.1, 1.0, 0.0, -1.0)
    limited = begun().limit(velocity, S, BOX, MIDDLE)
    np.testing.assert_array_equal(limited.velocity, velocity)
    assert limited.reasons == ()


@pytest.mark.parametrize(("axis", "sign"), list(itertools.product(range(3), (-1, 1))))
def test_speed_towards_a_wall_falls_with_the_distance_and_slides_along_it(axis, sign):
    position = MIDDLE.copy()
    position[axis] = (HIGH if sign > 0 else LOW)[axis] - sign * 0.02
    asked = motion(0.1, 0.1, 0.1, 1.0)
    asked[axis] = sign * 0.5
    limited = begun().limit(asked, S, BOX, position)
    expected = asked.copy()
    expected[axis] = sign * 0.02 / HORIZON_S
    np.testing.assert_allclose(limited.velocity, expected, rtol=1e-9)
    assert limited.reasons == ("workspace",)
    away = -asked
    assert begun().limit(away, S, BOX, position).reasons == ()


def test_without_a_workspace_the_position_does_not_count():
    limited = begun().limit(motion(0.5), S, dataclasses.replace(BOX, workspace=False), np.array([9.0, 9.0, 9.0]))
    assert limited.velocity[0] == 0.5 and limited.reasons == ()


@pytest.mark.parametrize("corner", list(itertools.product((0, 1), repeat=3)))
def test_outside_a_corner_only_ways_back_are_open(corner):
    position = np.where(corner, HIGH + 0.05, LOW - 0.05)
    inward = np.where(corner, -0.3, 0.3)
    limited = begun().limit(motion(*inward), S, BOX, position)
    np.testing.assert_array_equal(limited.velocity[:3], inward)
    assert limited.reasons == ()
    limited = begun().limit(motion(*-inward, 0.0, 1.0), S, BOX, position)
    np.testing.assert_array_equal(limited.velocity, motion(0, 0, 0, 0, 1.0))
    assert limited.reasons == ("workspace",)


def test_reasons_come_in_their_order():
    knobs = dataclasses.replace(SLOW, ramp_in_s=1.0)
    limited = begun().limit(motion(5.0, 1.0), S + S // 2, knobs, np.array([0.799, 0.0, 0.5]))
    assert limited.reasons == ("speed", "acceleration", "workspace", "ramp")
    assert limited.velocity[0] <= 0.001 / HORIZON_S


def walk(knobs, rate_hz, velocities, position, tick_s=None):
    """Integrate limited velocities; positions after each, and accelerations in m/s^2."""
    limiter, dt_s, last = begun(tick_s=tick_s or 1 / rate_hz), 1 / rate_hz, np.zeros(3)
    positions, accelerations = [position], []
    for index, velocity in enumerate(velocities):
        limited = limiter.limit(velocity, S + index * S // rate_hz, knobs, position)
        accelerations.append(np.linalg.norm(limited.velocity[:3] - last) / dt_s)
        last = limited.velocity[:3]
        position = position + dt_s * last
        positions.append(position)
    return np.array(positions), np.array(accelerations)


@pytest.mark.parametrize("cap_m_s2", [0.1, 1.0, 3.0, 10.0, 1000.0])
@pytest.mark.parametrize("rate_hz", [5, 10, 20, 50])
def test_the_tool_never_leaves_and_brakes_within_the_cap(rate_hz, cap_m_s2):
    rng = np.random.default_rng(rate_hz)
    knobs = dataclasses.replace(BOX, max_linear_m_s=2.0, max_linear_m_s2=cap_m_s2)
    directions = [np.sign(rng.normal(size=3)) * rng.uniform(0.2, 3.0, 3) for _ in range(40)]
    velocities = [motion(*direction) for direction in directions for _ in range(rng.integers(2, 4 * rate_hz))]
    positions, accelerations = walk(knobs, rate_hz, velocities, MIDDLE)
    assert (positions >= LOW - 1e-9).all() and (positions <= HIGH + 1e-9).all()
    assert accelerations.max() <= cap_m_s2 * (1 + 1e-6)
    if cap_m_s2 >= 1.0:
        assert (positions.min(0) < LOW + 0.05).all() and (positions.max(0) > HIGH - 0.05).all()


@pytest.mark.parametrize("corner", list(itertools.product((-1.0, 1.0), repeat=3)))
@pytest.mark.parametrize("rate_hz", [20, 50])
def test_a_tool_that_is_driven_into_a_corner_ends_in_it(rate_hz, corner):
    knobs = dataclasses.replace(BOX, max_linear_m_s=0.6, max_linear_m_s2=1.0)
    positions, accelerations = walk(knobs, rate_hz, [motion(*corner)] * (10 * rate_hz), MIDDLE)
    np.testing.assert_allclose(positions[-1], np.where(np.array(corner) > 0, HIGH, LOW), atol=1e-6)
    assert (positions >= LOW - 1e-9).all() and (positions <= HIGH + 1e-9).all()
    assert accelerations.max() <= 1.0 + 1e-9


@pytest.mark.parametrize("rate_hz", [20, 50])
def test_a_tool_that_starts_outside_never_goes_farther_out_and_stays_in_once_there(rate_hz):
    rng, knobs = np.random.default_rng(3), SLOW
    start = np.array([1.0, -0.9, 1.2])
    velocities = [motion(*rng.uniform(-1, 1, 3)) for _ in range(400) for _ in range(5)]
    positions, _ = walk(knobs, rate_hz, velocities, start)
    outside = np.maximum(np.maximum(LOW - positions, positions - HIGH), 0.0)
    assert (np.diff(outside, axis=0) <= 1e-9).all()
    assert (outside[-1] <= 1e-9).all() and (outside[0] > 0.1).all()


def test_a_wall_that_is_suddenly_near_stops_the_tool_at_once():
    limited = moving(motion(0.5)).limit(motion(0.5, 0.1), S + TICK, SLOW, np.array([0.81, 0.0, 0.5]))
    np.testing.assert_array_equal(limited.velocity, np.zeros(6))
    assert limited.reasons == ("acceleration", "workspace")
    back = moving(motion(0.5)).limit(motion(-0.5), S + TICK, SLOW, np.array([0.81, 0.0, 0.5]))
    np.testing.assert_array_equal(back.velocity, np.zeros(6))


def test_a_halt_before_a_wall_is_not_slowed():
    halted = moving(motion(0.5)).limit(np.zeros(6), S + TICK, SLOW, MIDDLE)
    np.testing.assert_array_equal(halted.velocity, np.zeros(6))
