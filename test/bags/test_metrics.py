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

"""What is recorded and done, in numbers that can be worked out by hand."""

import numpy as np
import pytest

from sqap_vla_ros.bags.metrics import (
    compare_actions,
    describe_motion,
    split_stretches,
    summarize_stages,
    weigh_looks,
)
from sqap_vla_ros.evaluation.statistics import measure_jerk

MS = 1_000_000
PERIOD_NS = 100 * MS


def rows(*motions, gripper=1.0):
    return np.array([[*motion, 0.0, 0.0, 0.0, gripper] for motion in motions])


WHOLE = [slice(0, 3)]
ONES = np.ones(3)


def test_another_instruction_a_gap_and_a_step_back_begin_another_stretch():
    stamps = [0, 100 * MS, 200 * MS, 300 * MS, 1300 * MS, 1400 * MS, 500 * MS]
    words = ["a", "a", "b", "b", "b", "b", "b"]
    assert split_stretches(stamps, words, PERIOD_NS) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    assert split_stretches([], [], PERIOD_NS) == []
    assert split_stretches([5], ["a"], PERIOD_NS) == [slice(0, 1)]


def test_looks_that_come_faster_than_steps_count_for_less():
    stamps = [0, 50 * MS, 100 * MS, 250 * MS]
    np.testing.assert_allclose(weigh_looks(stamps, [slice(0, 4)], PERIOD_NS), (0.5, 0.5, 1.0, 1.0))


def test_equal_actions_are_no_error_apart():
    actions = rows((0.1, 0.0, 0.0), (0.0, 0.2, 0.0), (0.1, 0.1, 0.1))
    found = compare_actions(actions, actions.copy(), WHOLE, ONES)
    assert found["mse"] == found["mae"] == 0.0 and found["looks"] == 3 and found["gripper_agreement"] == 1.0
    assert found["cosine"]["mean"] == pytest.approx(1.0) and found["cosine"]["min"] == pytest.approx(1.0)
    assert found["dimensions"]["x"]["drift"] == 0.0 and found["dimensions"]["gripper"]["drift"] is None


def test_errors_are_means_over_motion_and_drift_adds_up_within_a_stretch():
    actions, reference = rows((0.3, 0.0, 0.0), (0.3, 0.0, 0.0), (0.3, 0.0, 0.0)), rows(*[(0.1, 0.0, 0.0)] * 3)
    found = compare_actions(actions, reference, WHOLE, np.array([1.0, 1.0, 0.5]))
    assert found["mae"] == pytest.approx(0.2 / 6) and found["mse"] == pytest.approx(0.04 / 6)
    assert found["dimensions"]["x"] == pytest.approx({"mse": 0.04, "mae": 0.2, "drift": 0.5})
    apart = compare_actions(actions, reference, [slice(0, 1), slice(1, 3)], ONES)
    assert apart["dimensions"]["x"]["drift"] == pytest.approx(0.4)


def test_directions_are_compared_where_both_move():
    actions = rows((0.1, 0.0, 0.0), (0.1, 0.0, 0.0), (0.0, 0.0, 0.0))
    reference = rows((0.2, 0.0, 0.0), (0.0, 0.1, 0.0), (0.1, 0.0, 0.0))
    assert compare_actions(actions, reference, WHOLE, ONES)["cosine"] == pytest.approx({"mean": 0.5, "min": 0.0})
    assert compare_actions(actions * 0.0, reference, WHOLE, ONES)["cosine"] is None


def test_what_is_not_known_is_left_out():
    actions, reference = rows(*[(0.1, 0.0, 0.0)] * 3), rows(*[(0.1, 0.0, 0.0)] * 3)
    reference[0] = np.nan
    reference[1, 6] = np.nan
    reference[2, 6] = 0.0
    found = compare_actions(actions, reference, WHOLE, ONES)
    assert found["looks"] == 2 and found["mae"] == 0.0 and found["gripper_agreement"] == 0.0
    nothing = compare_actions(actions, np.full((3, 7), np.nan), WHOLE, ONES)
    assert nothing["looks"] == 0 and nothing["mse"] is None and nothing["cosine"] is None
    assert nothing["dimensions"]["x"] == {"mse": None, "mae": None, "drift": None}


def test_motion_is_smooth_or_not():
    stamps = [0, 100 * MS, 200 * MS]
    steady = describe_motion(rows(*[(0.1, 0.0, 0.0)] * 3), stamps, WHOLE, np.array([1.0, 1.0, 0.5]), 0.1)
    assert steady == pytest.approx({"jerk_m_s3": 0.0, "path_m": 0.25})
    shaking = rows((0.1, 0.0, 0.0), (-0.1, 0.0, 0.0), (0.1, 0.0, 0.0))
    # As `sqap evaluate` measures it, where a look comes with every step.
    assert describe_motion(shaking, stamps, WHOLE, ONES, 0.1)["jerk_m_s3"] == pytest.approx(
        measure_jerk(shaking[:, :3], 0.1))
    nothing = describe_motion(np.full((3, 7), np.nan), stamps, WHOLE, ONES, 0.1)
    assert nothing == {"jerk_m_s3": None, "path_m": None}


def test_jerk_does_not_depend_on_how_often_a_motion_is_looked_at_and_stops_where_nothing_is_known():
    found = []
    for rate_hz in (50, 200):
        times = np.arange(0, 4.0, 1.0 / rate_hz)
        actions = np.zeros((len(times), 7))
        actions[:, 0] = 0.2 * np.sin(times) * 0.1
        stamps = np.round(times * 1e9).astype(np.int64)
        found.append(describe_motion(actions, stamps, [slice(0, len(times))], np.ones(len(times)), 0.1)["jerk_m_s3"])
        actions[len(times) // 2] = np.nan
        gapped = describe_motion(actions, stamps, [slice(0, len(times))], np.ones(len(times)), 0.1)["jerk_m_s3"]
        assert gapped == pytest.approx(found[-1], rel=0.05)
    assert found[0] == pytest.approx(found[1], rel=0.02) and found[0] == pytest.approx(0.2 * 0.64, rel=0.2)


def test_stages_are_summed_look_by_look():
    found = summarize_stages([{"vision": 1.0, "llm": 2.0}, {"vision": 3.0, "llm": 4.0}])
    assert list(found) == ["vision", "llm", "total"]
    assert found["total"]["p50"] == 5.0 and found["vision"]["max"] == 3.0
    assert summarize_stages([]) == {}
