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

"""`policy_node` with a policy that falls ill when the rig says so; everything else is the real node."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import Any, cast

import numpy as np
from std_msgs.msg import String

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference, Observation
from sqap_vla_ros.errors import InferenceError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.inference import PolicyLike, load_policy
from sqap_vla_ros.ros.lifecycle import run_node
from sqap_vla_ros.ros.policy_node import PolicyNode
from sqap_vla_ros.ros.rig.faults import INFERENCE_HANGS, INFERENCE_NAN, INFERENCE_RACES, INFERENCE_RAISES
from sqap_vla_ros.ros.rig.stand_in import STAND_IN, StandInPolicy

_HASTE = 100.0


class Illness:
    """The fault that is on; set by the executor's thread, read by the inference's."""

    def __init__(self) -> None:
        self._now = ("", threading.Event())

    @property
    def now(self) -> tuple[str, threading.Event]:
        """Name of the fault, empty when all is well, and what is set when it ends."""
        return self._now

    def set(self, name: str) -> None:
        """Another fault is on; what hangs goes on."""
        (_, ended), self._now = self._now, (name, threading.Event())
        ended.set()


class FaultyPolicy:
    """A policy, well or ill; all but ``infer`` is the policy's own.

    :param policy: the policy
    :param illness: what it suffers from
    """

    def __init__(self, policy: PolicyLike, illness: Illness) -> None:
        self._policy, self._illness, self._raised = policy, illness, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def infer(self, observation: Observation) -> Inference:
        """As the policy, unless it is ill."""
        name, ended = self._illness.now
        if name == INFERENCE_RAISES.name:
            self._raised += 1
            if self._raised % 2:
                raise InferenceError("the rig had the policy fail")
            raise ZeroDivisionError("the rig had the policy fail in a way that nobody foresaw")
        if name == INFERENCE_HANGS.name:
            ended.wait()
        inference = self._policy.infer(observation)
        steps = inference.chunk.steps
        if name == INFERENCE_NAN.name:
            steps = np.where(np.arange(steps.shape[1]) == 1, np.nan, steps)
        elif name == INFERENCE_RACES.name:
            steps = steps * np.where(np.arange(steps.shape[1]) < 6, _HASTE, 1.0)
        return replace(inference, chunk=replace(inference.chunk, steps=steps))


class FaultyNode(PolicyNode):
    """The node, and an ear for the rig.

    :param options: passed to rclpy
    """

    def __init__(self, **options: Any) -> None:
        self._illness = Illness()
        super().__init__(self._build, **options)
        interface.subscribe(self, interface.FAULT, self._on_fault)

    def _build(self, config: Config) -> PolicyLike:
        policy = StandInPolicy(config) if config.model.checkpoint == STAND_IN else load_policy(config)
        return cast(PolicyLike, FaultyPolicy(policy, self._illness))

    def _on_fault(self, message: String) -> None:
        self._illness.set(message.data)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(FaultyNode, args)


if __name__ == "__main__":
    sys.exit(main())
