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

"""`demo_operator`: the person at the simulated robot: gives an instruction, lays out a scene, watches what happens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from sqap_vla_ros.data import Episode, EpisodeResult, StageTimes
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.policy_client import ANSWER_TIMEOUT_S, START_TIMEOUT_S, PolicyClient

NODE_NAME = "demo_operator"
EPISODE_TIMEOUT_S = 120.0
_NOT_STAGES = ("total_ms", "image_age_ms")


class Operator(PolicyClient):
    """One operator on one ROS domain.

    :param robot: name of the simulated robot's node
    :param policy: name of the policy's node
    :param check: called while waiting; raises when waiting has become pointless; see also :meth:`watching`
    :param watch: whether the overlay is wanted, which the policy draws only for subscribers
    """

    def __init__(self, robot: str, policy: str, check: Callable[[], None], *, watch: bool) -> None:
        super().__init__(NODE_NAME, policy, check)
        self._robot = robot
        self._outcome: dict[str, str] = {}
        self._latencies: list[dict[str, str]] = []
        self._pictures: list[tuple[int, Image]] = []
        self._listen(robot, interface.OUTCOME, self._on_outcome)
        self._listen(policy, interface.LATENCY, self._on_latency)
        if watch:
            self._listen(policy, interface.OVERLAY, self._on_overlay)
        self._new_scene = self._client(Trigger, robot, interface.NEW_SCENE.name)
        self._set_parameters = self._client(SetParameters, robot, "~/set_parameters")

    def start_robot(self) -> None:
        """Wait until the simulated robot plays.

        :raises SqapError: when it does not within ``START_TIMEOUT_S``
        """
        self._outcome = {}
        self._wait(lambda: bool(self._outcome), START_TIMEOUT_S, f"{self._robot} did not come up")

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

    def _lay_out(self, episode: Episode) -> None:
        request = SetParameters.Request(parameters=[
            Parameter(f"scene.{name}", value=value).to_parameter_msg()
            for name, value in (("seed", episode.seed), ("task", episode.task), ("color", episode.color))])
        refused = [result.reason for result in self._call(self._set_parameters, request, ANSWER_TIMEOUT_S).results
                   if not result.successful]
        if refused:
            raise SqapError(f"{self._robot} refused its scene parameters: {'; '.join(refused)}")
        answer = self._call(self._new_scene, Trigger.Request(), ANSWER_TIMEOUT_S)
        if not answer.success:
            raise SqapError(f"{self._robot} refused the scene: {answer.message}")

    def _on_outcome(self, message: DiagnosticStatus) -> None:
        self._outcome = {entry.key: entry.value for entry in message.values}

    def _on_latency(self, message: DiagnosticArray) -> None:
        self._latencies += [{entry.key: entry.value for entry in status.values} for status in message.status]

    def _on_overlay(self, message: Image) -> None:
        self._pictures.append((codecs.stamp_to_ns(message.header.stamp), message))


def _read_times(values: dict[str, str]) -> StageTimes:
    return StageTimes({key.removesuffix("_ms"): float(value) for key, value in values.items()
                       if key.endswith("_ms") and key not in _NOT_STAGES})
