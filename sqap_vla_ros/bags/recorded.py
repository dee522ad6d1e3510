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

"""What the robot was told while the bag was recorded, as the action that a policy would have had to give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message

from sqap_vla_ros.bags.contract import Names
from sqap_vla_ros.bags.reading import Bag
from sqap_vla_ros.config import Config
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import decode_joint_positions, decode_twist, stamp_to_ns
from sqap_vla_ros.ros.command_codecs import ToolPose
from sqap_vla_ros.ros.commands import turn_into

# A gripper that moved by less than this share of its whole opening was never used.
_USED_RATIO = 0.1


class RecordedActions:
    """The commands of a bag, by the moment for which they were.

    The motion of a step is the mean of the velocities that were commanded for its time, times the step's length. Where
    the gripper went is known from the trajectories it was sent or, since a bag holds no goals of actions, from the
    positions of ``control.gripper_joints``, between the least and the greatest of the bag.

    :param bag: read once, without its pictures
    :param config: the node's knobs
    :param names: how topics are called in the bag
    """

    def __init__(self, bag: Bag, config: Config, names: Names) -> None:
        self._control = config.control
        self._period_ns = round(config.control.step_period_s * 1e9)
        self.complaints: list[str] = []
        self._velocities: list[tuple[int, np.ndarray, str]] = []
        self._goals: list[tuple[int, float]] = []
        self._positions: list[tuple[int, float]] = []
        readers = {names.resolve(end.name): (end, take) for end, take in (
            (interface.TWIST, self._take_twist), (interface.GRIPPER_TRAJECTORY, self._take_goal),
            (interface.JOINT_STATES, self._take_joints))}
        for topic in [name for name, (end, _) in readers.items() if not _holds(bag, name, end.type_name)]:
            del readers[topic]
        for message in bag.messages(readers):
            end, take = readers[message.topic]
            try:
                content = deserialize_message(message.data, end.type)
            except Exception:  # noqa: BLE001
                # ROS's own errors have no class of their own.
                self._complain(f"messages on {message.topic} that cannot be read are left out")
                continue
            take(content, message.log_ns)
        self._velocities.sort(key=lambda entry: entry[0])
        self._stamps = np.array([stamp_ns for stamp_ns, _, _ in self._velocities], dtype=np.int64)
        self._openings = self._find_openings()

    def action(self, stamp_ns: int, tool: ToolPose | None) -> list[float | None] | None:
        """What was done in the step that begins with a picture.

        :param stamp_ns: the picture's
        :param tool: where the tool was, for velocities that were commanded in its frame
        :return: (7,), with None for a gripper of which nothing is known; None where no velocity was commanded
        """
        first, end = np.searchsorted(self._stamps, (stamp_ns, stamp_ns + self._period_ns))
        turned = [self._turn(velocity, frame, tool) for _, velocity, frame in self._velocities[first:end]]
        known = [velocity for velocity in turned if velocity is not None]
        if not known or len(known) < len(turned):
            return None
        motion = np.mean(known, axis=0) * self._period_ns * 1e-9
        return [*map(float, motion), self._opening(stamp_ns + self._period_ns)]

    def _turn(self, velocity: np.ndarray, frame: str, tool: ToolPose | None) -> np.ndarray | None:
        control = self._control
        if frame == control.base_frame:
            return velocity
        if frame != control.tool_frame:
            self._complain(f"recorded velocities are in '{frame}', which is neither control.base_frame "
                           f"'{control.base_frame}' nor control.tool_frame '{control.tool_frame}'; set the one that "
                           "it is")
            return None
        if tool is None:
            return None
        back = tool[1] * np.array([-1.0, -1.0, -1.0, 1.0])
        return np.concatenate((turn_into(back, velocity[:3]), turn_into(back, velocity[3:])))

    def _opening(self, at_ns: int) -> float | None:
        stamps, openings = self._openings
        index = int(np.searchsorted(stamps, at_ns, side="right")) - 1
        return float(openings[index]) if index >= 0 else None

    def _find_openings(self) -> tuple[np.ndarray, np.ndarray]:
        widest = self._control.gripper_open_m
        if self._goals:
            stamps, widths = _split(self._goals)
            return stamps, np.clip(widths / widest, 0.0, 1.0) if widest > 0.0 else widths
        stamps, widths = _split(self._positions)
        if len(widths) == 0 or np.ptp(widths) < _USED_RATIO * widest:
            return np.array([], dtype=np.int64), np.array([])
        return stamps, (widths - widths.min()) / np.ptp(widths)

    def _take_twist(self, message: Any, _log_ns: int) -> None:
        try:
            velocity = np.concatenate(decode_twist(message))
        except InputError as error:
            self._complain(f"a recorded command is left out: {error}")
            return
        self._velocities.append((stamp_to_ns(message.header.stamp), velocity, message.header.frame_id))

    def _take_goal(self, message: Any, log_ns: int) -> None:
        if message.points:
            self._goals.append((stamp_to_ns(message.header.stamp) or log_ns, sum(message.points[-1].positions)))

    def _take_joints(self, message: Any, _log_ns: int) -> None:
        try:
            positions = decode_joint_positions(message)
        except InputError as error:
            self._complain(f"recorded joint states are left out: {error}")
            return
        if all(joint in positions for joint in self._control.gripper_joints):
            self._positions.append((stamp_to_ns(message.header.stamp),
                                    sum(positions[joint] for joint in self._control.gripper_joints)))

    def _complain(self, sentence: str) -> None:
        if sentence not in self.complaints:
            self.complaints.append(sentence)


def _holds(bag: Bag, topic: str, type_name: str) -> bool:
    return topic in bag.topics and bag.topics[topic].type_name == type_name


def _split(entries: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    ordered = sorted(entries)
    return (np.array([stamp_ns for stamp_ns, _ in ordered], dtype=np.int64),
            np.array([value for _, value in ordered], dtype=np.float64))
