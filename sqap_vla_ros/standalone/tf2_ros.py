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

"""``tf2_ros`` in Python: buffer, listener and broadcasters with the errors of the real one.

Time-travelling lookups through a fixed frame, waiting for a transform with a future, frame graphs and listeners that
spin their node themselves are not offered.
"""

from __future__ import annotations

from collections.abc import Iterable

from geometry_msgs.msg import TransformStamped
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.standalone.tf2_buffer import (
    Buffer,
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TimeoutException,
    TransformException,
)

__all__ = ["Buffer", "ConnectivityException", "ExtrapolationException", "InvalidArgumentException", "LookupException",
           "StaticTransformBroadcaster", "TimeoutException", "TransformBroadcaster", "TransformException",
           "TransformListener"]


class TransformListener:
    """Fill a buffer from ``/tf`` and ``/tf_static``.

    :param buffer: what to fill
    :param node: whose executor receives
    :param qos: profile or depth for ``/tf``
    :param static_qos: profile or depth for ``/tf_static``
    """

    def __init__(self, buffer: Buffer, node: Node, *, qos: QoSProfile | int | None = None,
                 static_qos: QoSProfile | int | None = None) -> None:
        self.buffer, self.node = buffer, node
        group = ReentrantCallbackGroup()
        self.tf_sub = node.create_subscription(TFMessage, "/tf", self.callback, 100 if qos is None else qos,
                                               callback_group=group)
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.tf_static_sub = node.create_subscription(TFMessage, "/tf_static", self.static_callback,
                                                      latched if static_qos is None else static_qos,
                                                      callback_group=group)

    def unregister(self) -> None:
        """Stop listening."""
        self.node.destroy_subscription(self.tf_sub)
        self.node.destroy_subscription(self.tf_static_sub)

    def callback(self, data: TFMessage) -> None:
        """Take moving frames."""
        for transform in data.transforms:
            self.buffer.set_transform(transform, "default_authority")

    def static_callback(self, data: TFMessage) -> None:
        """Take fixed frames."""
        for transform in data.transforms:
            self.buffer.set_transform_static(transform, "default_authority")


class TransformBroadcaster:
    """Publish moving frames on ``/tf``."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None) -> None:
        self.pub_tf = node.create_publisher(TFMessage, "/tf", 100 if qos is None else qos)

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        """Publish one frame or several."""
        single = isinstance(transform, TransformStamped)
        self.pub_tf.publish(TFMessage(transforms=[transform] if single else list(transform)))


class StaticTransformBroadcaster:
    """Publish fixed frames on ``/tf_static``; who comes late gets all that were ever sent, as from ROS Jazzy on."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None) -> None:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.pub_tf = node.create_publisher(TFMessage, "/tf_static", latched if qos is None else qos)
        self._sent: dict[str, TransformStamped] = {}

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        """Publish one frame or several; a frame sent before is replaced."""
        transforms = [transform] if isinstance(transform, TransformStamped) else list(transform)
        self._sent.update((item.child_frame_id, item) for item in transforms)
        self.pub_tf.publish(TFMessage(transforms=list(self._sent.values())))
