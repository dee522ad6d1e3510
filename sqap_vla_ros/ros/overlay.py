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

"""The overlay picture of each inference, drawn beside the control loop: it takes longer than a command may wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image

from sqap_vla_ros.data import Inference, Observation
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.policy.overlay import draw_overlay
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import encode_image
from sqap_vla_ros.ros.worker import LatestWorker


@dataclass(frozen=True)
class OverlayRequest:
    """What is drawn.

    :param observation: what the policy saw
    :param inference: what it made of it
    :param image_map: camera pixels to model pixels
    :param model_size: side of the model's picture, px
    :param frame_id: of the image
    """

    observation: Observation
    inference: Inference
    image_map: ImageMap
    model_size: int
    frame_id: str


class OverlayPublisher:
    """Draws in a thread of its own, newest first, and only while someone subscribes.

    :param node: a lifecycle node; it is silent unless active
    :param tell: called with an exception of the drawing
    """

    def __init__(self, node: LifecycleNode, tell: Callable[[Exception], None]) -> None:
        self._node, self._tell = node, tell
        self._publisher = interface.advertise_managed(node, interface.OVERLAY)
        self._drawn = node.create_guard_condition(self._publish)
        self._worker = LatestWorker(encode_overlay, self._drawn.trigger, "overlay")

    @property
    def wanted(self) -> bool:
        """Whether someone subscribes."""
        return bool(self._publisher.get_subscription_count() > 0)

    def offer(self, request: OverlayRequest) -> None:
        """Draw this next."""
        self._worker.offer(request)

    def close(self, timeout_s: float) -> bool:
        """End the thread and take down the ROS ends; false when the thread did not end in time."""
        ended = self._worker.stop(timeout_s)
        self._node.destroy_guard_condition(self._drawn)
        self._node.destroy_lifecycle_publisher(self._publisher)
        return ended

    def _publish(self) -> None:
        for outcome in self._worker.collect():
            if outcome.error is not None:
                self._tell(outcome.error)
            else:
                self._publisher.publish(outcome.result)


def encode_overlay(request: OverlayRequest) -> Image:
    """Draw the first camera's picture; the message carries the image's own stamp and frame."""
    observation, inference = request.observation, request.inference
    caption = f"{observation.instruction}   {inference.times.total_ms:.0f} ms"
    if observation.footprint_reason:
        caption += f"   not protected: {observation.footprint_reason}"
    picture = draw_overlay(observation.images[0], inference.tokens[0], observation.footprints[0], request.image_map,
                           caption, model_size=request.model_size)
    return encode_image(picture, observation.stamp_ns, request.frame_id)
