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

"""TF at the image's stamp to a :class:`~sqap_vla_ros.data.RobotFootprint` in every camera, and to the tool's pose.

Never blocks: a transform that is not there yet is asked for again on the next tick. After that wait the latest one
within ``footprint.max_tf_age_s`` serves; else the robot is not protected in this picture, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.data import RobotFootprint
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.geometry.footprint import project_footprint
from sqap_vla_ros.knobs import FootprintKnobs
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import decode_camera_info, decode_transform, encode_transform, stamp_to_ns
from sqap_vla_ros.ros.command_codecs import ToolPose
from sqap_vla_ros.standalone import import_ros_module

tf2_ros = import_ros_module("tf2_ros")
_AUTHORITY = "default_authority"


class TfHit(Enum):
    """What TF knew of the moment asked for."""

    EXACT = "exact"
    LATEST = "latest"
    NONE = "none"
    UNASKED = "unasked"


@dataclass(frozen=True)
class Found:
    """What is known of the robot in one picture.

    :param footprint: where it is, or None
    :param reason: why it is not known; empty when it is
    :param hit: what TF knew; UNASKED where something else was missing
    """

    footprint: RobotFootprint | None
    reason: str
    hit: TfHit

    @property
    def exact(self) -> bool:
        """Whether waiting for TF cannot make it better."""
        return self.hit in (TfHit.EXACT, TfHit.UNASKED)


@dataclass(frozen=True)
class FoundTool:
    """What is known of the tool.

    :param pose: position (3,) in m and quaternion (4,) x, y, z, w of length 1 in the base frame, or None
    :param reason: why it is not known; empty when it is
    :param hit: what TF knew
    :param stamp_ns: when it was there; 0 where that is always, or not known
    """

    pose: ToolPose | None
    reason: str
    hit: TfHit
    stamp_ns: int = 0


@dataclass
class _Calibration:
    """The newest of one camera: its message's content, and what it says or why it says nothing."""

    reason: str
    camera: Camera | None = None
    key: tuple[Any, ...] = ()


