"""TF at the image's stamp to a :class:`~sqap_vla_ros.data.RobotFootprint`.

Never blocks: a transform that is not there yet is asked for again on the next tick. After that wait the latest one
within ``footprint.max_tf_age_s`` serves; else the robot is not protected in this picture, and the reason is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo

from sqap_vla_ros.data import RobotFootprint
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.geometry.footprint import project_footprint
from sqap_vla_ros.knobs import FootprintKnobs
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import decode_camera_info, stamp_to_ns
from sqap_vla_ros.standalone import import_ros_module

tf2_ros = import_ros_module("tf2_ros")


@dataclass(frozen=True)
class Found:
    """What is known of the robot in one picture.

    :param footprint: where it is, or None
    :param reason: why it is not known; empty when it is
    :param exact: whether every transform was that of the image's stamp; waiting cannot make it better then
    """

    footprint: RobotFootprint | None
    reason: str
    exact: bool


class FootprintFinder:
    """The camera's calibration and the frames' transforms, always the newest.

    :param node: whose executor receives ``/tf`` and ``/tf_static``
    :param rectified: whether the pictures are free of distortion, so that P of camera_info holds
    """

    def __init__(self, node: Node, *, rectified: bool = False) -> None:
        self._rectified = rectified
        # Without its node, so that clearing after a jump of the clock is ours on every distribution.
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)
        self._camera: Camera | None = None
        self._camera_reason = f"no camera_info has arrived on {interface.CAMERA_INFO.name}"
        self._camera_key: tuple[Any, ...] = ()

    def close(self) -> None:
        """Stop listening."""
        self._listener.unregister()

    def clear(self) -> None:
        """Forget all moving frames, after the clock jumped back."""
        self._buffer.clear()

    def take_camera_info(self, message: CameraInfo) -> None:
        """Use this calibration from now on.

        :raises InputError: when it cannot be used; nothing is protected until a usable one comes
        """
        roi = message.roi
        key = (message.width, message.height, message.distortion_model, tuple(message.d), tuple(message.k),
               tuple(message.p), message.binning_x, message.binning_y, roi.x_offset, roi.y_offset, roi.width,
               roi.height)
        if key == self._camera_key and self._camera is not None:
            return
        self._camera, self._camera_key = None, key
        try:
            self._camera = decode_camera_info(message, rectified=self._rectified)
        except InputError as error:
            self._camera_reason = str(error)
            raise

    def find(self, knobs: FootprintKnobs, image_frame: str, size_px: tuple[int, int], stamp_ns: int) -> Found:
        """Where the protected frames are in a picture.

        :param knobs: frames, radii and ages
        :param image_frame: frame_id of the image
        :param size_px: width and height of the image
        :param stamp_ns: the image's stamp
        """
        camera, optical = self._camera, knobs.camera_frames[0] or image_frame
        if camera is None:
            return Found(None, self._camera_reason, exact=True)
        if (camera.width, camera.height) != size_px:
            return Found(None, f"camera_info is for {camera.width} x {camera.height} px, the image has "
                               f"{size_px[0]} x {size_px[1]}", exact=True)
        if not optical:
            return Found(None, "the image has no frame_id; set it in the driver, or set footprint.camera_frames",
                         exact=True)
        try:
            positions = [self._position(optical, frame, stamp_ns)[0] for frame in knobs.frames]
            return self._project(camera, knobs, positions, exact=True)
        except tf2_ros.TransformException:
            return self._find_latest(camera, knobs, optical, stamp_ns)

    def _find_latest(self, camera: Camera, knobs: FootprintKnobs, optical: str, stamp_ns: int) -> Found:
        positions = []
        for frame in knobs.frames:
            try:
                position, found_ns = self._position(optical, frame, 0)
            except tf2_ros.TransformException as error:
                return Found(None, f"no transform from '{frame}' to '{optical}': {error}", exact=False)
            age_s = abs(stamp_ns - found_ns) * 1e-9
            # Fixed frames have no time of their own, and 0 says so.
            if found_ns > 0 and age_s > knobs.max_tf_age_s:
                return Found(None, f"the latest transform from '{frame}' to '{optical}' is {age_s:.3f} s away from the "
                                   f"image; allowed are {knobs.max_tf_age_s:g} s", exact=False)
            positions.append(position)
        return self._project(camera, knobs, positions, exact=False)

    def _position(self, optical: str, frame: str, stamp_ns: int) -> tuple[np.ndarray, int]:
        # (3,) m in the optical frame, and the stamp it is true for.
        transform = self._buffer.lookup_transform(optical, frame, Time(nanoseconds=stamp_ns))
        shift = transform.transform.translation
        return np.array([shift.x, shift.y, shift.z]), stamp_to_ns(transform.header.stamp)

    def _project(self, camera: Camera, knobs: FootprintKnobs, positions: list[np.ndarray], *, exact: bool) -> Found:
        try:
            footprint = project_footprint(camera, knobs.frames, np.reshape(positions, (-1, 3)), knobs.radii_m,
                                          joined=knobs.joined)
        except InputError as error:
            return Found(None, str(error), exact=exact)
        if not footprint.radii_px.any():
            return Found(None, f"none of {', '.join(knobs.frames)} is in front of the camera", exact=exact)
        return Found(footprint, "", exact=exact)
