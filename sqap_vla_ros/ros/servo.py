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

"""MoveIt Servo is told which commands come; until it has agreed, it ignores all of them.

Servo of Jazzy and Kilted is switched to a command type, that of Humble is started. Either may be up later than this
node, or be started again, so it is asked on a steady clock, and nothing waits for its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moveit_msgs.srv import ServoCommandType
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.lifecycle import LifecycleNode
from rclpy.task import Future
from rclpy.timer import Timer
from std_srvs.srv import Trigger

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros.interface import START_SERVO, SWITCH_COMMAND_TYPE

BEAT_S = 1.0
# An answer may be lost while the two ends get to know each other.
PATIENCE_BEATS = 3


class ServoSwitch:
    """Asks Servo from :meth:`begin` to :meth:`end` until it agrees, and again when it was gone meanwhile.

    Does nothing in a dry run, and where ``control.servo`` is none.

    :param node: whose executor receives the answers
    :param knobs: which Servo, which command
    :param tell: called with a sentence when Servo is absent, silent or refuses; once for each
    :raises ConfigError: when that Servo knows no such command
    """

    def __init__(self, node: LifecycleNode, knobs: ControlKnobs, tell: Callable[[str], None]) -> None:
        if knobs.servo == "humble" and knobs.command == "pose":
            raise ConfigError("control.command is 'pose', which MoveIt Servo of Humble does not take; set it to "
                              "'twist', or control.servo to 'none' or 'jazzy'")
        self._node, self._tell = node, tell
        self._end = START_SERVO if knobs.servo == "humble" else SWITCH_COMMAND_TYPE
        self._request: Any = Trigger.Request()
        if knobs.servo == "jazzy":
            kind = ServoCommandType.Request.POSE if knobs.command == "pose" else ServoCommandType.Request.TWIST
            self._request = ServoCommandType.Request(command_type=kind)
        asks = knobs.servo != "none" and not knobs.dry_run
        self._client = node.create_client(self._end.type, self._end.name) if asks else None
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer: Timer | None = None
        self._pending: Future | None = None
        self._beats, self._told = 0, ""
        self.agreed = not asks

    def begin(self) -> None:
        """The node was activated."""
        if self._client is not None:
            self.agreed, self._told = False, ""
            self._timer = self._node.create_timer(BEAT_S, self._ask, clock=self._clock)
            self._ask()

    def end(self) -> None:
        """The node is deactivated: nothing more is asked."""
        self._drop()
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    def close(self) -> None:
        """Take down the ROS ends."""
        self.end()
        if self._client is not None:
            self._node.destroy_client(self._client)

    def _ask(self) -> None:
        assert self._client is not None
        if not self._client.service_is_ready():
            self._drop()
            self.agreed = False
            self._complain(f"no service {self._end.name}; is MoveIt Servo running?")
            return
        if self._pending is not None:
            self._beats += 1
            if self._beats < PATIENCE_BEATS:
                return
            self._drop()
            self._complain(f"{self._end.name} does not answer")
        if not self.agreed:
            self._beats = 0
            self._pending = self._client.call_async(self._request)
            self._pending.add_done_callback(self._on_answer)

    def _on_answer(self, future: Future) -> None:
        if future is not self._pending:
            return
        self._pending, answer = None, future.result()
        self.agreed = answer is not None and bool(answer.success)
        if self.agreed:
            self._told = ""
        else:
            # Only start_servo gives a reason.
            reason = getattr(answer, "message", "")
            self._complain(f"{self._end.name} was refused" + (f": {reason}" if reason else ""))

    def _drop(self) -> None:
        if self._client is not None and self._pending is not None:
            self._client.remove_pending_request(self._pending)
        self._pending = None

    def _complain(self, sentence: str) -> None:
        if sentence != self._told:
            self._told = sentence
            self._tell(sentence)
