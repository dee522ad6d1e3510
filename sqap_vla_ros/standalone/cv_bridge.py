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

"""``cv_bridge`` on OpenCV's own functions: the encodings of the real one, padded rows, either byte order.

Scaling for display and the C++ boost module are not offered.
"""

from __future__ import annotations

import re
import sys

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

# Encodings of sensor_msgs/image_encodings.hpp that say what colours they hold: OpenCV's name for it, and bits.
COLOR_ENCODINGS = {f"{order}{bits}": (order.upper(), bits) for order in ("rgb", "bgr", "rgba", "bgra")
                   for bits in (8, 16)}
COLOR_ENCODINGS |= {f"mono{bits}": ("GRAY", bits) for bits in (8, 16)}
# OpenCV names a mosaic by its second row, from the second pixel on.
COLOR_ENCODINGS |= {f"bayer_{first}{bits}": (f"Bayer{name}", bits) for bits in (8, 16)
                    for first, name in (("rggb", "BG"), ("bggr", "RG"), ("gbrg", "GR"), ("grbg", "GB"))}
COLOR_ENCODINGS |= {"yuv422": ("UYVY", 8), "yuv422_yuy2": ("YUY2", 8)}
# By bytes of the two types, so that white stays white.
_SCALES = {(1, 2): 257.0, (2, 1): 1.0 / 257.0}
_CHANNELS = {"RGB": 3, "BGR": 3, "RGBA": 4, "BGRA": 4, "UYVY": 2, "YUY2": 2}
_TYPE_PATTERN = re.compile(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([1-9][0-9]?))?")
_DTYPES = {"8U": "uint8", "8S": "int8", "16U": "uint16", "16S": "int16", "32S": "int32", "32F": "float32",
           "64F": "float64"}


class CvBridgeError(TypeError):
    """An image that cannot be converted."""


