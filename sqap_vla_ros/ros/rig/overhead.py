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

"""`rig_operator` for measuring: has the robot move, and notes when each command came."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from geometry_msgs.msg import TwistStamped

from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.policy_client import PolicyClient
from sqap_vla_ros.ros.rig.stand_in import read_mark
from sqap_vla_ros.ros.rig.timed_policy import Span

NODE_NAME = "rig_operator"
INSTRUCTION = "go"
_QUEUE = 1000
_POLL_S = 0.1


class OverheadOperator(PolicyClient):
    """See the module's docstring; ``first_arrivals`` has the first command of each answer by its mark, ns.

    :param policy: name of the policy's node
    :param check: called while waiting; raises when a process has ended
    """

    def __init__(self, policy: str, check: Callable[[], None]) -> None:
        super().__init__(NODE_NAME, policy, check)
        self.first_arrivals: dict[int, int] = {}
        self._listen_with_arrival(interface.TWIST, self._on_twist, _QUEUE)

    def start(self) -> None:
        """Start the policy and give the instruction."""
        self.start_policy()
        self._give_instruction(INSTRUCTION)

    def watch(self, duration_s: float, on_time: Callable[[float], None]) -> None:
        """Let time pass, commands come.

        :param on_time: told now and then how much has passed, s
        """
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < duration_s:
            on_time(passed_s)
            until_s = min(time.monotonic() + _POLL_S, began_s + duration_s)
            while (left_s := until_s - time.monotonic()) > 0.0:
                self._spin(left_s)

    def _on_twist(self, message: TwistStamped, at_ns: int) -> None:
        if message.twist.linear.x > 0.0:
            self.first_arrivals.setdefault(read_mark(message.twist.linear.x), at_ns)


def read_sent(file: Path) -> dict[int, int]:
    """What the robot has written."""
    return {int(stamp): at_ns for stamp, at_ns in json.loads(file.read_text(encoding="utf-8")).items()}


def measure_delays(spans: Sequence[Span], sent_ns: dict[int, int], first_arrivals: dict[int, int], since_ns: int
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Delays before and behind each inference.

    :param spans: inferences in the order of their marks
    :param sent_ns: when the picture of each stamp was given to ROS to be published, ns
    :param first_arrivals: when the first command of each mark came, ns
    :param since_ns: inferences that began earlier are left out
    :return: (N,) ms from a picture's publication to the beginning of its inference, and (M,) ms from the end of an
        inference to the arrival of its first command; M is less than N where a command never came
    """
    counted = [(mark, span) for mark, span in enumerate(spans) if span.began_ns >= since_ns]
    before = [span.began_ns - sent_ns[span.stamp_ns] for _, span in counted]
    behind = [first_arrivals[mark] - span.ended_ns for mark, span in counted if mark in first_arrivals]
    return np.array(before) * 1e-6, np.array(behind) * 1e-6
