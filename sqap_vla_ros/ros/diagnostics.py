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

"""What happened, to the log and to two topics.

``~/latency`` has one message per inference; ``/diagnostics`` sums up once a second and says in one sentence how things
stand. Neither is a safety channel.
"""

from __future__ import annotations

import traceback

from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.lifecycle import LifecycleNode

from sqap_vla_ros.data import Inference
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.policy.safety import age_s
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.health import Health, Summary

# A jump of simulated time looks like a lost camera until the next picture is there.
HOLD_TOLD_S = 0.3


class Reporter:
    """Counts, logs, publishes.

    :param node: a lifecycle node; ``~/latency`` is silent unless it is active
    """

    def __init__(self, node: LifecycleNode) -> None:
        self.health = Health(node.get_name())
        self._node = node
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._held_for, self._held_since_ns, self._hold_told = "", 0, False
        self._diagnostics = interface.advertise(node, interface.DIAGNOSTICS)
        self._latency = interface.advertise_managed(node, interface.LATENCY)

    def note(self, kind: str, sentence: str) -> None:
        """Count something that went wrong; log it unless it was just logged."""
        if self.health.note(kind, sentence, self._wall.now().nanoseconds):
            self._node.get_logger().warning(sentence)

    def note_failure(self, kind: str, error: Exception) -> None:
        """As :meth:`note`; what nobody foresaw is logged with its traceback."""
        foreseen = isinstance(error, SqapError)
        self.note(kind, str(error) if foreseen else f"{type(error).__name__}: {error}")
        if not foreseen:
            self._node.get_logger().error("".join(traceback.format_exception(error)))

    def watch_hold(self, kind: str, sentence: str) -> None:
        """Note a hold once, when it has lasted for a moment.

        :param kind: name of its counter; empty while the robot moves, or holds for what is counted elsewhere
        :param sentence: why
        """
        now_ns = self._wall.now().nanoseconds
        if kind != self._held_for:
            self._held_for, self._held_since_ns, self._hold_told = kind, now_ns, False
        if kind and not self._hold_told and now_ns - self._held_since_ns >= HOLD_TOLD_S * 1e9:
            self._hold_told = True
            self.note(kind, sentence)

    def tell_inference(self, inference: Inference, protection: str, now_ns: int, *, deadline_ms: float,
                       engine: str, dropped: str = "") -> None:
        """Publish one inference whose first command has just left, or that is dropped; see :meth:`Health.latency`."""
        age_ms = 1e3 * age_s(inference.chunk.stamp_ns, now_ns)
        self.health.record(inference, age_ms, self._wall.now().nanoseconds, deadline_ms=deadline_ms)
        self._latency.publish(self.health.latency(inference, age_ms, protection, now_ns, engine, dropped))

    def tell_summary(self, summary: Summary, now_ns: int) -> None:
        """Publish how things stand."""
        self._diagnostics.publish(self.health.summary(summary, now_ns, self._wall.now().nanoseconds))
