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

"""Speed, ramp and acceleration by numbers, over sequences of commands and at every rate in use."""

import dataclasses

import numpy as np
import pytest

from sqap_vla_ros.errors import InferenceError
from sqap_vla_ros.knobs import SafetyKnobs
from sqap_vla_ros.policy.limits import MotionLimiter

S = 1_000_000_000
TICK_S, HORIZON_S = 0.02, 0.1
TICK = S // 50
FREE = SafetyKnobs(ramp_in_s=0.0, max_linear_m_s=5.0, max_angular_rad_s=20.0, max_linear_m_s2=1000.0,
                   max_angular_rad_s2=1000.0)
SLOW = dataclasses.replace(FREE, max_linear_m_s=0.6, max_angular_rad_s=1.5, max_linear_m_s2=2.0, max_angular_rad_s2=5.0)


def motion(*values):
    return np.array(values + (0.0,) * (6 - len(values)))


def begun(now_ns=S, tick_s=TICK_S):
    limiter = MotionLimiter(tick_s)
    limiter.begin(now_ns)
    return limiter


def moving(velocity, now_ns=S):
    """A limiter that has just let ``velocity`` out at ``now_ns``."""
    limiter = begun(now_ns)
    np.testing.assert_array_equal(limiter.limit(velocity, now_ns, FREE, None).velocity, velocity)
    return limiter


def random_velocities(rng, count):
    """(count, 6), of all sizes up to several times the caps, some of them repeated and some of them zero."""
    velocities = rng.normal(size=(count, 6)) * rng.uniform(0, 1, (count, 1)) ** 2 * [1, 1, 1, 3, 3, 3]
    velocities[rng.random(count) < 0.02] = 0.0
    return velocities[np.repeat(np.arange(count), 1 + rng.integers(0, 10, count))[:count]]


def norms(change):
    return np.linalg.norm(change[:3]), np.linalg.norm(change[3:])


def test_what_is_within_all_limits_comes_out_as_asked():
    velocity = motion(0.3, -0.2, 0.1, 1.0, 0.0, -1.0)
    limited = begun().limit(velocity, S, FREE, None)
    np.testing.assert_array_equal(limited.velocity, velocity)
    assert limited.reasons == ()


def test_neither_the_arguments_nor_the_memory_are_shared():
    limiter, velocity = begun(), motion(0.1)
    limiter.limit(velocity, S, SLOW, None).velocity[:] = 9.0
    assert velocity[0] == 0.1
    np.testing.assert_allclose(limiter.limit(motion(0.6), S + TICK, SLOW, None).velocity, motion(0.08), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad):
    limiter = moving(motion(0.1))
    with pytest.raises(InferenceError, match="the commanded velocity has 1 of 6 values"):
        limiter.limit(motion(0.1, 0, 0, bad), S + TICK, SLOW, None)
    np.testing.assert_allclose(limiter.limit(motion(0.6), S + TICK, SLOW, None).velocity, motion(0.14), rtol=1e-12)


# --- speed and ramp: one common factor

@pytest.mark.parametrize(("velocity", "factor"), [
    (motion(1.2), 0.5), (motion(0.0, 0.0, 0.0, 0.0, 6.0), 0.25), (motion(2.4, 0.0, 0.0, 0.0, 0.0, 3.0), 0.25)])
def test_a_speed_above_its_cap_scales_all_six(velocity, factor):
    knobs = dataclasses.replace(FREE, max_linear_m_s=0.6, max_angular_rad_s=1.5)
    limited = begun().limit(velocity, S, knobs, None)
    np.testing.assert_allclose(limited.velocity, factor * velocity, rtol=1e-12)
    assert limited.reasons == ("speed",)


def test_speed_rises_linearly_in_the_ramp():
    knobs, velocity = dataclasses.replace(FREE, ramp_in_s=0.5), motion(0.3, -0.4, 0.0, 0.0, 1.0)
    limiter = begun()
    for tick in range(40):
        limited = limiter.limit(velocity, S + tick * TICK, knobs, None)
        np.testing.assert_allclose(limited.velocity, min(tick / 25, 1.0) * velocity, rtol=1e-9, atol=1e-15)
        assert limited.reasons == (("ramp",) if tick < 25 else ())


