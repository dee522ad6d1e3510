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

"""`rig_robot`: a camera, moving frames and a gripper; all are messages only, and all have faults on demand."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from control_msgs.action import GripperCommand
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.action.server import ActionServer, ServerGoalHandle
from rclpy.clock import Clock, ClockType  # type: ignore[attr-defined]
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.lifecycle import run_node
from sqap_vla_ros.ros.rig.faults import BROKEN_IMAGES, CAMERA_STOPS, TF_JUMPS, TF_STOPS, WRONG_STAMPS

NODE_NAME = "rig_robot"
CAMERA_FRAME, BASE_FRAME, HAND_FRAME = "camera_optical_frame", "panda_link0", "panda_hand"
FINGERS = ("panda_leftfinger", "panda_rightfinger")
PARAMETERS: dict[str, tuple[int | float, str]] = {
    "width_px": (320, "Width of the picture."),
    "height_px": (240, "Height of the picture."),
    "rate_hz": (20.0, "Pictures per second of wall time."),
    "seed": (0, "Seed of the picture and of the faults."),
}
_DEPTH_M, _JUMP_M, _HOUR_S = 0.8, 0.3, 3600
_UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
_WIDEST = 2**32 - 1


def break_picture(kind: str, picture: Image) -> Image:
    """A picture that is none.

    :param kind: one of :data:`BROKEN`
    :param picture: a right one, rgb8
    """
    width, height, data = picture.width, picture.height, bytes(picture.data)
    changes = {
        "no data": {"data": b""},
        "half the data": {"data": data[:len(data) // 2]},
        "short rows": {"step": width},
        "no width": {"width": 0},
        "no height": {"height": 0},
        "huge": {"width": _WIDEST, "height": _WIDEST, "step": _WIDEST},
        "no encoding": {"encoding": ""},
        "unknown encoding": {"encoding": "rgb9"},
        "depth": {"encoding": "16UC1", "step": 2 * width, "data": data[:2 * width * height]},
        "not a number": {"encoding": "32FC3", "step": 12 * width, "data": np.full(
            3 * width * height, np.nan, dtype=np.float32).tobytes()},
        "another size": {"width": width // 2, "height": height // 2, "step": 3 * (width // 2),
                         "data": data[:3 * (width // 2) * (height // 2)]},
        "no frame": {"header": codecs.make_header(codecs.stamp_to_ns(picture.header.stamp), "")},
    }[kind]
    fields = {name: getattr(picture, name) for name in picture.get_fields_and_field_types()}
    return Image(**(fields | changes))


BROKEN = ("no data", "half the data", "short rows", "no width", "no height", "huge", "no encoding", "unknown encoding",
          "depth", "not a number", "another size", "no frame")


def choose_wrong_stamps(stamp_ns: int) -> tuple[Time, ...]:
    """Stamps that no picture of now can have."""
    now = codecs.ns_to_stamp(stamp_ns)
    return (Time(), Time(sec=-5, nanosec=0), Time(sec=max(now.sec - _HOUR_S, 0), nanosec=now.nanosec),
            Time(sec=now.sec + _HOUR_S, nanosec=now.nanosec), Time(sec=2**31 - 1, nanosec=999_999_999),
            Time(sec=max(now.sec - 10, 0), nanosec=2**32 - 1))


class RobotNode(Node):
    """See the module's docstring.

    :param options: passed to rclpy
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        width, height, rate_hz, seed = (self.declare_parameter(
            name, default, ParameterDescriptor(description=meaning, read_only=True)).value
            for name, (default, meaning) in PARAMETERS.items())
        self._trace = str(self.declare_parameter("trace", "", ParameterDescriptor(
            description="File of the times at which pictures were sent; empty writes none.", read_only=True)).value)
        self._sent_ns: dict[int, int] = {}
        self._random, self._fault = random.Random(seed), ""
        self._wall = Clock(clock_type=ClockType.STEADY_TIME)
        picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self._picture = codecs.encode_image(picture, 0, CAMERA_FRAME)
        focal_px = float(width)
        self._camera = Camera(np.array([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]]),
                              np.zeros(5), "plumb_bob", width, height)
        self._image, self._info, self._tf, self._tf_static, self._joints = (
            interface.advertise(self, end) for end in (interface.IMAGE, interface.CAMERA_INFO, interface.TF,
                                                       interface.TF_STATIC, interface.JOINT_STATES))
        self._gripper = ActionServer(self, GripperCommand, interface.GRIPPER.name, self._on_gripper_goal)
        interface.subscribe(self, interface.FAULT, self._on_fault)
        self._tf_static.publish(TFMessage(transforms=[codecs.encode_transform(
            BASE_FRAME, CAMERA_FRAME, np.array([0.4, 0.0, -0.4]), _UPRIGHT, 0)]))
        self.create_timer(1.0 / rate_hz, self._on_frame, clock=self._wall)

    def close(self) -> None:
        """Take the gripper away, write the times."""
        self._gripper.destroy()
        if self._trace:
            Path(self._trace).write_text(json.dumps(self._sent_ns) + "\n", encoding="utf-8")

    def _on_fault(self, message: String) -> None:
        self._fault = message.data

    def _on_gripper_goal(self, handle: ServerGoalHandle) -> GripperCommand.Result:
        handle.succeed()
        return GripperCommand.Result(position=handle.request.command.position, reached_goal=True)

    def _on_frame(self) -> None:
        """Transforms, calibration, picture: in the order of their need."""
        stamp_ns = int(self.get_clock().now().nanoseconds)
        if stamp_ns == 0:
            return
        if self._fault != TF_STOPS.name:
            self._publish_frames(stamp_ns)
        self._info.publish(codecs.encode_camera_info(self._camera, stamp_ns, CAMERA_FRAME))
        if self._fault != CAMERA_STOPS.name:
            # Serialized first, so that publishing takes as long as that of a camera driver, which is no Python.
            picture = serialize_message(self._take_picture(stamp_ns))
            if self._trace:
                self._sent_ns[stamp_ns] = time.time_ns()
            self._image.publish(picture)

    def _publish_frames(self, stamp_ns: int) -> None:
        hand = np.array([0.0, 0.0, _DEPTH_M])
        if self._fault == TF_JUMPS.name:
            hand = hand + [self._random.uniform(-_JUMP_M, _JUMP_M) for _ in range(3)]
        places = [(CAMERA_FRAME, HAND_FRAME, hand), (HAND_FRAME, FINGERS[0], np.array([-0.04, 0.0, 0.0])),
                  (HAND_FRAME, FINGERS[1], np.array([0.04, 0.0, 0.0]))]
        self._tf.publish(TFMessage(transforms=[
            codecs.encode_transform(parent, child, place, _UPRIGHT, stamp_ns) for parent, child, place in places]))
        names = [f"panda_joint{number}" for number in range(1, 8)] + ["panda_finger_joint1", "panda_finger_joint2"]
        self._joints.publish(JointState(header=codecs.make_header(stamp_ns, ""), name=names,
                                        position=[0.0] * len(names), velocity=[0.0] * len(names)))

    def _take_picture(self, stamp_ns: int) -> Image:
        self._picture.header.stamp = codecs.ns_to_stamp(stamp_ns)
        if self._fault == BROKEN_IMAGES.name:
            return break_picture(self._random.choice(BROKEN), self._picture)
        if self._fault == WRONG_STAMPS.name:
            self._picture.header.stamp = self._random.choice(choose_wrong_stamps(stamp_ns))
        return self._picture


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(RobotNode, args)


if __name__ == "__main__":
    sys.exit(main())
