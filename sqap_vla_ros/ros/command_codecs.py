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

"""What the robot is told, as messages: poses, chunks, paths and the goals of grippers.

Velocities and the plain gripper goal are in :mod:`.codecs`. Quaternions are x, y, z, w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from control_msgs.action import ParallelGripperCommand
from geometry_msgs.msg import PoseStamped, Transform
from nav_msgs.msg import Path
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import (
    JointTrajectory,
    JointTrajectoryPoint,
    MultiDOFJointTrajectory,
    MultiDOFJointTrajectoryPoint,
)

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.ros.codecs import NS_PER_S, make_header

# Position (3,) in m and quaternion (4,) in the base frame.
ToolPose = tuple[np.ndarray, np.ndarray]


def ns_to_duration(duration_ns: int) -> Duration:
    """Nanoseconds to message duration."""
    sec, nanosec = divmod(int(duration_ns), NS_PER_S)
    return Duration(sec=sec, nanosec=nanosec)


def encode_pose(pose: ToolPose, stamp_ns: int, frame_id: str) -> PoseStamped:
    """Pose in ``frame_id`` to message."""
    message = PoseStamped(header=make_header(stamp_ns, frame_id))
    _fill(message.pose.position, message.pose.orientation, pose)
    return message


def encode_chunk(chunk: ActionChunk, poses: Sequence[ToolPose], base_frame: str,
                 tool_frame: str) -> MultiDOFJointTrajectory:
    """Poses of the tool after each step of a chunk to message; its time begins at the image's stamp.

    :param poses: T poses in ``base_frame``
    """
    message = MultiDOFJointTrajectory(header=make_header(chunk.stamp_ns, base_frame), joint_names=[tool_frame])
    for number, pose in enumerate(poses, start=1):
        transform = Transform()
        _fill(transform.translation, transform.rotation, pose)
        message.points.append(MultiDOFJointTrajectoryPoint(
            transforms=[transform], time_from_start=ns_to_duration(number * chunk.step_period_ns)))
    return message


def encode_path(chunk: ActionChunk, poses: Sequence[ToolPose], base_frame: str) -> Path:
    """The same poses as a path, each stamped with the moment when its step ends."""
    return Path(header=make_header(chunk.stamp_ns, base_frame),
                poses=[encode_pose(pose, chunk.stamp_ns + number * chunk.step_period_ns, base_frame)
                       for number, pose in enumerate(poses, start=1)])


def encode_parallel_gripper_goal(joints: Sequence[str], width_m: float, effort_n: float) -> ParallelGripperCommand.Goal:
    """Distance between the fingers, shared evenly by the joints, and largest force to goal."""
    goal = ParallelGripperCommand.Goal()
    goal.command = JointState(name=list(joints), position=[width_m / len(joints)] * len(joints),
                              effort=[float(effort_n)] * len(joints))
    return goal


def encode_gripper_trajectory(joints: Sequence[str], width_m: float, travel_ns: int) -> JointTrajectory:
    """Distance between the fingers, shared evenly by the joints, to a trajectory of one point that begins on arrival.

    :param travel_ns: time until the fingers are there
    """
    point = JointTrajectoryPoint(positions=[width_m / len(joints)] * len(joints),
                                 time_from_start=ns_to_duration(travel_ns))
    return JointTrajectory(joint_names=list(joints), points=[point])


def _fill(position: Any, orientation: Any, pose: ToolPose) -> None:
    position.x, position.y, position.z = map(float, pose[0])
    orientation.x, orientation.y, orientation.z, orientation.w = map(float, pose[1])
