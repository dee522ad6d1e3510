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

"""`watchdog_node`: zero velocity when commands stop coming while the robot moves.

It is a process of its own, so that it still speaks when the policy's process was killed or hangs. It publishes beside
the policy on the twist topic, and never anything but zeros.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, cast

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType, JumpThreshold, ROSClock, TimeJump  # type: ignore[attr-defined]
from rclpy.duration import Duration
from rclpy.node import Node

from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import NS_PER_S, encode_twist, make_header, stamp_to_ns
from sqap_vla_ros.ros.commands import HALTS
from sqap_vla_ros.ros.lifecycle import run_node

NODE_NAME = "watchdog_node"
DIAGNOSTICS_PERIOD_S = 1.0
REPEAT_S = 0.05
# Name to default, smallest and largest value, and meaning.
PARAMETERS: dict[str, tuple[float, float, float, str]] = {
    "timeout_s": (0.1, 0.02, 10.0, "Silence after a command that was not zero that makes the watchdog speak, s."),
    "hold_s": (2.0, 0.0, 3600.0, "How long it repeats its zeros when nobody commands, s of wall time."),
}
_CHECKS_PER_TIMEOUT = 10
_OWN_ZEROS = 64


class Silence:
    """When zeros are due. Knows no ROS; every method takes the time.

    Two clocks must agree that it is silent: the node's, because simulated time may stand still, and a steady one,
    because simulated time may run fast or leap. With system time both are the steady one, as system time may be set.

    :param timeout_s: longest silence after a command that was not zero
    :param hold_s: how long zeros are due
    """

    def __init__(self, timeout_s: float, hold_s: float) -> None:
        self._timeout_ns, self._hold_ns = int(timeout_s * NS_PER_S), int(hold_s * NS_PER_S)
        self._heard_ns: tuple[int, int] | None = None
        self._began_ns, self._sent_ns = 0, 0
        self.speaking = False

    @property
    def armed(self) -> bool:
        """Whether the last command was not zero, and zeros have not been sent for long enough."""
        return self._heard_ns is not None

    def hear(self, moving: bool, now_ns: int, wall_ns: int) -> None:
        """Somebody commands.

        :param moving: whether the command was not zero
        :param now_ns: the node's clock
        :param wall_ns: a steady wall clock
        """
        self._heard_ns = (now_ns, wall_ns) if moving else None
        self.speaking = False

    def rebase(self, now_ns: int) -> None:
        """The node's clock jumped: what was heard counts as heard at its new time."""
        if self._heard_ns is not None:
            self._heard_ns = (now_ns, self._heard_ns[1])

    def count_zeros(self, now_ns: int, wall_ns: int) -> int:
        """So many zeros are due: several at once when silence is noticed, then one at a time."""
        if self._heard_ns is None:
            return 0
        if not self.speaking:
            if min(now_ns - self._heard_ns[0], wall_ns - self._heard_ns[1]) < self._timeout_ns:
                return 0
            self.speaking, self._began_ns, self._sent_ns = True, wall_ns, wall_ns
            return HALTS
        if wall_ns - self._began_ns >= self._hold_ns:
            self._heard_ns, self.speaking = None, False
            return 0
        if wall_ns - self._sent_ns < REPEAT_S * NS_PER_S:
            return 0
        self._sent_ns = wall_ns
        return 1


class WatchdogNode(Node):
    """See the module's docstring.

    :param options: passed to rclpy
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        timeout_s, hold_s = (self._declare(name) for name in PARAMETERS)
        self._timeout_s = timeout_s
        self._silence = Silence(timeout_s, hold_s)
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._frame_id = ""
        self._own_stamps: deque[int] = deque(maxlen=_OWN_ZEROS)
        self._counts = {"commands": 0, "silences": 0, "zeros": 0}
        self._zeros_out = interface.advertise(self, interface.TWIST)
        self._diagnostics = interface.advertise(self, interface.DIAGNOSTICS)
        interface.subscribe(self, interface.WATCHDOG_NODE[0][1], self._on_twist)
        self._checks = self.create_timer(min(timeout_s / _CHECKS_PER_TIMEOUT, REPEAT_S), self._check, clock=self._wall)
        self._checks.cancel()
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics, clock=self._wall)
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True)
        self._jump_handle = self.get_clock().create_jump_callback(back, post_callback=self._on_clock_jump)

    def close(self) -> None:
        """Nothing is left to do: what moves the robot may go on without a watchdog."""

    def _declare(self, name: str) -> float:
        default, low, high, meaning = PARAMETERS[name]
        bounds = FloatingPointRange(from_value=low, to_value=high)
        return float(self.declare_parameter(name, default, ParameterDescriptor(
            description=meaning, read_only=True, floating_point_range=[bounds])).value)

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        # Not a number is not zero either.
        moving = any((linear.x, linear.y, linear.z, angular.x, angular.y, angular.z))
        if not moving and stamp_to_ns(message.header.stamp) in self._own_stamps:
            return
        self._counts["commands"] += 1
        self._frame_id = message.header.frame_id
        self._silence.hear(moving, self._now_ns(), self._wall_ns())
        if not moving:
            self._checks.cancel()
        elif self._checks.is_canceled():
            self._checks.reset()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        self._silence.rebase(self._now_ns())

    def _check(self) -> None:
        spoke = self._silence.speaking
        count = self._silence.count_zeros(self._now_ns(), self._wall_ns())
        for _ in range(count):
            self._send_zero()
        if count and not spoke:
            self._counts["silences"] += 1
            self.get_logger().warning(f"no command for {self._timeout_s:g} s on {interface.TWIST.name} while the robot "
                                      "moves; zero velocity is sent; is the policy alive?")
        if not self._silence.armed:
            self._checks.cancel()

    def _send_zero(self) -> None:
        stamp_ns = int(self.get_clock().now().nanoseconds)
        self._own_stamps.append(stamp_ns)
        self._counts["zeros"] += 1
        self._zeros_out.publish(encode_twist(np.zeros(3), np.zeros(3), stamp_ns, self._frame_id))

    def _publish_diagnostics(self) -> None:
        if self._silence.speaking:
            level, sentence = DiagnosticStatus.ERROR, "no commands come; zero velocity is sent"
        else:
            level = DiagnosticStatus.OK
            sentence = "the robot moves" if self._silence.armed else "the robot rests"
        self._diagnostics.publish(DiagnosticArray(
            header=make_header(int(self.get_clock().now().nanoseconds), ""),
            status=[DiagnosticStatus(
                name=f"{self.get_name()}: commands", level=level, message=sentence, hardware_id="none",
                values=[KeyValue(key=f"count.{key}", value=str(value)) for key, value in self._counts.items()])]))

    def _now_ns(self) -> int:
        clock = cast(ROSClock, self.get_clock())
        return int(clock.now().nanoseconds) if clock.ros_time_is_active else self._wall_ns()

    def _wall_ns(self) -> int:
        return int(self._wall.now().nanoseconds)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(WatchdogNode, args)


if __name__ == "__main__":
    sys.exit(main())