def test_the_ramp_scales_what_the_speed_cap_leaves():
    knobs = dataclasses.replace(FREE, ramp_in_s=1.0, max_linear_m_s=0.6)
    limited = begun().limit(motion(2.0, 0, 0, 1.0), S + S // 4, knobs, None)
    np.testing.assert_allclose(limited.velocity, motion(0.15, 0, 0, 0.075), rtol=1e-12)
    assert limited.reasons == ("speed", "ramp")


def test_a_rest_does_not_start_the_ramp_again_and_a_beginning_does():
    knobs, limiter = dataclasses.replace(FREE, ramp_in_s=0.5), begun()
    limiter.rest()
    assert limiter.limit(motion(0.5), S + S, knobs, None).reasons == ()
    limiter.begin(2 * S)
    np.testing.assert_array_equal(limiter.limit(motion(0.5), 2 * S, knobs, None).velocity, np.zeros(6))
    np.testing.assert_allclose(limiter.limit(motion(0.5), 2 * S + S // 10, knobs, None).velocity, motion(0.1))


# --- acceleration

@pytest.mark.parametrize("rate_hz", [10, 20, 50, 125])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_sequence_of_commands_accelerates_above_the_caps(rate_hz, seed):
    rng, dt_ns = np.random.default_rng(seed), S // rate_hz
    knobs = dataclasses.replace(SLOW, ramp_in_s=0.3)
    limiter, last, now_ns, at_the_cap, exact = begun(tick_s=1 / rate_hz), np.zeros(6), S, [0, 0], 0
    for velocity in random_velocities(rng, 1500):
        elapsed_ns = round(dt_ns * rng.uniform(0.2, 1.8))
        now_ns += elapsed_ns
        limited = limiter.limit(velocity, now_ns, knobs, None)
        linear, angular = (change / elapsed_ns * S for change in norms(limited.velocity - last))
        if not velocity.any():
            assert not limited.velocity.any()
        elif not last.any():
            # However long the rest was, or however short, motion begins with one tick.
            assert linear * elapsed_ns <= 2.0 * dt_ns * (1 + 1e-9) and angular * elapsed_ns <= 5.0 * dt_ns * (1 + 1e-9)
        else:
            assert linear <= 2.0 * (1 + 1e-9) and angular <= 5.0 * (1 + 1e-9)
            at_the_cap[0] += linear > 2.0 * (1 - 1e-9)
            at_the_cap[1] += angular > 5.0 * (1 - 1e-9)
        assert np.linalg.norm(limited.velocity[:3]) <= 0.6 * (1 + 1e-12)
        assert np.linalg.norm(limited.velocity[3:]) <= 1.5 * (1 + 1e-12)
        exact += "acceleration" not in limited.reasons
        last = limited.velocity
    assert min(at_the_cap) > 50 and exact > 50


def test_the_change_goes_straight_to_what_is_asked_each_part_by_its_own_cap():
    before, asked = motion(0.3, 0.0, 0.0, 0.0, 1.0), motion(-0.1, 0.3, 0.0, 0.0, 1.0, 0.05)
    limited = moving(before).limit(asked, S + TICK, SLOW, None)
    # 2 m/s^2 in 20 ms are 0.04 m/s of the 0.5 m/s between them; 5 rad/s^2 are 0.1 rad/s of 0.05.
    np.testing.assert_allclose(limited.velocity[:3], before[:3] + 0.08 * (asked - before)[:3], rtol=1e-12)
    np.testing.assert_array_equal(limited.velocity[3:], asked[3:])
    assert limited.reasons == ("acceleration",)


def test_angular_acceleration_has_its_own_cap():
    limited = moving(motion(0.2)).limit(motion(0.2, 0, 0, 0, -1.2), S + TICK, SLOW, None)
    np.testing.assert_allclose(limited.velocity, motion(0.2, 0, 0, 0, -0.1), rtol=1e-12)
    assert limited.reasons == ("acceleration",)


def test_speed_reaches_what_is_asked_in_the_time_that_the_cap_gives():
    limiter = begun()
    speeds = [limiter.limit(motion(0.5), S + tick * TICK, SLOW, None) for tick in range(16)]
    expected = np.minimum(0.04 * np.arange(1, 17), 0.5)
    np.testing.assert_allclose([limited.velocity[0] for limited in speeds], expected, rtol=1e-12)
    assert [limited.reasons for limited in speeds] == 12 * [("acceleration",)] + 4 * [()]


def test_the_first_velocity_after_a_rest_has_one_tick_from_zero():
    limiter = moving(motion(0.5))
    limiter.rest()
    for tick_s, rested in ((TICK_S, limiter), (0.005, begun(tick_s=0.005))):
        limited = rested.limit(motion(0.5), S + S // 10, SLOW, None)
        np.testing.assert_allclose(limited.velocity, motion(2.0 * tick_s), rtol=1e-12)


def test_after_a_beginning_the_first_velocity_has_one_tick_from_zero():
    limiter = moving(motion(0.5))
    limiter.begin(S + TICK)
    np.testing.assert_allclose(limiter.limit(motion(0.5), S + 2 * TICK, SLOW, None).velocity, motion(0.04), rtol=1e-12)


@pytest.mark.parametrize("knobs", [SLOW, dataclasses.replace(SLOW, ramp_in_s=10.0)])
def test_a_halt_is_not_slowed(knobs):
    limiter = moving(motion(0.5, 0, 0, 1.0))
    halted = limiter.limit(np.zeros(6), S + TICK, knobs, None)
    np.testing.assert_array_equal(halted.velocity, np.zeros(6))
    assert halted.reasons == ()
    np.testing.assert_allclose(limiter.limit(motion(0.5), S + 2 * TICK, SLOW, None).velocity, motion(0.04))


def test_zero_in_one_part_only_is_a_command_like_others():
    limited = moving(motion(0.5, 0, 0, 1.0)).limit(motion(0, 0, 0, 1.0), S + TICK, SLOW, None)
    np.testing.assert_allclose(limited.velocity, motion(0.46, 0, 0, 1.0), rtol=1e-12)


def test_a_lowered_speed_cap_holds_at_once():
    lowered = dataclasses.replace(SLOW, max_linear_m_s=0.1)
    limited = moving(motion(0.5)).limit(motion(0.5), S + TICK, lowered, None)
    np.testing.assert_allclose(limited.velocity, motion(0.1), rtol=1e-12)
    stopped = moving(motion(0.5)).limit(motion(0.5), S + TICK, dataclasses.replace(SLOW, max_linear_m_s=0.0), None)
    np.testing.assert_array_equal(stopped.velocity, np.zeros(6))
    assert stopped.reasons == ("speed",)


def test_a_second_command_for_the_same_moment_replaces_the_first():
    limiter = moving(motion(0.3))
    for asked, reached in ((0.6, 0.34), (-0.6, 0.26), (0.31, 0.31)):
        np.testing.assert_allclose(limiter.limit(motion(asked), S + TICK, SLOW, None).velocity, motion(reached))
    np.testing.assert_allclose(limiter.limit(motion(0.6), S + 2 * TICK, SLOW, None).velocity, motion(0.35))


def test_a_late_command_has_no_more_than_the_horizon_and_after_a_pause_motion_begins_anew():
    late = moving(motion(0.1)).limit(motion(0.6), S + round(0.3 * S), SLOW, None)
    np.testing.assert_allclose(late.velocity, motion(0.1 + 2.0 * HORIZON_S), rtol=1e-12)
    after_pause = moving(motion(0.5)).limit(motion(0.5), S + round(0.6 * S), SLOW, None)
    np.testing.assert_allclose(after_pause.velocity, motion(0.04), rtol=1e-12)


def test_a_clock_that_jumps_back_is_a_beginning():
    knobs = dataclasses.replace(SLOW, ramp_in_s=0.5)
    limiter = moving(motion(0.5), now_ns=10 * S)
    np.testing.assert_array_equal(limiter.limit(motion(0.5), 3 * S, knobs, None).velocity, np.zeros(6))
    limited = limiter.limit(motion(0.5), 3 * S + TICK, knobs, None)
    np.testing.assert_allclose(limited.velocity, motion(0.02), rtol=1e-9)
    assert limited.reasons == ("ramp",)


def test_a_limiter_that_was_not_begun_begins_with_its_first_velocity():
    limiter, knobs = MotionLimiter(TICK_S), dataclasses.replace(FREE, ramp_in_s=0.5)
    np.testing.assert_array_equal(limiter.limit(motion(0.5), 7 * S, knobs, None).velocity, np.zeros(6))
    np.testing.assert_allclose(limiter.limit(motion(0.5), 7 * S + S // 4, knobs, None).velocity, motion(0.25))
