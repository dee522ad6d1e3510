"""Velocities and gripper goals out of the node: stamped now, gripper on change only, zero when in doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.action import ActionClient  # type: ignore[attr-defined]
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros.codecs import encode_gripper_goal, encode_twist
from sqap_vla_ros.ros.interface import GRIPPER, TWIST, source_profile

# As many halts as MoveIt Servo sends itself.
HALTS = 4
# After a pause this long someone else may have moved the gripper, so its opening is sent again.
GRIPPER_MEMORY_NS = 500_000_000
_ACK_WAIT = Duration(seconds=0.2)


class Commander:
    """The robot's end of the node.

    :param node: a lifecycle node; it is silent unless active
    :param tell: called with a sentence when a gripper goal cannot be sent or is refused
    """

    def __init__(self, node: LifecycleNode, tell: Callable[[str], None]) -> None:
        self._node, self._tell = node, tell
        self._twist = node.create_lifecycle_publisher(TWIST.type, TWIST.name, source_profile(TWIST))
        self._gripper = ActionClient(node, GRIPPER.type, GRIPPER.name)
        self._sent_opening: float | None = None
        self._commanded_ns = 0
        self._missing = False

    def command(self, velocity: np.ndarray, opening: float, knobs: ControlKnobs, now_ns: int) -> None:
        """Move; both messages are made before either leaves.

        :param velocity: (6,) m/s and rad/s in the base frame, limited
        :param opening: gripper, 0 closed to 1 open
        """
        twist = encode_twist(velocity[:3], velocity[3:], now_ns, knobs.base_frame)
        goal = encode_gripper_goal(opening * knobs.gripper_open_m, knobs.gripper_effort_n)
        if abs(now_ns - self._commanded_ns) > GRIPPER_MEMORY_NS:
            self._sent_opening = None
        self._commanded_ns = now_ns
        if self._sent_opening is None or abs(opening - self._sent_opening) >= knobs.gripper_change_ratio:
            self._send_gripper(goal, opening)
        self._twist.publish(twist)

    def hold(self, knobs: ControlKnobs, now_ns: int) -> None:
        """Stand still; the gripper keeps what it has."""
        self._twist.publish(encode_twist(np.zeros(3), np.zeros(3), now_ns, knobs.base_frame))

    def halt(self, knobs: ControlKnobs, now_ns: int) -> None:
        """Stand still for good: several times, and wait for their receipt."""
        for _ in range(HALTS):
            self.hold(knobs, now_ns)
        self._twist.wait_for_all_acked(_ACK_WAIT)

    def close(self) -> None:
        """Take down the ROS ends."""
        self._node.destroy_lifecycle_publisher(self._twist)
        self._gripper.destroy()

    def _send_gripper(self, goal: Any, opening: float) -> None:
        if not self._gripper.server_is_ready():
            if not self._missing:
                self._tell(f"no action server on {GRIPPER.name}; the gripper does not move")
            self._missing = True
            return
        self._missing = False
        self._sent_opening = opening
        self._gripper.send_goal_async(goal).add_done_callback(self._on_gripper_answer)

    def _on_gripper_answer(self, answer: Future) -> None:
        handle = answer.result()
        if handle is None or not handle.accepted:
            self._sent_opening = None
            self._tell(f"{GRIPPER.name} refused a goal")
