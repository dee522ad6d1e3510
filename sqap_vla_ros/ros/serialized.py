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

"""Messages with much data, read where they lie.

rclpy makes C structures and then Python objects of a message and copies each byte of a picture several times over; this
takes 1.4 ms for 640 x 480 px, on the executor's thread. Of the serialized message only a view is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from rosbags.typesys import Stores, get_typestore

from sqap_vla_ros.ros.interface import Endpoint

# Messages of sensors are the same in every distribution.
_STORE = get_typestore(Stores.ROS2_HUMBLE)


def subscribe_serialized(node: Node, endpoint: Endpoint, callback: Callable[[Any], None]) -> Subscription:
    """Create the receiving end of a topic whose messages are large.

    :param callback: receives messages with the fields of the type, arrays of numbers as NumPy arrays, read-only
    """
    assert endpoint.qos is not None, f"{endpoint.name} is not a topic"

    def read(data: Any) -> None:
        callback(_STORE.deserialize_cdr(data, endpoint.type_name))

    return node.create_subscription(endpoint.type, endpoint.name, read, endpoint.qos.profile(), raw=True)
