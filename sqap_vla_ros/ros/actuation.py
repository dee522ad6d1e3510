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

"""From the chunk in force to what the robot gets: interlocks first, then limits, then the messages.

When an interlock opens, nothing goes on where it was: the policy looks again, and speed rises from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from rclpy.lifecycle import LifecycleNode

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.errors import InferenceError
from sqap_vla_ros.policy.limits import MotionLimiter
from sqap_vla_ros.policy.safety import age_s
from sqap_vla_ros.ros.commands import Commander
from sqap_vla_ros.ros.cycle import Command, Cycle
from sqap_vla_ros.ros.diagnostics import Reporter
from sqap_vla_ros.ros.interlock import Interlock
from sqap_vla_ros.ros.servo import ServoSwitch
from sqap_vla_ros.ros.telling import ChunkTeller
from sqap_vla_ros.ros.transforms import FoundTool

# What a limit takes from the motion that was asked for; ramp and acceleration only put it off.
_CLAMPS = ("speed", "workspace")


class Actuation:
    """The robot's side of the node, from configure to cleanup.

    :param node: a lifecycle node; it is silent unless active
    :param config: as configured
    :param interlock: the node's
    :param report: where things are counted and told
    :param find_tool: where the tool is in the base frame at a stamp, within an age in s
    """

    def __init__(self, node: LifecycleNode, config: Config, interlock: Interlock, report: Reporter,
                 find_tool: Callable[[int, float], FoundTool]) -> None:
        self._interlock, self._report, self._find_tool = interlock, report, find_tool
        self._limiter = MotionLimiter(1.0 / config.control.command_hz)
        self._stopped, self._closings = True, interlock.closings
        self._unstopped = False  # whether a stop waits for the tool's place
        # The steps of which a clamp, or a hold for want of the tool's pose, was counted last.
        self._counted, self._held = (0, -1), (0, -1)
        with ExitStack() as closing:
            self._commander = Commander(node, config.control, lambda text: report.note("gripper", text))
            closing.callback(self._commander.close)
            self._servo = ServoSwitch(node, config.control, lambda text: report.note("servo", text))
            closing.callback(self._servo.close)
            self._teller = ChunkTeller(node, config.control)
            closing.callback(self._teller.close)
            self._closing = closing.pop_all()

    def begin(self) -> None:
        """The node was activated."""
        self._stopped = True
        self._servo.begin()

    def why_stopped(self, config: Config) -> tuple[str, str]:
        """Kind and sentence of what keeps the robot still, whatever the policy wants; empty where nothing does."""
        kind, sentence = self._interlock.why_stopped(config.control)
        if not kind and not self._servo.agreed:
            return "servo", "MoveIt Servo has not agreed to take commands yet"
        return kind, sentence

    def send(self, cycle: Cycle, config: Config, now_ns: int) -> bool:
        """Send what is due now, or have the robot stand still; whether it was told to move."""
        stopped = self._watch_interlocks(cycle, config, now_ns)
        try:
            command = cycle.command(now_ns, config.safety)
            moves = command is not None and not stopped and self._move(command, config, now_ns)
        except InferenceError as error:
            self._report.note_failure("inference", error)
            moves = False
        if not moves:
            if self._unstopped:
                self._stop(config, now_ns)
            cycle.hold(now_ns)
            self._limiter.rest()
            self._commander.hold(now_ns)
        return moves

    def tell(self, chunk: ActionChunk, config: Config) -> None:
        """Publish an answer for people and planners, if one of them listens."""
        if self._teller.wanted:
            found = self._find_tool(chunk.stamp_ns, config.footprint.max_tf_age_s)
            if found.pose is not None:
                self._teller.tell(chunk, found.pose)

    def halt(self, config: Config, now_ns: int) -> None:
        """Stand still for good, before anything else, and see to it that this arrives."""
        self._stop(config, now_ns)
        self._commander.wait_for_receipt()

    def restart(self) -> None:
        """Forget where the robot was sent, after the clock jumped."""
        self._commander.restart()
        self._limiter.rest()
        self._unstopped = True

    def end(self) -> None:
        """The node is deactivated."""
        self._servo.end()

    def close(self) -> None:
        """Take down the ROS ends."""
        self._closing.close()

    def _watch_interlocks(self, cycle: Cycle, config: Config, now_ns: int) -> bool:
        # Whether one is closed; what was short enough to be over again counts as well.
        kind, _ = self.why_stopped(config)
        if self._closings != self._interlock.closings or (kind and not self._stopped):
            self._closings, self._stopped = self._interlock.closings, True
            self._stop(config, now_ns)
        if self._stopped and not kind:
            cycle.begin_anew()
            self._commander.restart()
            self._limiter.begin(now_ns)
        self._stopped = bool(kind)
        return self._stopped

    def _stop(self, config: Config, now_ns: int) -> None:
        tool = self._find_tool(now_ns, config.safety.max_tool_age_s).pose if self._commander.needs_tool else None
        self._unstopped = not self._commander.stop(now_ns, tool)
        self._limiter.rest()

    def _move(self, command: Command, config: Config, now_ns: int) -> bool:
        # Whether the robot was told to move.
        tool, position, late_s, why_not = None, None, 0.0, ""
        if config.safety.workspace or self._commander.needs_tool:
            found = self._find_tool(now_ns, config.safety.max_tool_age_s)
            tool, why_not = found.pose, found.reason
            late_s = age_s(found.stamp_ns, now_ns) if found.stamp_ns else 0.0
        if not why_not:
            position = None if tool is None else self._commander.find_position(tool)
            # A pose that was commanded has no age.
            is_measured = tool is not None and position is tool[0]
            limited = self._limiter.limit(command.velocity, now_ns, config.safety, position,
                                          late_s if is_measured else 0.0)
            self._count(command, limited.reasons)
            why_not = self._commander.command(limited.velocity, command.opening, config.control, now_ns, tool)
        if why_not and self._held != command.step:
            self._held = command.step
            self._report.note("no_tool", why_not)
        return not why_not

    def _count(self, command: Command, reasons: tuple[str, ...]) -> None:
        clamped = command.moved or any(reason in _CLAMPS for reason in reasons)
        if clamped and command.step != self._counted:
            self._counted = command.step
            self._report.health.counts["clamped"] += 1