class FootprintFinder:
    """The cameras' calibrations and the frames' transforms, always the newest.

    :param node: whose executor receives ``/tf`` and ``/tf_static``
    :param cameras: their namespaces, in the model's order
    :param knobs: those that cannot change: whether pictures are free of distortion, so that P of camera_info holds, and
        where the cameras are
    :param max_future_s: transforms stamped farther ahead of the node's clock are dropped, as are those from before a
        jump of the clock that arrive behind it; TF would take them for the newest until their time comes;
        :attr:`max_future_s` may be replaced while the node runs
    """

    def __init__(self, node: Node, cameras: Sequence[str], knobs: FootprintKnobs, max_future_s: float) -> None:
        self._node, self.max_future_s = node, max_future_s
        self._cameras, self._rectified = tuple(cameras), knobs.rectified
        topics = [interface.of_camera(interface.CAMERA_INFO, camera).name for camera in cameras]
        self._calibrations = [_Calibration(f"no camera_info has arrived on {topic}") for topic in topics]
        # Without its node, so that clearing after a jump of the clock is ours on every distribution.
        self._buffer = tf2_ros.Buffer()
        # The cameras' own frames may be part of another tree, so those of the parameters are apart from them.
        self._given_frames: tuple[str, ...] = ()
        if knobs.extrinsics_frame:
            self._given_frames = tuple(f"{camera.strip('/')}/footprint.extrinsics" for camera in cameras)
            for frame, values in zip(self._given_frames, np.reshape(knobs.extrinsics, (-1, 7)), strict=True):
                self._buffer.set_transform_static(
                    encode_transform(knobs.extrinsics_frame, frame, values[:3], values[3:], 0), "footprint.extrinsics")
        # Not tf2_ros.TransformListener, which takes everything.
        self._subscriptions = [interface.subscribe(node, interface.TF, self._take_moving),
                               interface.subscribe(node, interface.TF_STATIC, self._take_fixed)]

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def clear(self) -> None:
        """Forget all moving frames, after the clock jumped back; fixed ones and calibrations stay."""
        self._buffer.clear()

    def take_camera_info(self, index: int, message: CameraInfo) -> None:
        """Use this calibration from now on.

        :param index: which camera
        :raises InputError: when it cannot be used; nothing is protected in this camera until a usable one comes
        """
        roi, known = message.roi, self._calibrations[index]
        key = (message.width, message.height, message.distortion_model, tuple(message.d), tuple(message.k),
               tuple(message.p), message.binning_x, message.binning_y, roi.x_offset, roi.y_offset, roi.width,
               roi.height)
        if key == known.key and known.camera is not None:
            return
        known.camera, known.key = None, key
        try:
            known.camera = decode_camera_info(message, rectified=self._rectified)
        except InputError as error:
            known.reason = str(error)
            raise

    def find(self, knobs: FootprintKnobs, index: int, image_frame: str, size_px: tuple[int, int],
             stamp_ns: int) -> Found:
        """Where the protected frames are in a picture.

        :param knobs: frames, radii and ages
        :param index: which camera
        :param image_frame: frame_id of the image
        :param size_px: width and height of the image
        :param stamp_ns: the image's stamp
        """
        hit, whose = TfHit.UNASKED, f"{self._cameras[index]}: " if len(self._cameras) > 1 else ""
        try:
            camera = self._calibrated(index, size_px)
            optical = self._given_frames[index] if self._given_frames else knobs.camera_frames[index] or image_frame
            if not optical:
                raise InputError("the image has no frame_id; set it in the driver, or set footprint.camera_frames")
            hit = TfHit.NONE
            transforms, hit = self._look_up(optical, knobs.frames, stamp_ns, knobs.max_tf_age_s, "the image")
            positions = [decode_transform(transform)[0] for transform in transforms]
            footprint = project_footprint(camera, knobs.frames, np.reshape(positions, (-1, 3)), knobs.radii_m,
                                          joined=knobs.joined)
            if not footprint.radii_px.any():
                raise InputError(f"none of {', '.join(knobs.frames)} is in front of the camera")
        except InputError as error:
            return Found(None, f"{whose}{error}", hit)
        return Found(footprint, "", hit)

    def find_tool(self, base_frame: str, tool_frame: str, stamp_ns: int, max_age_s: float) -> FoundTool:
        """Where the tool is in the base frame.

        :param stamp_ns: when; the newest pose serves where TF does not know this moment, as it never knows the present
        :param max_age_s: how far the newest pose may lie from ``stamp_ns``, s
        """
        hit = TfHit.NONE
        try:
            (transform,), hit = self._look_up(base_frame, (tool_frame,), stamp_ns, max_age_s, "the moment asked for")
            return FoundTool(decode_transform(transform), "", hit, stamp_to_ns(transform.header.stamp))
        except InputError as error:
            return FoundTool(None, str(error), hit)

    def _take_moving(self, message: TFMessage) -> None:
        latest_ns = self._node.get_clock().now().nanoseconds + round(self.max_future_s * 1e9)
        for transform in message.transforms:
            if stamp_to_ns(transform.header.stamp) <= latest_ns:
                self._buffer.set_transform(transform, _AUTHORITY)

    def _take_fixed(self, message: TFMessage) -> None:
        for transform in message.transforms:
            self._buffer.set_transform_static(transform, _AUTHORITY)

    def _calibrated(self, index: int, size_px: tuple[int, int]) -> Camera:
        known = self._calibrations[index]
        if known.camera is None:
            raise InputError(known.reason)
        if (known.camera.width, known.camera.height) != size_px:
            raise InputError(f"camera_info is for {known.camera.width} x {known.camera.height} px, the image has "
                             f"{size_px[0]} x {size_px[1]}")
        return known.camera

    def _look_up(self, target: str, sources: Sequence[str], stamp_ns: int, max_age_s: float,
                 moment: str) -> tuple[list[TransformStamped], TfHit]:
        # All at the stamp, or else the latest of all.
        at = Time(nanoseconds=stamp_ns)
        try:
            return [self._buffer.lookup_transform(target, source, at) for source in sources], TfHit.EXACT
        except tf2_ros.TransformException:
            return [self._latest(target, source, stamp_ns, max_age_s, moment) for source in sources], TfHit.LATEST

    def _latest(self, target: str, source: str, stamp_ns: int, max_age_s: float, moment: str) -> TransformStamped:
        try:
            transform = self._buffer.lookup_transform(target, source, Time())
        except tf2_ros.TransformException as error:
            raise InputError(f"no transform from '{source}' to '{target}': {error}") from error
        found_ns = stamp_to_ns(transform.header.stamp)
        age_s = abs(stamp_ns - found_ns) * 1e-9
        # Fixed frames have no time of their own, and 0 says so.
        if found_ns > 0 and age_s > max_age_s:
            raise InputError(f"the latest transform from '{source}' to '{target}' is {age_s:.3f} s away from "
                             f"{moment}; allowed are {max_age_s:g} s")
        return transform
