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

"""A person at the policy's node, as a node: starts it, gives instructions, reads what it says of itself.

It sees nothing but topics and services.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.utilities import try_shutdown
from std_msgs.msg import String

from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.interface import Endpoint

POLL_S = 0.2
# A cold start imports torch from disk.
START_TIMEOUT_S = 180.0
CONFIGURE_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 20.0
# How long an instruction may go unheard before it is said again.
REPEAT_S = 2.0


class PolicyClient:
    """One client on one ROS domain.

    :param name: of its own node
    :param policy: name of the policy's node
    :param check: called while waiting; raises when waiting has become pointless; see also :meth:`watching`
    """

    def __init__(self, name: str, policy: str, check: Callable[[], None]) -> None:
        self._policy, self._check = policy, check
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._node = rclpy.create_node(name, context=self._context)
        self._executor.add_node(self._node)
        self._active, self._complaint = "", ""
        self.description: dict[str, str] = {}
        self._instruct = interface.advertise(self._node, interface.INSTRUCTION)
        self._listen(policy, interface.ACTIVE_INSTRUCTION, self._on_active)
        self._listen("", interface.DIAGNOSTICS, self._on_diagnostics)
        self._change_state = self._client(ChangeState, policy, "~/change_state")

    @contextmanager
    def watching(self, *checks: Callable[[], None]) -> Iterator[None]:
        """Call other checks while waiting, for as long as the context lasts."""
        before = self._check

        def check_all() -> None:
            for check in checks:
                check()

        self._check = check_all
        try:
            yield
        finally:
            self._check = before

    def start_policy(self) -> None:
        """Configure and activate the policy's node and wait until it says what it runs.

        :raises SqapError: when it cannot be configured, or does not answer
        """
        self._active = ""
        for transition, timeout_s, what in ((Transition.TRANSITION_CONFIGURE, CONFIGURE_TIMEOUT_S, "configured"),
                                            (Transition.TRANSITION_ACTIVATE, ANSWER_TIMEOUT_S, "activated")):
            # What a predecessor said may still be in the queue before the first answer, never after it.
            self.description = {}
            request = ChangeState.Request(transition=Transition(id=transition))
            if not self._call(self._change_state, request, timeout_s).success:
                raise SqapError(f"{self._policy} could not be {what}")
        self._wait(lambda: bool(self.description), ANSWER_TIMEOUT_S,
                   f"{self._policy} did not say on {interface.DIAGNOSTICS.name} what it runs")

    def close(self) -> None:
        """Leave the domain."""
        self._executor.shutdown()
        self._node.destroy_node()
        try_shutdown(context=self._context)

    def _give_instruction(self, text: str) -> None:
        self._complaint = ""
        deadline, repeat = time.monotonic() + ANSWER_TIMEOUT_S, 0.0
        while self._active != text:
            now = time.monotonic()
            if now >= deadline:
                raise SqapError(f"{self._policy} did not take the instruction '{text}'; it says: "
                                f"{self._complaint or 'nothing'}")
            if now >= repeat and self._instruct.get_subscription_count() > 0:
                self._instruct.publish(String(data=text))
                repeat = now + REPEAT_S
            self._spin(POLL_S)

    def _call(self, client: Client, request: Any, timeout_s: float) -> Any:
        self._wait(client.service_is_ready, START_TIMEOUT_S, f"the service {client.srv_name} did not come up")
        future = client.call_async(request)
        self._wait(future.done, timeout_s, f"the service {client.srv_name} did not answer")
        return future.result()

    def _wait(self, condition: Callable[[], bool], timeout_s: float, failure: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                raise SqapError(f"{failure} within {timeout_s:g} s")
            self._spin(POLL_S)

    def _spin(self, timeout_s: float) -> None:
        self._check()
        self._executor.spin_once(timeout_sec=timeout_s)

    def _on_active(self, message: String) -> None:
        self._active = message.data

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.partition(":")[0] == self._policy:
                values = {entry.key: entry.value for entry in status.values}
                self._complaint = status.message
                if values.get("state") == "active":
                    self.description = {key.removeprefix("policy."): value for key, value in values.items()
                                        if key.startswith("policy.")}

    def _listen(self, node: str, endpoint: Endpoint, callback: Callable[[Any], None]) -> None:
        assert endpoint.qos is not None, f"{endpoint.name} is not a topic"
        self._node.create_subscription(endpoint.type, _resolve(node, endpoint.name), callback, endpoint.qos.profile())

    def _listen_with_arrival(self, endpoint: Endpoint, callback: Callable[[Any, int], None], depth: int) -> None:
        """As :meth:`_listen`; the callback gets the system time in ns at which the message came, too."""
        profile = endpoint.qos.profile() if endpoint.qos is not None else None
        assert profile is not None, f"{endpoint.name} is not a topic"
        profile.depth = depth

        def with_info(message: Any, info: dict[str, int]) -> None:
            callback(message, info["received_timestamp"])

        def without_info(message: Any) -> None:
            callback(message, time.time_ns())

        # Humble does not tell when DDS received it, so there the way through the executor is part of the time.
        chosen: Any = with_info if hasattr(Subscription, "CallbackType") else without_info
        self._node.create_subscription(endpoint.type, endpoint.name, chosen, profile)

    def _client(self, kind: Any, node: str, name: str) -> Client:
        return self._node.create_client(kind, _resolve(node, name))


def _resolve(node: str, name: str) -> str:
    return name.replace("~", node, 1) if name.startswith("~/") else name
