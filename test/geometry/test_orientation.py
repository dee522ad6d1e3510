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

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.geometry.orientation import axis_angle, roll_pitch_yaw

ROTATIONS = Rotation.random(200, random_state=0)
UPRIGHT = Rotation.from_euler("xyz", [(0.3, np.pi / 2, 0.0), (-2.0, -np.pi / 2, 0.5), (3.0, np.pi / 2, 1.0)])


def test_axis_and_angle_are_the_same_rotation_from_either_sign():
    for quaternion in ROTATIONS.as_quat():
        vector = axis_angle(quaternion)
        apart = Rotation.from_rotvec(vector) * Rotation.from_quat(quaternion).inv()
        assert apart.magnitude() < 1e-9
        np.testing.assert_array_equal(axis_angle(-quaternion), vector)


def test_small_turns_and_none_are_exact():
    np.testing.assert_array_equal(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), (0, 0, 0))
    np.testing.assert_allclose(axis_angle(np.array([0.0, 5e-14, 0.0, 1.0])), (0, 1e-13, 0), rtol=1e-12)
    np.testing.assert_allclose(axis_angle(Rotation.from_rotvec((0.0, -0.25, 0.5)).as_quat()), (0, -0.25, 0.5))


@pytest.mark.parametrize("tremble_rad", [-0.02, 0.02])
def test_a_tool_that_points_down_does_not_flip(tremble_rad):
    down = Rotation.from_rotvec((np.pi + tremble_rad, 0.0, 0.0)).as_quat()
    np.testing.assert_allclose(axis_angle(down), (np.pi + tremble_rad, 0, 0), atol=1e-12)


def test_roll_pitch_and_yaw_are_turns_about_fixed_axes():
    for quaternion in ROTATIONS.as_quat():
        angles = roll_pitch_yaw(quaternion)
        np.testing.assert_allclose(angles, Rotation.from_quat(quaternion).as_euler("xyz"), atol=1e-9)
        np.testing.assert_allclose(roll_pitch_yaw(-quaternion), angles, atol=1e-12)


@pytest.mark.parametrize("index", range(3))
def test_a_pitch_of_a_quarter_turn_leaves_no_yaw(index):
    angles = roll_pitch_yaw(UPRIGHT[index].as_quat())
    np.testing.assert_array_equal(roll_pitch_yaw(-UPRIGHT[index].as_quat()), angles)
    assert abs(angles[0]) <= np.pi and angles[2] == 0.0 and abs(angles[1]) == np.pi / 2
    assert (Rotation.from_euler("xyz", angles) * UPRIGHT[index].inv()).magnitude() < 1e-6
