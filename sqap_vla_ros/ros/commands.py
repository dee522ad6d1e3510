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

"""Commands out of the node: a velocity or a pose for the arm, stamped now, and the gripper beside it.

Whoever asks for motion asks again and again; whoever does not, holds: zero velocity, or the last pose once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.policy.limits import PoseTarget
from sqap_vla_ros.ros.codecs import NS_PER_S, encode_twist
from sqap_vla_ros.ros.command_codecs import ToolPose, encode_pose
from sqap_vla_ros.ros.grippers import Gripper, open_link
from sqap_vla_ros.ros.interface import POSE, TWIST, advertise_managed, in_dry_run

# As many halts as MoveIt Servo sends itself.
HALTS = 4
# Velocity is carried into a pose over this time at most, after which MoveIt Servo forgets a velocity too.
LONGEST_STEP_NS = 100_000_000
# A target this far ahead waits for the tool: an arm that is blocked shall not push harder and harder.
LEASH_M, LEASH_RAD = 0.15, 0.5
_ACK_WAIT = Duration(seconds=0.2)


class ArmCommands(Protocol):
    """What the arm is told."""

    needs_tool: bool

    def move(self, velocity: np.ndarray, now_ns: int, tool: ToolPose | None) -> tuple[TwistStamped | PoseStamped, str]:
        """Motion as a message, and why it is not the whole of it; empty when it is."""

    def rest(self, now_ns: int) -> TwistStamped | PoseStamped | None:
        """Standing still as a message; None where only silence says it."""

    def restart(self) -> None:
        """Forget where the arm was sent."""

    def stay(self, tool: ToolPose | None) -> bool:
        """Rest where the tool is, instead of where the arm was sent; whether that can be done."""

    def find_position(self, tool: ToolPose) -> np.ndarray:
        """See :meth:`Commander.find_position`."""


class Commander:
    """The robot's end of the node.

    In a dry run nothing of the robot's is touched: messages go to ``~/dry_run/...`` and goals nowhere.

    :param node: a lifecycle node; it is silent unless active
    :param knobs: what moves the robot and how
    :param tell: called with a sentence when the gripper cannot be moved
    """

    def __init__(self, node: LifecycleNode, knobs: ControlKnobs, tell: Callable[[str], None]) -> None:
        self._node = node
        end = TWIST if knobs.command == "twist" else POSE
        end = in_dry_run(end) if knobs.dry_run else end
        self._arm: ArmCommands = Velocities(knobs) if knobs.command == "twist" else Poses(knobs)
        self._publisher = advertise_managed(node, end)
        self._gripper = Gripper(open_link(node, knobs), tell)

    @property
    def needs_tool(self) -> bool:
        """Whether motion takes the tool's pose."""
        return self._arm.needs_tool

    def command(self, velocity: np.ndarray, opening: float, knobs: ControlKnobs, now_ns: int,
                tool: ToolPose | None = None) -> str:
        """Move.

        :param velocity: (6,) m/s and rad/s in the base frame, limited
        :param opening: gripper, 0 closed to 1 open
        :param knobs: as they are now
        :param tool: where the tool is in the base frame; None when that is not known
        :return: why the arm holds instead; empty when it moves
        :raises InferenceError: when the tool's pose is not a pose; nothing has left then
        """
        if tool is None and self.needs_tool:
            self.hold(now_ns)
            return f"the pose of {knobs.tool_frame} in {knobs.base_frame} is not known"
        message, why_not = self._arm.move(velocity, now_ns, tool)
        self._gripper.move(opening, knobs, now_ns)
        self._publisher.publish(message)
        return why_not

    def find_position(self, tool: ToolPose) -> np.ndarray:
        """(3,) where motion goes on from, m: a pose that was commanded leads the tool."""
        return self._arm.find_position(tool)

    def hold(self, now_ns: int) -> None:
        """Stand still; the gripper keeps what it has."""
        message = self._arm.rest(now_ns)
        if message is not None:
            self._publisher.publish(message)

    def stop(self, now_ns: int, tool: ToolPose | None) -> bool:
        """Stand still now, where the tool is; said several times, and goals of the gripper are called off.

        :param tool: where it is in the base frame; None when that is not known
        :return: whether this was all; an arm that follows poses is to be stopped again when the tool's place is known
        """
        stays = self._arm.stay(tool)
        for _ in range(HALTS):
            self.hold(now_ns)
        self._gripper.stop()
        self.restart()
        return stays

    def wait_for_receipt(self) -> None:
        """Wait until what was sent has arrived, for a moment at most."""
        self._publisher.wait_for_all_acked(_ACK_WAIT)

    def restart(self) -> None:
        """Forget where the arm was sent: others may have moved it while an interlock was closed."""
        self._arm.restart()

    def close(self) -> None:
        """Take down the ROS ends."""
        self._node.destroy_lifecycle_publisher(self._publisher)
        self._gripper.close()


