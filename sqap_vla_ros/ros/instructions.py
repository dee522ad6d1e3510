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

"""What the robot is asked to do: which sentences are taken, and which one is in force."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode
from rclpy.subscription import Subscription
from std_msgs.msg import String

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.diagnostics import Reporter


class Instructions:
    """The instruction's ROS ends.

    :param node: which listens from :meth:`open` to :meth:`close`
    :param report: where refusals are counted and told
    :param accept: takes each new instruction in force, and why there is none where it is empty
    """

    def __init__(self, node: LifecycleNode, report: Reporter, accept: Callable[[str, str], None]) -> None:
        self._node, self._report, self._accept = node, report, accept
        self._text = ""
        self._check: Callable[[str], None] = lambda text: None
        self._subscription: Subscription | None = None
        self._active = interface.advertise(node, interface.ACTIVE_INSTRUCTION)

    def open(self, check: Callable[[str], None]) -> None:
        """Listen.

        :param check: raises InputError for what may not be asked for
        """
        self._check = check
        self._subscription = interface.subscribe(self._node, interface.INSTRUCTION, self._on_instruction)

    def close(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription, self._check = None, lambda text: None

    def end(self, why: str) -> None:
        """There is no instruction any more, so that motion needs a new one."""
        self._set("", why)

    def _on_instruction(self, message: String) -> None:
        text = message.data.strip()
        if not text:
            self._report.note("empty_instruction", "an empty instruction came; the robot holds")
            self._set("", "the instruction is empty")
            return
        try:
            self._check(text)
        except InputError as error:
            self._report.note("instruction", str(error))
            self._set("", str(error))
            return
        self._set(text)

    def _set(self, text: str, why_none: str = "") -> None:
        # Who says the same again, as `ros2 topic pub` does every second, changes nothing.
        if not text or text != self._text:
            self._text = text
            self._accept(text, why_none)
        self._active.publish(String(data=text))
