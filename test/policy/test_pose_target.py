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

"""Where velocities lead, beside what SciPy says."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.errors import InferenceError
from sqap_vla_ros.policy.limits import PoseTarget


def motion(*values):
    return np.array(values + (0.0,) * (6 - len(values)))


def started(position=(0.4, 0.0, 0.3), quaternion=(0.0, 0.0, 0.0, 1.0)):
    target = PoseTarget()
    target.start(np.array(position), np.array(quaternion))
    return target


def test_a_pose_moves_and_turns_in_the_base_frame_as_scipy_says():
    rng = np.random.default_rng(0)
    rotation, position = Rotation.from_euler("xyz", [3.0, 0.2, -1.0]), np.array([0.4, -0.1, 0.3])
    target = started(position, rotation.as_quat())
    for velocity, dt_s in zip(rng.normal(size=(300, 6)) * 3.0, rng.uniform(0.0, 0.2, 300), strict=True):
        rotation = Rotation.from_rotvec(velocity[3:] * dt_s) * rotation
        position = position + velocity[:3] * dt_s
        reached, quaternion = target.advance(velocity, dt_s)
        np.testing.assert_allclose(reached, position, rtol=0, atol=1e-12)
        assert (rotation.inv() * Rotation.from_quat(quaternion)).magnitude() < 1e-12
        np.testing.assert_allclose(np.linalg.norm(quaternion), 1.0, rtol=0, atol=1e-15)


def test_a_whole_turn_in_many_steps_ends_where_it_began_and_never_jumps():
    start = Rotation.from_euler("xyz", [0.3, -0.4, 0.5])
    target, last = started(quaternion=start.as_quat()), start.as_quat()
    velocity = motion(0, 0, 0, *(2 * np.pi * np.array([0.6, 0.0, 0.8])))
    for _ in range(10_000):
        quaternion = target.advance(velocity, 1e-3)[1]
        assert np.linalg.norm(quaternion - last) < 4e-3
        last = quaternion
    assert (start.inv() * Rotation.from_quat(quaternion)).magnitude() < 1e-9
    assert abs(np.linalg.norm(quaternion) - 1.0) < 1e-15


@pytest.mark.parametrize("angle_rad", [1e-300, 1e-12, 1e-3, np.pi, 2 * np.pi, 5.0])
def test_no_angle_is_too_small_or_too_large(angle_rad):
    quaternion = started().advance(motion(0, 0, 0, 0, 0, angle_rad), 1.0)[1]
    np.testing.assert_allclose(quaternion, [0, 0, np.sin(angle_rad / 2), np.cos(angle_rad / 2)], rtol=1e-12, atol=1e-15)


def test_no_motion_is_the_same_pose():
    rotation = Rotation.from_euler("xyz", [3.0, 0.2, -1.0]).as_quat()
    position, quaternion = started(quaternion=2.0 * rotation).advance(np.zeros(6), 0.02)
    np.testing.assert_array_equal(position, [0.4, 0.0, 0.3])
    np.testing.assert_allclose(quaternion, rotation, rtol=1e-15)


def test_a_pose_is_ones_own():
    sources, target = (np.array([0.4, 0.0, 0.3]), np.array([0.0, 0.0, 0.0, 1.0])), PoseTarget()
    target.start(*sources)
    for source in sources:
        source[:] = [9.0, 8.0, 7.0, 6.0][:len(source)]
    for array in target.advance(np.zeros(6), 0.0):
        array[:] = [9.0, 8.0, 7.0, 6.0][:len(array)]
    position, quaternion = target.advance(np.zeros(6), 0.0)
    np.testing.assert_array_equal(position, [0.4, 0.0, 0.3])
    np.testing.assert_array_equal(quaternion, [0.0, 0.0, 0.0, 1.0])


def test_started_until_cleared():
    target = PoseTarget()
    assert not target.started
    target.start(np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))
    assert target.started
    target.clear()
    assert not target.started
    with pytest.raises(AssertionError, match="the target was not started"):
        target.advance(np.zeros(6), 0.02)


@pytest.mark.parametrize(("position", "quaternion", "sentence"), [
    ((np.nan, 0, 0), (0, 0, 0, 1), "the target's position has 1 of 3"),
    ((0, 0, 0), (0, 0, np.inf, np.inf), "the target's quaternion has 2 of 4"),
    ((0, 0, 0), (0, 0, 0, 0), "the target's quaternion is zero; it must be a rotation, no rotation is 0, 0, 0, 1")])
def test_a_start_that_is_no_pose_is_refused(position, quaternion, sentence):
    target = PoseTarget()
    with pytest.raises(InferenceError, match=sentence):
        target.start(np.array(position), np.array(quaternion))
    assert not target.started


def test_a_motion_that_is_not_finite_leaves_the_pose():
    target = started()
    for velocity, dt_s in ((motion(0, 0, 0, np.nan), 0.02), (motion(0.1), np.inf)):
        with pytest.raises(InferenceError, match="the target's motion has 1 of 7"):
            target.advance(velocity, dt_s)
    np.testing.assert_array_equal(target.advance(np.zeros(6), 0.02)[0], [0.4, 0.0, 0.3])
