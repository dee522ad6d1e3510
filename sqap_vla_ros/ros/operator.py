"""`demo_operator`: the person at the robot, as a node: gives an instruction, lays out a scene, watches what happens.

It sees nothing but topics and services, so it works with any two nodes that keep to the interface.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import try_shutdown
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from sqap_vla_ros.data import Episode, EpisodeResult, StageTimes
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.interface import Endpoint

NODE_NAME = "demo_operator"
POLL_S = 0.2
# A cold start imports torch from disk.
START_TIMEOUT_S = 180.0
CONFIGURE_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 20.0
EPISODE_TIMEOUT_S = 120.0
# How long an instruction may go unheard before it is said again.
REPEAT_S = 2.0
_NOT_STAGES = ("total_ms", "image_age_ms")


class Operator:
    """One operator on one ROS domain.

    :param robot: name of the simulated robot's node
    :param policy: name of the policy's node
    :param check: called while waiting; raises when waiting has become pointless; see also :meth:`watching`
    :param watch: whether the overlay is wanted, which the policy draws only for subscribers
    """

    def __init__(self, robot: str, policy: str, check: Callable[[], None], *, watch: bool) -> None:
        self._robot, self._policy, self._check = robot, policy, check
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._node = rclpy.create_node(NODE_NAME, context=self._context)
        self._executor.add_node(self._node)
        self._outcome: dict[str, str] = {}
        self._active, self._complaint = "", ""
        self._latencies: list[dict[str, str]] = []
        self._pictures: list[tuple[int, Image]] = []
        self.description: dict[str, str] = {}
        self._instruct = interface.advertise(self._node, interface.INSTRUCTION)
        self._listen(robot, interface.OUTCOME, self._on_outcome)
        self._listen(policy, interface.ACTIVE_INSTRUCTION, self._on_active)
        self._listen(policy, interface.LATENCY, self._on_latency)
        self._listen("", interface.DIAGNOSTICS, self._on_diagnostics)
        if watch:
            self._listen(policy, interface.OVERLAY, self._on_overlay)
        self._new_scene = self._client(Trigger, robot, interface.NEW_SCENE.name)
        self._set_parameters = self._client(SetParameters, robot, "~/set_parameters")
        self._change_state = self._client(ChangeState, policy, "~/change_state")

    def start_robot(self) -> None:
        """Wait until the simulated robot plays.

        :raises SqapError: when it does not within ``START_TIMEOUT_S``
        """
        self._outcome = {}
        self._wait(lambda: bool(self._outcome), START_TIMEOUT_S, f"{self._robot} did not come up")

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

    def play(self, episode: Episode, on_picture: Callable[[np.ndarray], None] | None) -> EpisodeResult:
        """Give the instruction, lay out the scene, wait for the end.

        :param on_picture: receives each (H, W, 3) uint8 overlay of the episode
        :raises SqapError: when a node refuses or stops answering
        """
        self._give_instruction(episode.instruction)
        scene = int(self._outcome["scene"])
        self._latencies, self._pictures = [], []
        self._lay_out(episode)
        self._wait(lambda: int(self._outcome["scene"]) > scene and self._outcome["finished"] == "true",
                   EPISODE_TIMEOUT_S, f"{self._robot} did not finish '{episode.instruction}' in scene {episode.seed}")
        outcome = self._outcome
        begin_ns = int(outcome["start_ns"])
        ours = [values for values in self._latencies if int(values["image_stamp_ns"]) >= begin_ns]
        if on_picture is not None:
            for stamp_ns, message in self._pictures:
                if stamp_ns >= begin_ns:
                    on_picture(codecs.decode_image(message))
        self._pictures = []
        return EpisodeResult(episode, outcome["success"] == "true", int(outcome["steps"]),
                             tuple(_read_times(values) for values in ours),
                             tuple(int(values["kept"]) for values in ours))

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

    def _lay_out(self, episode: Episode) -> None:
        request = SetParameters.Request(parameters=[
            _parameter("scene.seed", episode.seed), _parameter("scene.task", episode.task),
            _parameter("scene.color", episode.color)])
        refused = [result.reason for result in self._call(self._set_parameters, request, ANSWER_TIMEOUT_S).results
                   if not result.successful]
        if refused:
            raise SqapError(f"{self._robot} refused its scene parameters: {'; '.join(refused)}")
        answer = self._call(self._new_scene, Trigger.Request(), ANSWER_TIMEOUT_S)
        if not answer.success:
            raise SqapError(f"{self._robot} refused the scene: {answer.message}")

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

    def _on_outcome(self, message: DiagnosticStatus) -> None:
        self._outcome = {entry.key: entry.value for entry in message.values}

    def _on_active(self, message: String) -> None:
        self._active = message.data

    def _on_latency(self, message: DiagnosticArray) -> None:
        self._latencies += [{entry.key: entry.value for entry in status.values} for status in message.status]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.partition(":")[0] == self._policy:
                values = {entry.key: entry.value for entry in status.values}
                self._complaint = status.message
                if values.get("state") == "active":
                    self.description = {key.removeprefix("policy."): value for key, value in values.items()
                                        if key.startswith("policy.")}

    def _on_overlay(self, message: Image) -> None:
        self._pictures.append((codecs.stamp_to_ns(message.header.stamp), message))

    def _listen(self, node: str, endpoint: Endpoint, callback: Callable[[Any], None]) -> None:
        assert endpoint.qos is not None, f"{endpoint.name} is not a topic"
        self._node.create_subscription(endpoint.type, _resolve(node, endpoint.name), callback, endpoint.qos.profile())

    def _client(self, kind: Any, node: str, name: str) -> Client:
        return self._node.create_client(kind, _resolve(node, name))


def _resolve(node: str, name: str) -> str:
    return name.replace("~", node, 1) if name.startswith("~/") else name


def _parameter(name: str, value: str | int) -> Parameter:
    if isinstance(value, str):
        return Parameter(name=name, value=ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value))
    return Parameter(name=name, value=ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=value))


def _read_times(values: dict[str, str]) -> StageTimes:
    return StageTimes({key.removesuffix("_ms"): float(value) for key, value in values.items()
                       if key.endswith("_ms") and key not in _NOT_STAGES})
