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

"""`policy_node` with a policy that takes a fixed time and remembers when it began and ended; the rest is the real node.

Times are the system clock's, as stamps and DDS's own are, on one machine. They are written when the node ends, so that
nothing is written while it is measured.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import Inference, Observation
from sqap_vla_ros.ros.lifecycle import run_node
from sqap_vla_ros.ros.policy_node import PolicyNode
from sqap_vla_ros.ros.rig.stand_in import StandInPolicy

# As long as a small model needs; another thread may run meanwhile, as beside a GPU.
INFERENCE_S = 0.01


@dataclass(frozen=True)
class Span:
    """One inference; all times in ns of the system clock.

    :param stamp_ns: the picture's stamp
    :param began_ns: when inference began
    :param ended_ns: when its answer was there
    """

    stamp_ns: int
    began_ns: int
    ended_ns: int


class TimedPolicy(StandInPolicy):
    """A stand-in that is watched.

    :param config: as the node has it
    :param spans: where its inferences are noted, in the order of their marks
    """

    def __init__(self, config: Config, spans: list[Span]) -> None:
        super().__init__(config)
        self._spans = spans

    def infer(self, observation: Observation) -> Inference:
        """As the stand-in, after a while."""
        began_ns = time.time_ns()
        time.sleep(INFERENCE_S)
        inference = super().infer(observation)
        self._spans.append(Span(observation.stamp_ns, began_ns, time.time_ns()))
        return inference


class TimedNode(PolicyNode):
    """The node, with one parameter more: ``trace``, the file of the times.

    :param options: passed to rclpy
    """

    def __init__(self, **options: Any) -> None:
        self._spans: list[Span] = []
        super().__init__(lambda config: TimedPolicy(config, self._spans), **options)
        self._trace = Path(self.declare_parameter("trace", "trace.json", ParameterDescriptor(
            description="File of the times.", read_only=True)).value)

    def close(self) -> None:
        """Shut down and write the times."""
        super().close()
        self._trace.write_text(json.dumps([asdict(span) for span in self._spans]) + "\n", encoding="utf-8")


def read_trace(file: Path) -> list[Span]:
    """What a node has written."""
    return [Span(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(TimedNode, args)


if __name__ == "__main__":
    sys.exit(main())
