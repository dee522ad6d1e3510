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

"""Three ways to a gripper behind one small protocol; goals leave on change only, and nothing waits for an answer."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Protocol

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient  # type: ignore[attr-defined]
from rclpy.action.client import ClientGoalHandle
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros.codecs import encode_gripper_goal
from sqap_vla_ros.ros.command_codecs import encode_gripper_trajectory, encode_parallel_gripper_goal
from sqap_vla_ros.ros.interface import (
    GRIPPER,
    GRIPPER_TRAJECTORY,
    PARALLEL_GRIPPER,
    Endpoint,
    advertise_managed,
    in_dry_run,
)

# After a pause this long someone else may have moved the gripper, so its opening is sent again.
MEMORY_NS = 500_000_000
# A gripper that refuses or aborts a goal is asked again this long after it was asked.
RETRY_NS = 1_000_000_000
# Time that a trajectory gives the fingers.
TRAVEL_NS = 500_000_000


class Answer(Enum):
    """What a gripper says to a goal, as a verb."""

    TOOK = "took"
    REFUSED = "refused"
    REACHED = "reached"
    ABORTED = "aborted"


class GripperLink(Protocol):
    """One way to a gripper."""

    name: str

    def missing(self) -> str:
        """What lacks at the other end, in words; empty when nothing does."""

    def send(self, opening: float, knobs: ControlKnobs, answer: Callable[[Answer], None]) -> None:
        """Ask for an opening, 0 closed to 1 open.

        :param answer: called now or later, and again when what was taken has ended
        """

    def stop(self) -> None:
        """Call off what was asked for and has not ended."""

    def close(self) -> None:
        """Take down the ROS ends."""


# Goals that were called off, here or by others, ask for nothing.
_ENDS = {GoalStatus.STATUS_SUCCEEDED: Answer.REACHED, GoalStatus.STATUS_ABORTED: Answer.ABORTED}


class ActionLink:
    """A gripper's action.

    :param encode: the goal for a distance between the fingers, m
    """

    def __init__(self, node: LifecycleNode, end: Endpoint, encode: Callable[[float, ControlKnobs], Any]) -> None:
        self.name, self._encode = end.name, encode
        self._client = ActionClient(node, end.type, end.name)
        self._goals: dict[bytes, ClientGoalHandle] = {}
        self._stops = 0

    def missing(self) -> str:
        """See :class:`GripperLink`."""
        return "" if self._client.server_is_ready() else f"no action server on {self.name}"

    def send(self, opening: float, knobs: ControlKnobs, answer: Callable[[Answer], None]) -> None:
        """See :class:`GripperLink`."""
        goal = self._encode(opening * knobs.gripper_open_m, knobs)
        self._client.send_goal_async(goal).add_done_callback(partial(self._on_judged, self._stops, answer))

    def stop(self) -> None:
        """See :class:`GripperLink`; a goal whose acceptance is still on its way is called off when that comes."""
        self._stops += 1
        for handle in self._goals.values():
            handle.cancel_goal_async()
        self._goals.clear()

    def close(self) -> None:
        """See :class:`GripperLink`."""
        self._client.destroy()

    def _on_judged(self, stops: int, answer: Callable[[Answer], None], future: Future) -> None:
        handle = future.result()
        if handle is None or not handle.accepted:
            answer(Answer.REFUSED)
            return
        if stops != self._stops:
            handle.cancel_goal_async()
            return
        key = bytes(handle.goal_id.uuid)
        self._goals[key] = handle
        answer(Answer.TOOK)
        handle.get_result_async().add_done_callback(partial(self._on_ended, key, answer))

    def _on_ended(self, key: bytes, answer: Callable[[Answer], None], future: Future) -> None:
        self._goals.pop(key, None)
        response = future.result()
        if response is not None and response.status in _ENDS:
            answer(_ENDS[response.status])


class TrajectoryLink:
    """The topic of a joint trajectory controller, which answers nothing; in a dry run nobody needs to listen."""

    def __init__(self, node: LifecycleNode, *, dry_run: bool) -> None:
        end = in_dry_run(GRIPPER_TRAJECTORY) if dry_run else GRIPPER_TRAJECTORY
        self.name, self._node, self._alone = end.name, node, dry_run
        self._publisher = advertise_managed(node, end)

    def missing(self) -> str:
        """See :class:`GripperLink`."""
        heard = self._alone or self._publisher.get_subscription_count() > 0
        return "" if heard else f"nobody listens on {self.name}"

    def send(self, opening: float, knobs: ControlKnobs, answer: Callable[[Answer], None]) -> None:
        """See :class:`GripperLink`."""
        self._publisher.publish(encode_gripper_trajectory(knobs.gripper_joints, opening * knobs.gripper_open_m,
                                                          TRAVEL_NS))
        answer(Answer.REACHED)

    def stop(self) -> None:
        """See :class:`GripperLink`; nothing but another trajectory would end one, and the fingers soon stand."""

    def close(self) -> None:
        """See :class:`GripperLink`."""
        self._node.destroy_lifecycle_publisher(self._publisher)


def open_link(node: LifecycleNode, knobs: ControlKnobs) -> GripperLink | None:
    """The way that ``control.gripper`` names; None where there is none, and for the actions in a dry run."""
    if knobs.gripper == "joint_trajectory":
        return TrajectoryLink(node, dry_run=knobs.dry_run)
    if knobs.gripper == "none" or knobs.dry_run:
        return None
    if knobs.gripper == "parallel_gripper_command":
        return ActionLink(node, PARALLEL_GRIPPER, lambda width_m, now: encode_parallel_gripper_goal(
            now.gripper_joints, width_m, now.gripper_effort_n))
    return ActionLink(node, GRIPPER, lambda width_m, now: encode_gripper_goal(width_m, now.gripper_effort_n))


class Gripper:
    """Sends an opening where it changed enough, and tells once what is in its way.

    :param link: the way to the gripper, or None to do nothing
    :param tell: called with a sentence when an opening cannot be sent, is refused or aborted
    """

    def __init__(self, link: GripperLink | None, tell: Callable[[str], None]) -> None:
        self._link, self._tell = link, tell
        self._sent: float | None = None
        self._moved_ns = self._sent_ns = self._number = 0
        self._failed, self._aborts, self._told = False, False, ""

    def move(self, opening: float, knobs: ControlKnobs, now_ns: int) -> None:
        """Have this opening from now on; called with every command.

        :param opening: 0 closed to 1 open
        """
        if self._link is None:
            return
        missing = self._link.missing()
        if missing:
            self._complain(f"{missing}; the gripper does not move")
        if missing or abs(now_ns - self._moved_ns) > MEMORY_NS:
            self._sent = None
        self._moved_ns = now_ns
        waits = self._failed and abs(now_ns - self._sent_ns) < RETRY_NS
        if missing or waits or not self._is_news(opening, knobs.gripper_change_ratio):
            return
        self._sent, self._sent_ns, self._failed = opening, now_ns, False
        self._number += 1
        self._link.send(opening, knobs, partial(self._on_answer, self._number))

    def stop(self) -> None:
        """Call off the goals in flight; the next opening is sent whatever was sent before."""
        if self._link is not None:
            self._link.stop()
            # Answers to what was sent until now count no more.
            self._number += 1
            self._sent = None

    def close(self) -> None:
        """Take down the ROS ends."""
        if self._link is not None:
            self._link.close()

    def _is_news(self, opening: float, change: float) -> bool:
        # Fully open and fully closed are reached, however small the last change is.
        sent = self._sent
        return sent is None or (opening != sent and (abs(opening - sent) >= change or opening in (0.0, 1.0)))

    def _on_answer(self, number: int, answer: Answer) -> None:
        if answer is Answer.REACHED:
            self._aborts = False
        if answer in (Answer.TOOK, Answer.REACHED):
            # One that takes every goal and reaches none is told once, too.
            self._told = self._told if self._aborts else ""
        elif number == self._number:
            assert self._link is not None
            self._sent, self._failed = None, True
            self._aborts = answer is Answer.ABORTED
            self._complain(f"{self._link.name} {answer.value} a goal")

    def _complain(self, sentence: str) -> None:
        if sentence != self._told:
            self._told = sentence
            self._tell(sentence)
