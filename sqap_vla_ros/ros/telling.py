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

"""The answer in force told to people and planners: where the tool would be after each of its steps."""

from __future__ import annotations

import numpy as np
from rclpy.lifecycle import LifecycleNode

from sqap_vla_ros.data import ActionChunk
from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.policy.chunk import step_velocity
from sqap_vla_ros.policy.limits import PoseTarget
from sqap_vla_ros.ros.command_codecs import ToolPose, encode_chunk, encode_path
from sqap_vla_ros.ros.interface import CHUNK, PATH, advertise_managed


class ChunkTeller:
    """Publishes each answer as a trajectory and as a path, each only while someone subscribes to it.

    :param node: a lifecycle node; it is silent unless active
    :param knobs: names of the frames
    """

    def __init__(self, node: LifecycleNode, knobs: ControlKnobs) -> None:
        self._node, self._base, self._tool = node, knobs.base_frame, knobs.tool_frame
        self._chunk, self._path = (advertise_managed(node, end) for end in (CHUNK, PATH))

    @property
    def wanted(self) -> bool:
        """Whether someone subscribes."""
        return bool(self._chunk.get_subscription_count() + self._path.get_subscription_count() > 0)

    def tell(self, chunk: ActionChunk, tool: ToolPose) -> None:
        """Publish one answer.

        :param chunk: the actions, as the policy gave them
        :param tool: where the tool was at the image's stamp
        """
        # What is not finite is refused, and told, where it would become a command.
        if not self.wanted or not np.isfinite(chunk.steps).all():
            return
        poses = foresee(chunk, tool)
        if self._chunk.get_subscription_count() > 0:
            self._chunk.publish(encode_chunk(chunk, poses, self._base, self._tool))
        if self._path.get_subscription_count() > 0:
            self._path.publish(encode_path(chunk, poses, self._base))

    def close(self) -> None:
        """Take down the ROS ends."""
        for publisher in (self._chunk, self._path):
            self._node.destroy_lifecycle_publisher(publisher)


def foresee(chunk: ActionChunk, tool: ToolPose) -> list[ToolPose]:
    """Poses of the tool in the base frame after each of T steps that begin at ``tool``."""
    target = PoseTarget()
    target.start(*tool)
    return [target.advance(step_velocity(chunk, index), chunk.step_period_ns * 1e-9)
            for index in range(len(chunk.steps))]
