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

"""The node's two rhythms, the control cycle and the commands; both are slower while the robot rests.

rclpy takes about a millisecond of a core for each beat, and a robot that has stood still for a while is told so often
enough at ``REST_HZ``, which is still above what MoveIt Servo wants.
"""

from __future__ import annotations

from collections.abc import Callable

from rclpy.clock import Clock
from rclpy.node import Node
from rclpy.timer import Timer

from sqap_vla_ros.knobs import ControlKnobs

# After so long a rest, control cycle and commands run at these rates at most.
REST_AFTER_NS, REST_HZ = 1_000_000_000, (5.0, 20.0)
# So many periods since the last command are a stall of the executor.
_STALL_PERIODS = 1.5


class Beats:
    """Two timers on wall time.

    :param node: whose executor calls back
    :param clock: steady
    :param on_tick: called at ``control_hz``
    :param on_command: called at ``command_hz``
    """

    def __init__(self, node: Node, clock: Clock, on_tick: Callable[[], None], on_command: Callable[[], None]) -> None:
        self._node, self._clock, self._callbacks = node, clock, (on_tick, on_command)
        self._timers: list[Timer] = []
        self._resting, self._moved_ns = False, 0
        self._asked_ns = 0
        # What the node's clock showed when a stall was over, and when that was.
        self._stall: tuple[int, int] | None = None

    def start(self, control: ControlKnobs) -> None:
        """Begin to beat."""
        self._resting, self._stall = False, None
        self._moved_ns = self._asked_ns = self._clock.now().nanoseconds
        self._timers = [self._node.create_timer(1.0 / rate_hz, callback, clock=self._clock)
                        for rate_hz, callback in zip(_rates(control), self._callbacks, strict=True)]

    def stop(self) -> None:
        """Beat no more."""
        for timer in self._timers:
            self._node.destroy_timer(timer)
        self._timers = []

    def note(self, control: ControlKnobs, *, moves: bool) -> None:
        """A command has left.

        :param moves: whether it was one to move
        """
        now_ns = self._clock.now().nanoseconds
        self._moved_ns = now_ns if moves else self._moved_ns
        if self._resting != (now_ns - self._moved_ns > REST_AFTER_NS):
            self._resting = not self._resting
            self.tune(control)

    def comes_behind_a_stall(self, now_ns: int) -> bool:
        """Whether the executor stood still until a moment ago, and /clock may have moved on meanwhile.

        rclpy serves timers before topics, so a command right behind a stall would bear the time from before it. It
        waits until the clock has moved, or has had one period to do so.

        :param now_ns: what the node's clock shows; this is asked before each command
        """
        wall_ns, period_ns = self._clock.now().nanoseconds, self._timers[1].timer_period_ns
        gap_ns, self._asked_ns = wall_ns - self._asked_ns, wall_ns
        if self._stall is None and gap_ns > _STALL_PERIODS * period_ns:
            self._stall = now_ns, wall_ns
        elif self._stall is not None and (now_ns != self._stall[0] or wall_ns - self._stall[1] >= period_ns):
            self._stall = None
        return self._stall is not None

    def tune(self, control: ControlKnobs) -> None:
        """Take up changed rates."""
        for timer, rate_hz, rest_hz in zip(self._timers, _rates(control), REST_HZ, strict=False):
            period_ns = round(1e9 / (min(rate_hz, rest_hz) if self._resting else rate_hz))
            if period_ns != timer.timer_period_ns:
                timer.timer_period_ns = period_ns
                timer.reset()  # else the next beat comes when it was to come before


def _rates(control: ControlKnobs) -> tuple[float, float]:
    return control.control_hz, control.command_hz
