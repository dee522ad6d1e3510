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

"""Messages to plain values and back: one function per message.

Whatever is wrong with a message is found here and named; past this border every value can be trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from control_msgs.action import GripperCommand
from geometry_msgs.msg import TransformStamped, TwistStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Header

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.standalone import import_ros_module

cv_bridge = import_ros_module("cv_bridge")

NS_PER_S = 1_000_000_000
_ENCAPSULATION_BYTES = 4
# Bytes of one pixel of each encoding that can be taken.
IMAGE_ENCODINGS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "8UC1": 1, "8UC3": 3,
                   "bayer_rggb8": 1, "bayer_bggr8": 1, "bayer_gbrg8": 1, "bayer_grbg8": 1,
                   "yuv422": 2, "yuv422_yuy2": 2, "uyvy": 2, "yuyv": 2}
# Plain types say nothing about colour; ROS drivers use them for grey and for OpenCV's BGR. Newer names of YUV are not
# known to every cv_bridge.
_SAME_ENCODINGS = {"8UC1": "mono8", "8UC3": "bgr8", "uyvy": "yuv422", "yuyv": "yuv422_yuy2"}
_JPEG_BEGIN, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_BRIDGE = cv_bridge.CvBridge()


def stamp_to_ns(stamp: Time) -> int:
    """Message time to nanoseconds."""
    return stamp.sec * NS_PER_S + stamp.nanosec


def ns_to_stamp(stamp_ns: int) -> Time:
    """Nanoseconds to message time."""
    sec, nanosec = divmod(int(stamp_ns), NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def peek_stamp_ns(data: bytes, skipped_bytes: int = 0) -> int:
    """The time in a serialized message, without reading the rest.

    :param data: with its encapsulation
    :param skipped_bytes: what stands before the time; nothing does in a message that begins with its header
    """
    sec, nanosec = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, _ENCAPSULATION_BYTES + skipped_bytes)
    return int(sec * NS_PER_S + nanosec)


def make_header(stamp_ns: int, frame_id: str) -> Header:
    """Header with a stamp in ns."""
    return Header(stamp=ns_to_stamp(stamp_ns), frame_id=frame_id)


def decode_image(message: Image) -> np.ndarray:
    """Message to picture.

    :return: (H, W, 3) uint8 RGB, contiguous, read-only; the message's own memory where that is such a picture already
    :raises InputError: for an encoding that cannot be taken, no pixels, rows too short or data missing
    """
    encoding, width, height, step = message.encoding, message.width, message.height, message.step
    if encoding not in IMAGE_ENCODINGS:
        raise InputError(f"image encoding '{encoding}' cannot be taken; allowed are {', '.join(IMAGE_ENCODINGS)}; "
                         f"{_way_out(encoding)}")
    if width == 0 or height == 0:
        raise InputError(f"the image is {width} x {height} px; both must be positive; check the camera driver")
    row = width * IMAGE_ENCODINGS[encoding]
    if step < row:
        raise InputError(f"the image's step is {step} bytes; a row of {width} px of {encoding} needs at least {row}")
    if len(message.data) < step * height:
        raise InputError(f"the image came with {len(message.data)} bytes; {height} rows of {step} bytes need "
                         f"{step * height}; data was lost on the way")
    if IMAGE_ENCODINGS[encoding] == 2 and width % 2:
        raise InputError(f"the image is {width} px wide; two pixels of {encoding} share their colour, so the width "
                         "must be even")
    # One tight picture; bytes have no byte order.
    padded = np.frombuffer(message.data, dtype=np.uint8)[:step * height].reshape(height, step)
    rows = np.ascontiguousarray(padded[:, :row])
    picture: np.ndarray = rows.reshape(height, width, -1)
    if encoding != "rgb8":
        # Its colour order named, so that every cv_bridge does the same.
        tight = Image(height=height, width=width, encoding=_SAME_ENCODINGS.get(encoding, encoding), step=row,
                      data=rows.tobytes())
        try:
            picture = np.array(_BRIDGE.imgmsg_to_cv2(tight, desired_encoding="rgb8"), dtype=np.uint8, order="C")
        except (cv_bridge.CvBridgeError, cv2.error) as error:
            raise InputError(f"the image of encoding '{encoding}' cannot be converted: {error}") from error
    picture.flags.writeable = False
    return picture


def _way_out(encoding: str) -> str:
    if encoding.startswith(("rgb", "bgr", "bayer")):
        return "it is not 8 bits per channel; set the camera driver to 8 bits"
    if "16" in encoding or encoding.startswith(("32", "64")):
        return ("it is not 8 bits per channel, as pictures of depth and heat are; name a colour camera in "
                "input.cameras")
    return "let the driver or image_proc convert"


def decode_compressed(message: CompressedImage) -> np.ndarray:
    """JPEG or PNG to picture.

    ``format`` is as image_transport writes it, ``bgr8; jpeg compressed bgr8``: the picture's encoding, then in which
    order its colours were handed to the encoder; or only the name of the format.

    :return: (H, W, 3) uint8 RGB, contiguous, read-only
    :raises InputError: for another format, a picture that is not whole, or one that has not 8 bits per channel
    """
    data, form = bytes(message.data), message.format
    encoding, _, compression = (part.strip() for part in form.partition(";"))
    if "compressedDepth" in form or (compression and encoding.startswith(("16U", "16S", "32", "64"))):
        raise InputError(f"the compressed image is '{form}', which is depth; name a colour camera in input.cameras")
    _check_whole(data, form)
    try:
        array = _BRIDGE.compressed_imgmsg_to_cv2(message)
    except (cv_bridge.CvBridgeError, cv2.error) as error:
        raise InputError(f"the compressed image of {len(data)} bytes, '{form}', cannot be read: {error}") from error
    if array is None:
        raise InputError(f"the compressed image of {len(data)} bytes, '{form}', cannot be read; data was damaged on "
                         "the way")
    if array.dtype != np.uint8:
        raise InputError(f"the compressed image, '{form}', has {array.dtype} values; it must have 8 bits per channel; "
                         "set the publisher's format to jpeg, or the camera driver to 8 bits")
    swapped = encoding[:3] in ("rgb", "bgr") and compression != "" and "compressed bgr" not in form
    colors = "mono8" if array.ndim == 2 else f"{'rgb' if swapped else 'bgr'}{'a' if array.shape[2] == 4 else ''}8"
    if array.ndim == 2 and encoding in IMAGE_ENCODINGS and encoding.startswith("bayer") and "mono" not in compression:
        # As a PNG, a sensor's mosaic is sent as it is.
        colors = encoding
    if colors != "bgr8":
        return decode_image(_BRIDGE.cv2_to_imgmsg(array, colors))
    # What nearly all cameras send, without two messages on the way.
    picture: np.ndarray = cv2.cvtColor(array, cv2.COLOR_BGR2RGB, dst=array)
    picture.flags.writeable = False
    return picture


def _check_whole(data: bytes, form: str) -> None:
    # Some versions of OpenCV fill up with grey what is missing of a picture.
    if data.startswith(_JPEG_BEGIN):
        # Within a scan there is no such marker; before it there may be another, of a preview.
        whole = data.find(_JPEG_END, data.rfind(_JPEG_SCAN)) >= 0
    elif data.startswith(_PNG_BEGIN):
        whole = _PNG_END in data
    else:
        raise InputError(f"the compressed image of {len(data)} bytes, '{form}', begins with '{data[:8].hex(' ')}', so "
                         "it is neither JPEG nor PNG; set the publisher's format to jpeg or png")
    if not whole:
        raise InputError(f"the compressed image came with {len(data)} bytes and without its end; data was lost on the "
                         "way")


def encode_image(rgb: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    """Picture to message.

    :param rgb: (H, W, 3) uint8
    """
    return _BRIDGE.cv2_to_imgmsg(np.ascontiguousarray(rgb), encoding="rgb8", header=make_header(stamp_ns, frame_id))


def encode_compressed(rgb: np.ndarray, stamp_ns: int, frame_id: str) -> CompressedImage:
    """Picture to JPEG message.

    :param rgb: (H, W, 3) uint8
    """
    message = _BRIDGE.cv2_to_compressed_imgmsg(np.ascontiguousarray(rgb[..., ::-1]), dst_format="jpg")
    message.header = make_header(stamp_ns, frame_id)
    # As image_transport names it: what came in; what the JPEG holds.
    message.format = "rgb8; jpeg compressed bgr8"
    return message


def decode_camera_info(message: CameraInfo, *, rectified: bool = False) -> Camera:
    """Message to camera, for the picture as it is sent: cut out and binned as REP-104 says.

    :param rectified: whether distortion has been taken out of the picture, so that P holds instead of K and D
    :raises InputError: when the camera is not calibrated or its distortion model is unknown
    """
    roi = message.roi
    name, values = ("P", message.p) if rectified else ("K", message.k)
    if values[0] == 0.0:
        raise InputError(f"camera_info is not calibrated, {name}[0] is 0; calibrate the camera or give its driver the "
                         "file")
    if rectified:
        camera = Camera.rectified(np.reshape(values, (3, 4)), message.width, message.height)
    else:
        camera = Camera(np.reshape(values, (3, 3)), np.array(message.d, dtype=np.float64), message.distortion_model,
                        message.width, message.height)
    size = (roi.width, roi.height) if roi.width > 0 and roi.height > 0 else (0, 0)
    return camera.windowed((roi.x_offset, roi.y_offset), size, (message.binning_x, message.binning_y))


def encode_camera_info(camera: Camera, stamp_ns: int, frame_id: str) -> CameraInfo:
    """Camera to message; rectification is the identity."""
    projection = np.column_stack((camera.matrix, np.zeros(3)))
    return CameraInfo(header=make_header(stamp_ns, frame_id), width=camera.width, height=camera.height,
                      distortion_model=camera.model, d=camera.distortion.tolist(),
                      k=camera.matrix.ravel().tolist(), r=np.eye(3).ravel().tolist(), p=projection.ravel().tolist())


def decode_joint_positions(message: JointState) -> dict[str, float]:
    """Message to position by joint, rad or m; empty for a message of velocities or efforts only.

    :raises InputError: when names and positions do not go together
    """
    if message.position and len(message.position) != len(message.name):
        raise InputError(f"the joint states have {len(message.name)} names and {len(message.position)} positions; "
                         "there must be one position for each name")
    return dict(zip(message.name, map(float, message.position), strict=False))


def encode_twist(linear: Iterable[float], angular: Iterable[float], stamp_ns: int, frame_id: str) -> TwistStamped:
    """Velocity to message.

    :param linear: (3,) m/s
    :param angular: (3,) rad/s
    """
    message = TwistStamped(header=make_header(stamp_ns, frame_id))
    message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = map(float, linear)
    message.twist.angular.x, message.twist.angular.y, message.twist.angular.z = map(float, angular)
    return message


def decode_twist(message: TwistStamped) -> tuple[np.ndarray, np.ndarray]:
    """Message to linear (3,) m/s and angular (3,) rad/s velocity.

    :raises InputError: for an empty frame_id or a value that is not finite
    """
    linear, angular = message.twist.linear, message.twist.angular
    velocity = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
    if not message.header.frame_id:
        raise InputError("the twist has no frame_id; name the frame in which the velocity is given")
    if not np.isfinite(velocity).all():
        raise InputError(f"the twist is not finite: {velocity.tolist()}")
    return velocity[:3], velocity[3:]


def encode_gripper_goal(position_m: float, effort_n: float) -> GripperCommand.Goal:
    """Distance between the fingers and largest force to goal."""
    goal = GripperCommand.Goal()
    goal.command.position, goal.command.max_effort = float(position_m), float(effort_n)
    return goal


def encode_transform(parent: str, child: str, translation: np.ndarray, rotation: np.ndarray,
                     stamp_ns: int) -> TransformStamped:
    """Pose of ``child`` in ``parent`` to message.

    :param translation: (3,) m
    :param rotation: (4,) quaternion x, y, z, w
    """
    message = TransformStamped(header=make_header(stamp_ns, parent), child_frame_id=child)
    into = message.transform
    into.translation.x, into.translation.y, into.translation.z = map(float, translation)
    into.rotation.x, into.rotation.y, into.rotation.z, into.rotation.w = map(float, rotation)
    return message


def decode_transform(message: TransformStamped) -> tuple[np.ndarray, np.ndarray]:
    """Message to translation (3,) m and quaternion (4,) x, y, z, w.

    :raises InputError: when a value is not finite
    """
    shift, turn = message.transform.translation, message.transform.rotation
    values = np.array([shift.x, shift.y, shift.z, turn.x, turn.y, turn.z, turn.w])
    if not np.isfinite(values).all():
        raise InputError(f"the transform from '{message.child_frame_id}' to '{message.header.frame_id}' is not finite: "
                         f"{values.tolist()}; check who publishes it")
    return values[:3], values[3:]