class Velocities:
    """Twists in the base frame, or turned into the tool's."""

    def __init__(self, knobs: ControlKnobs) -> None:
        self.needs_tool = knobs.command_frame == "tool"
        self._frame = knobs.tool_frame if self.needs_tool else knobs.base_frame

    def move(self, velocity: np.ndarray, now_ns: int, tool: ToolPose | None) -> tuple[TwistStamped, str]:
        """See :class:`ArmCommands`."""
        linear, angular = velocity[:3], velocity[3:]
        if self.needs_tool:
            assert tool is not None
            linear, angular = turn_into(tool[1], linear), turn_into(tool[1], angular)
        return encode_twist(linear, angular, now_ns, self._frame), ""

    def rest(self, now_ns: int) -> TwistStamped:
        """See :class:`ArmCommands`."""
        return encode_twist(np.zeros(3), np.zeros(3), now_ns, self._frame)

    def restart(self) -> None:
        """A velocity has no memory."""

    def stay(self, tool: ToolPose | None) -> bool:
        """A velocity of zero leads nowhere."""
        return True

    def find_position(self, tool: ToolPose) -> np.ndarray:
        """See :meth:`Commander.find_position`."""
        return tool[0]


class Poses:
    """Poses of the tool that a velocity leads to, from where the tool was at the first command on."""

    needs_tool = True

    def __init__(self, knobs: ControlKnobs) -> None:
        self._frame = knobs.base_frame
        self._target = PoseTarget()
        self._pose: ToolPose | None = None
        self._leads = False  # whether the arm may still be on its way to a pose
        self._at_ns = 0

    def move(self, velocity: np.ndarray, now_ns: int, tool: ToolPose | None) -> tuple[PoseStamped, str]:
        """See :class:`ArmCommands`; the velocity counts from the message before this one."""
        assert tool is not None
        self._leads = True
        if self._pose is None:
            self._target.start(*tool)
            self._pose, self._at_ns = tool, now_ns
        passed_ns = min(max(now_ns - self._at_ns, 0), LONGEST_STEP_NS)
        ahead = self._target.advance(velocity, passed_ns / NS_PER_S)
        why_not = _strain(self._pose, ahead, tool)
        if why_not:
            self._target.start(*self._pose)
        else:
            self._pose = ahead
        self._at_ns = now_ns
        return encode_pose(self._pose, now_ns, self._frame), why_not

    def rest(self, now_ns: int) -> PoseStamped | None:
        """See :class:`ArmCommands`."""
        self._at_ns = now_ns
        return None if self._pose is None else encode_pose(self._pose, now_ns, self._frame)

    def restart(self) -> None:
        """See :class:`ArmCommands`."""
        self._target.clear()
        self._pose = None

    def stay(self, tool: ToolPose | None) -> bool:
        """See :class:`ArmCommands`; an arm that was sent nowhere since is left alone."""
        if self._leads and tool is not None:
            self._pose, self._leads = tool, False
        return not self._leads

    def find_position(self, tool: ToolPose) -> np.ndarray:
        """See :meth:`Commander.find_position`."""
        return (tool if self._pose is None else self._pose)[0]


def turn_into(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """A vector of the base frame as the turned frame sees it.

    :param quaternion: (4,) unit, x, y, z, w, of the frame in the base frame
    :param vector: (3,)
    """
    axis = -quaternion[:3]
    return vector + 2.0 * np.cross(axis, np.cross(axis, vector) + quaternion[3] * vector)


def _strain(before: ToolPose, ahead: ToolPose, tool: ToolPose) -> str:
    # Why the target may not go from ``before`` to ``ahead``; coming nearer to the tool is always allowed.
    for distance, leash, unit in ((_distance_m, LEASH_M, "m"), (_distance_rad, LEASH_RAD, "rad")):
        far = distance(ahead, tool)
        if far > leash and far > distance(before, tool):
            return f"the tool is {leash:g} {unit} behind its target, which waits for it; is the arm blocked?"
    return ""


def _distance_m(one: ToolPose, other: ToolPose) -> float:
    return float(np.linalg.norm(one[0] - other[0]))


def _distance_rad(one: ToolPose, other: ToolPose) -> float:
    return 2.0 * float(np.arccos(min(1.0, abs(float(one[1] @ other[1])))))
