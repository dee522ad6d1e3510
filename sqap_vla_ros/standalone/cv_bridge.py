"""``cv_bridge`` in NumPy: images of 8 and 16 bits and of floats, with padded rows and either byte order.

What the real one offers beside this (Bayer and YUV encodings, the C++ boost module) is refused by name.
"""

from __future__ import annotations

import re
import sys

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

# Encodings of sensor_msgs/image_encodings.hpp with a fixed colour order: channel letters and bits.
COLOR_ENCODINGS = {f"{order}{bits}": (order, bits) for order in ("rgb", "bgr", "rgba", "bgra") for bits in (8, 16)}
COLOR_ENCODINGS |= {"mono8": ("mono", 8), "mono16": ("mono", 16)}
_TYPE_PATTERN = re.compile(r"(8U|8S|16U|16S|32S|32F|64F)C([1-9][0-9]?)?")
_DTYPES = {"8U": "uint8", "8S": "int8", "16U": "uint16", "16S": "int16", "32S": "int32", "32F": "float32",
           "64F": "float64"}


class CvBridgeError(TypeError):
    """An image that cannot be converted."""


class CvBridge:
    """Messages to arrays and back."""

    def encoding_to_dtype_with_channels(self, encoding: str) -> tuple[str, int]:
        """Name of the NumPy type and number of channels, for example ``('uint8', 3)`` for ``bgr8``."""
        if encoding in COLOR_ENCODINGS:
            order, bits = COLOR_ENCODINGS[encoding]
            return f"uint{bits}", 1 if order == "mono" else len(order)
        match = _TYPE_PATTERN.fullmatch(encoding)
        if match is None:
            raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")
        return _DTYPES[match[1]], int(match[2] or 1)

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
        """Compressed message to array; colours come out as BGR.

        :raises CvBridgeError: when the data is not a picture
        """
        data = np.frombuffer(cmprs_img_msg.data, dtype=np.uint8)
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if array is None:
            raise CvBridgeError(f"{data.size} bytes of '{cmprs_img_msg.format}' are not a picture")
        bits = 8 * array.itemsize
        source = f"mono{bits}" if array.ndim == 2 else f"{'bgr' if array.shape[2] == 3 else 'bgra'}{bits}"
        return convert_color(array, source, desired_encoding)

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
    """Reorder channels, make grey or colour of each other, change between 8 and 16 bits.

    :param array: (H, W) or (H, W, C) in encoding ``source``
    :param source: encoding of ``array``
    :param target: encoding wanted; 'passthrough' or the same is no change
    :raises CvBridgeError: when one of the two is not a colour encoding
    """
    if target in ("passthrough", source):
        return array
    for encoding in (source, target):
        if encoding not in COLOR_ENCODINGS:
            raise CvBridgeError(f"[{encoding}] is not a color format; cannot convert [{source}] to [{target}]")
    (source_order, source_bits), (target_order, target_bits) = COLOR_ENCODINGS[source], COLOR_ENCODINGS[target]
    if source_order == "mono":
        planes = dict.fromkeys("rgb", array)
    else:
        planes = {letter: array[..., index] for index, letter in enumerate(source_order)}
    if target_order == "mono":
        array = array if source_order == "mono" else _grey(planes)
    elif source_order != target_order:
        full = np.full(array.shape[:2], np.iinfo(array.dtype).max, dtype=array.dtype)
        array = np.stack([planes.get(letter, full) for letter in target_order], axis=-1)
    if source_bits == target_bits:
        return array
    scale = (2**target_bits - 1) / (2**source_bits - 1)
    return np.rint(array * scale).astype(f"uint{target_bits}")


def _grey(planes: dict[str, np.ndarray]) -> np.ndarray:
    red, green, blue = (planes[letter].astype(np.int64) for letter in "rgb")
    # OpenCV's fixed-point weights, of 2**15.
    return ((9798 * red + 19235 * green + 3735 * blue + 2**14) >> 15).astype(planes["r"].dtype)