class CvBridge:
    """Messages to arrays and back."""

    def encoding_to_dtype_with_channels(self, encoding: str) -> tuple[str, int]:
        """Name of the NumPy type and number of channels, for example ``('uint8', 3)`` for ``bgr8``."""
        return _to_type(encoding)

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> np.ndarray:
        """Message to array.

        :param img_msg: the message
        :param desired_encoding: colour order and depth wanted; 'passthrough' leaves the message's own
        :return: (H, W) or (H, W, C), in this machine's byte order
        :raises CvBridgeError: when the encoding is unknown, the data is too short or no conversion exists
        """
        dtype_name, channels = self.encoding_to_dtype_with_channels(img_msg.encoding)
        dtype = np.dtype(dtype_name).newbyteorder(">" if img_msg.is_bigendian else "<")
        height, width, step = img_msg.height, img_msg.width, img_msg.step
        row = width * channels * dtype.itemsize
        if step < row:
            raise CvBridgeError(f"a row has {step} bytes; {width} px of {img_msg.encoding} need {row}")
        if height and len(img_msg.data) < step * (height - 1) + row:
            raise CvBridgeError(f"{len(img_msg.data)} bytes are too few for {height} rows of {step}")
        strides = (step, channels * dtype.itemsize, dtype.itemsize)
        padded: np.ndarray = np.ndarray((height, width, channels), dtype, memoryview(img_msg.data), 0, strides)
        array = padded.astype(dtype_name)
        return convert_color(array[..., 0] if channels == 1 else array, img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(self, cvim: np.ndarray, encoding: str = "passthrough", header: Header | None = None) -> Image:
        """Array to message.

        :param cvim: (H, W) or (H, W, C)
        :param encoding: what the array holds; 'passthrough' names it by its type
        :param header: copied into the message when given
        :raises CvBridgeError: when the encoding does not fit the array
        """
        if not isinstance(cvim, np.ndarray) or cvim.ndim not in (2, 3):
            raise TypeError("Your input type is not a numpy array of two or three dimensions")
        channels = 1 if cvim.ndim == 2 else cvim.shape[2]
        if encoding == "passthrough":
            names = {dtype: name for name, dtype in _DTYPES.items()}
            if cvim.dtype.name not in names:
                raise CvBridgeError(f"no encoding holds {cvim.dtype.name}")
            encoding = f"{names[cvim.dtype.name]}C{channels}"
        elif self.encoding_to_dtype_with_channels(encoding) != (cvim.dtype.name, channels):
            raise CvBridgeError(f"encoding {encoding} does not fit {channels} channels of {cvim.dtype.name}")
        message = Image(height=cvim.shape[0], width=cvim.shape[1], encoding=encoding)
        message.is_bigendian = int(cvim.dtype.byteorder == ">"
                                   or (cvim.dtype.byteorder == "=" and sys.byteorder == "big"))
        if header is not None:
            message.header = header
        message.step = cvim.shape[1] * channels * cvim.itemsize
        message.data = cvim.tobytes()
        return message

    def compressed_imgmsg_to_cv2(self, cmprs_img_msg: CompressedImage,
                                 desired_encoding: str = "passthrough") -> np.ndarray:
        """Compressed message to array, grey, BGR or BGRA as it comes.

        :param desired_encoding: what a BGR picture of 8 bits shall become
        :return: (H, W) or (H, W, C); None when the data is no picture
        :raises CvBridgeError: when the conversion fails
        """
        array = cv2.imdecode(np.frombuffer(cmprs_img_msg.data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        return array if desired_encoding == "passthrough" else convert_color(array, "bgr8", desired_encoding)

    def cv2_to_compressed_imgmsg(self, cvim: np.ndarray, dst_format: str = "jpg") -> CompressedImage:
        """Array to compressed message.

        :param cvim: (H, W) grey or (H, W, 3) BGR
        :param dst_format: 'jpg', 'png' or another that OpenCV writes
        """
        done, data = cv2.imencode(f".{dst_format}", cvim)
        if not done:
            raise CvBridgeError(f"OpenCV could not write the picture as {dst_format}")
        return CompressedImage(format=dst_format, data=data.tobytes())


def convert_color(array: np.ndarray, source: str, target: str) -> np.ndarray:
    """Change colours, then the type; 8 and 16 bits are scaled to each other.

    :param array: (H, W) or (H, W, C) in encoding ``source``
    :param source: encoding of ``array``
    :param target: encoding wanted; 'passthrough' or the same is no change
    :raises CvBridgeError: when the conversion makes no sense or does not exist
    """
    if target in ("passthrough", source):
        return array
    (source_type, source_channels), (target_type, target_channels) = _to_type(source), _to_type(target)
    if source in COLOR_ENCODINGS and target in COLOR_ENCODINGS:
        array = _change_colors(array, COLOR_ENCODINGS[source][0], COLOR_ENCODINGS[target][0])
    elif target in COLOR_ENCODINGS:
        raise CvBridgeError(f"[{source}] is not a color format. but [{target}] is. The conversion does not make sense")
    elif source_channels != target_channels:
        raise CvBridgeError(f"[{source}] and [{target}] do not have the same number of channel")
    if source_type == target_type:
        return array
    scaled = array * _SCALES.get((np.dtype(source_type).itemsize, np.dtype(target_type).itemsize), 1.0)
    if np.issubdtype(target_type, np.integer):
        limits = np.iinfo(target_type)
        scaled = np.clip(np.rint(scaled), limits.min, limits.max)
    return scaled.astype(target_type)


def _to_type(encoding: str) -> tuple[str, int]:
    if encoding in COLOR_ENCODINGS:
        name, bits = COLOR_ENCODINGS[encoding]
        return f"uint{bits}", _CHANNELS.get(name, 1)
    match = _TYPE_PATTERN.fullmatch(encoding)
    if match is None:
        raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")
    return _DTYPES[match[1]], int(match[2] or 1)


def _change_colors(array: np.ndarray, source: str, target: str) -> np.ndarray:
    plain = ("GRAY", "RGB", "BGR")
    if source == target:
        return array
    if target not in plain and (target not in _CHANNELS or _CHANNELS[target] == 2 or source.startswith("Bayer")):
        raise CvBridgeError(f"Unsupported conversion from [{source}] to [{target}]")
    name = f"YUV2{target}_{source}" if _CHANNELS.get(source) == 2 else f"{source}2{target}"
    try:
        return cv2.cvtColor(array, getattr(cv2, f"COLOR_{name}"))
    except cv2.error as error:
        raise CvBridgeError(str(error)) from error
