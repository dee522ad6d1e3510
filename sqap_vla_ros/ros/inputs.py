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

"""What an inference sees, gathered from topics: pictures of all cameras from about one moment, and the robot's joints.

Only the newest counts. What is missing or does not go together is told in a sentence, never filled in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.orientation import axis_angle, roll_pitch_yaw
from sqap_vla_ros.knobs import InputKnobs
from sqap_vla_ros.policy.safety import age_s
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import decode_compressed, decode_image, decode_joint_positions, stamp_to_ns
from sqap_vla_ros.ros.cycle import Picture
from sqap_vla_ros.ros.serialized import subscribe_serialized
from sqap_vla_ros.ros.transforms import FoundTool

# Pictures of one camera that wait for those of slower ones.
WAITING = 5

Message: TypeAlias = Image | CompressedImage


class Cameras:
    """Pictures and calibrations of all cameras.

    A picture is used once at most, and waits for those of slower cameras while there are at most ``WAITING``.

    :param node: whose executor receives
    :param knobs: cameras, transport and largest skew; :attr:`knobs` may be replaced while the node runs
    :param on_picture: receives every complete set
    :param on_calibration: receives the camera's index and its camera_info; may raise InputError
    :param note: told what is wrong with a camera_info: its kind, 'camera_info', and a sentence
    :param wall_ns: the clock on which pictures arrive, ns
    """

    def __init__(self, node: Node, knobs: InputKnobs, on_picture: Callable[[Picture], None],
                 on_calibration: Callable[[int, CameraInfo], None], note: Callable[[str, str], None],
                 wall_ns: Callable[[], int]) -> None:
        self.knobs = knobs
        self._node, self._note = node, note
        self._on_picture, self._on_calibration = on_picture, on_calibration
        self._wall_ns = wall_ns
        compressed = knobs.transport == "compressed"
        self._decode: Callable[[Message], np.ndarray] = decode_compressed if compressed else decode_image
        picture_end = interface.IMAGE_COMPRESSED if compressed else interface.IMAGE
        ends = [interface.of_camera(picture_end, camera) for camera in knobs.cameras]
        self.topics = tuple(end.name for end in ends)
        self._seen = [False] * len(ends)
        self.clear()
        self._subscriptions: list[Subscription] = []
        for index, (camera, end) in enumerate(zip(knobs.cameras, ends, strict=True)):
            info = interface.of_camera(interface.CAMERA_INFO, camera)
            self._subscriptions += [
                subscribe_serialized(node, end, partial(self._take_picture, index)),
                interface.subscribe(node, info, partial(self._take_calibration, index))]

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def clear(self) -> None:
        """Forget the pictures that wait, after the clock jumped."""
        self._waiting: list[deque[tuple[int, Message]]] = [deque(maxlen=WAITING) for _ in self.topics]

    def decode(self, picture: Picture) -> tuple[np.ndarray, ...]:
        """The picture of each camera, (H, W, 3) uint8 RGB.

        :raises InputError: naming the topic, when one cannot be decoded
        """
        pictures = []
        for topic, message in zip(self.topics, picture.messages, strict=True):
            try:
                pictures.append(self._decode(message))
            except InputError as error:
                raise InputError(f"{topic}: {error}") from error
        return tuple(pictures)

    @property
    def why_incomplete(self) -> str:
        """What the next set still lacks, in a sentence; empty when nothing waits for anything."""
        unseen = [topic for topic, seen in zip(self.topics, self._seen, strict=True) if not seen]
        if unseen:
            return f"no image has arrived on {', '.join(unseen)}"
        missing = [topic for topic, waiting in zip(self.topics, self._waiting, strict=True) if not waiting]
        if missing:
            return "" if len(missing) == len(self.topics) else f"no newer image has arrived on {', '.join(missing)}"
        stamps = [stamp_ns for stamp_ns, _ in self._nearest()]
        first, last = stamps.index(min(stamps)), stamps.index(max(stamps))
        return (f"the image on {self.topics[first]} is {age_s(stamps[first], stamps[last]):.3f} s older than that on "
                f"{self.topics[last]}; allowed are {self.knobs.max_skew_s:g} s, which is input.max_skew_s; synchronise "
                "the cameras or their clocks")

    def _take_calibration(self, index: int, message: CameraInfo) -> None:
        try:
            self._on_calibration(index, message)
        except InputError as error:
            self._note("camera_info", str(error))

    def _take_picture(self, index: int, message: Message) -> None:
        stamp_ns, waiting = stamp_to_ns(message.header.stamp), self._waiting[index]
        self._seen[index] = True
        # A camera that began anew, or a bag that did.
        while waiting and waiting[-1][0] >= stamp_ns:
            waiting.pop()
        waiting.append((stamp_ns, message))
        if all(self._waiting):
            nearest = self._nearest()
            oldest_ns, newest_ns = min(stamp for stamp, _ in nearest), max(stamp for stamp, _ in nearest)
            if newest_ns - oldest_ns <= round(self.knobs.max_skew_s * 1e9):
                self._deliver(nearest, oldest_ns)

    def _nearest(self) -> list[tuple[int, Message]]:
        # Of each camera the image nearest to the newest of the slowest camera.
        slowest_ns = min(waiting[-1][0] for waiting in self._waiting)
        return [min(waiting, key=lambda entry: abs(entry[0] - slowest_ns)) for waiting in self._waiting]

    def _deliver(self, images: list[tuple[int, Message]], stamp_ns: int) -> None:
        for waiting, (used_ns, _) in zip(self._waiting, images, strict=True):
            while waiting and waiting[0][0] <= used_ns:
                waiting.popleft()
        self._on_picture(Picture(tuple(message for _, message in images), stamp_ns,
                                 self._wall_ns()))


class JointStates:
    """The newest position of every joint that the model reads; several publishers may share the topic.

    :param node: whose executor receives
    :param knobs: which state, of which joints
    """

    def __init__(self, node: Node, knobs: InputKnobs) -> None:
        self._node, self._kind = node, knobs.state
        self._joints = tuple(name for name in knobs.joints if name) if knobs.state != "none" else ()
        self.clear()
        self._subscription = interface.subscribe(node, interface.JOINT_STATES, self._take) if self._joints else None

    def close(self) -> None:
        """Stop listening."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)

    def clear(self) -> None:
        """Forget all positions, after the clock jumped."""
        self._newest: dict[str, tuple[float, int]] = {}
        self._problem = ""

    def age_s(self, now_ns: int) -> float | None:
        """Age of the oldest position that is in use, s; None where none is."""
        return max((age_s(stamp_ns, now_ns) for _, stamp_ns in self._newest.values()), default=None)

    def state(self, now_ns: int, max_age_s: float, tool: FoundTool | None) -> np.ndarray | None:
        """The robot's state as the model reads it.

        :param now_ns: the node's clock
        :param max_age_s: how far a position's stamp may lie from it, s
        :param tool: the tool's pose in the base frame, for a state that begins with it
        :return: (D,) float64, m and rad; None when input.state is 'none'
        :raises InputError: when a joint or the tool is missing, too old or not finite
        """
        if self._kind == "none":
            return None
        joints = [self._position(joint, now_ns, max_age_s) for joint in self._joints]
        if self._kind == "joints":
            return np.array(joints)
        if tool is None or tool.pose is None:
            reason = "it was not looked for" if tool is None else tool.reason
            raise InputError(f"the tool's pose, which input.state '{self._kind}' begins with, is not known: {reason}")
        turn = axis_angle if self._kind == "pose_axis_angle" else roll_pitch_yaw
        return np.concatenate((tool.pose[0], turn(tool.pose[1]), joints))

    def _position(self, joint: str, now_ns: int, max_age_s: float) -> float:
        topic, problem = interface.JOINT_STATES.name, f"; {self._problem}" if self._problem else ""
        if joint not in self._newest:
            known = f"of input.joints only {', '.join(self._newest)} are" if self._newest else "nor is any other"
            raise InputError(f"no position of joint '{joint}' is on {topic}, {known}{problem}")
        value, stamp_ns = self._newest[joint]
        age = age_s(stamp_ns, now_ns)
        if abs(age) > max_age_s:
            direction = "old" if age > 0.0 else "ahead of the node's clock"
            raise InputError(f"the position of joint '{joint}' on {topic} is {abs(age):.3f} s {direction}; allowed are "
                             f"{max_age_s:g} s{problem}")
        if not np.isfinite(value):
            raise InputError(f"the position of joint '{joint}' on {topic} is {value}; it must be finite")
        return value

    def _take(self, message: JointState) -> None:
        try:
            positions = decode_joint_positions(message)
        except InputError as error:
            self._problem = str(error)
            return
        stamp_ns, self._problem = stamp_to_ns(message.header.stamp), ""
        self._newest |= {joint: (positions[joint], stamp_ns) for joint in self._joints if joint in positions}
