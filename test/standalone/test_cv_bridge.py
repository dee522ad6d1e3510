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

"""What holds for the real cv_bridge and for the stand-in alike; the one that this machine has is tested."""

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sqap_vla_ros.standalone import import_ros_module

cv_bridge = import_ros_module("cv_bridge")
BRIDGE = cv_bridge.CvBridge()
BGR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
CONVERSIONS = {"rgb8": cv2.COLOR_BGR2RGB, "rgba8": cv2.COLOR_BGR2RGBA, "bgra8": cv2.COLOR_BGR2BGRA,
               "mono8": cv2.COLOR_BGR2GRAY}


@pytest.mark.parametrize("encoding", CONVERSIONS)
def test_colours_convert_as_opencv_converts_them(encoding):
    expected = cv2.cvtColor(BGR, CONVERSIONS[encoding])
    message = BRIDGE.cv2_to_imgmsg(BGR, "bgr8")
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, encoding), expected)
    # And back, where nothing is lost.
    if encoding != "mono8":
        np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(expected, encoding), "bgr8"), BGR)


def test_grey_becomes_colour():
    grey = BGR[..., 0].copy()
    message = BRIDGE.cv2_to_imgmsg(grey, "mono8")
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "rgb8"), cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))


@pytest.mark.parametrize(("array", "encoding", "shape"), [
    (BGR, "8UC3", (6, 8, 3)), (BGR[..., 0].copy(), "8UC1", (6, 8)),
    (np.arange(48, dtype=np.uint16).reshape(6, 8), "16UC1", (6, 8)),
    (np.arange(48, dtype=np.float32).reshape(6, 8), "32FC1", (6, 8)),
    (np.arange(96, dtype=np.float64).reshape(6, 8, 2), "64FC2", (6, 8, 2))])
def test_arrays_pass_through_unchanged(array, encoding, shape):
    message = BRIDGE.cv2_to_imgmsg(array)
    assert message.encoding == encoding and message.step == array.nbytes // 6
    back = BRIDGE.imgmsg_to_cv2(message)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype and back.shape == shape


def test_a_header_is_carried():
    message = BRIDGE.cv2_to_imgmsg(BGR, "bgr8", header=Header(frame_id="lens"))
    assert message.header.frame_id == "lens"
    assert (message.height, message.width, message.step) == (6, 8, 24)


@pytest.mark.parametrize("big", [0, 1])
def test_either_byte_order_is_read(big):
    values = np.array([[1, 256, 65535], [7, 515, 0]], dtype=np.uint16)
    message = Image(height=2, width=3, encoding="mono16", step=6, is_bigendian=big,
                    data=values.astype(">u2" if big else "<u2").tobytes())
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message), values)


def test_padding_after_each_row_is_skipped():
    rows = np.concatenate((BGR.reshape(6, 24), np.full((6, 6), 0xAB, np.uint8)), axis=1)
    message = Image(height=6, width=8, encoding="bgr8", step=30, data=rows.tobytes())
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message), BGR)


def test_eight_and_sixteen_bits_are_scaled_to_each_other():
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    message = BRIDGE.cv2_to_imgmsg(values, "mono16")
    small = BRIDGE.imgmsg_to_cv2(message, "mono8")
    np.testing.assert_array_equal(small, [[0, 1, 255]])
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(small, "mono8"), "mono16"), values)
    # Colours first, then bits.
    deep = BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(BGR, "bgr8"), "rgb16")
    np.testing.assert_array_equal(deep, BGR[..., ::-1] * np.uint16(257))


def test_plain_types_change_without_colours_when_channels_agree():
    values = np.array([[-3.6, 0.4, 300.0]], dtype=np.float32)
    message = BRIDGE.cv2_to_imgmsg(values)
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "8UC1"), [[0, 0, 255]])
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(BGR, "bgr8"), "8UC3"), BGR)
    with pytest.raises(cv_bridge.CvBridgeError, match="channel"):
        BRIDGE.imgmsg_to_cv2(message, "8UC3")


def mosaic(pattern, red, green, blue):
    """What a sensor of this pattern sees of one colour, (8, 10)."""
    colors = dict(zip("rgb", (red, green, blue), strict=True))
    return np.tile(np.array([colors[letter] for letter in pattern]).reshape(2, 2), (4, 5))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_of_one_colour_is_that_colour(pattern, bits):
    color = np.array([200, 40, 10], dtype=f"uint{bits}") * (bits // 8)
    values = mosaic(pattern, *color).astype(f"uint{bits}")
    message = BRIDGE.cv2_to_imgmsg(values, f"bayer_{pattern}{bits}")
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message), values)
    picture = BRIDGE.imgmsg_to_cv2(message, f"rgb{bits}")
    np.testing.assert_array_equal(picture, np.broadcast_to(color, (8, 10, 3)))
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, f"bgr{bits}"), picture[..., ::-1])
    with pytest.raises(cv_bridge.CvBridgeError):
        BRIDGE.imgmsg_to_cv2(message, f"rgba{bits}")
    with pytest.raises(cv_bridge.CvBridgeError):
        BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(picture, f"rgb{bits}"), f"bayer_{pattern}{bits}")


@pytest.mark.parametrize("encoding", ["yuv422", "yuv422_yuy2"])
def test_two_pixels_with_common_colour_are_told_apart_by_brightness(encoding):
    # ITU-R BT.601: white and black, then red twice.
    luma_cb_luma_cr = np.array([[235, 128, 16, 128], [81, 90, 81, 240]], dtype=np.uint8)
    packed = {"yuv422": luma_cb_luma_cr[:, [1, 0, 3, 2]], "yuv422_yuy2": luma_cb_luma_cr}[encoding]
    message = BRIDGE.cv2_to_imgmsg(packed.reshape(2, 2, 2).copy(), encoding)
    assert (message.encoding, message.step) == (encoding, 4)
    picture = BRIDGE.imgmsg_to_cv2(message, "rgb8")
    assert np.abs(picture.astype(int) - [[(255,) * 3, (0,) * 3], [(255, 0, 0)] * 2]).max() <= 2
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "bgr8"), picture[..., ::-1])
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message, "mono8"), luma_cb_luma_cr[:, [0, 2]])
    with pytest.raises(cv_bridge.CvBridgeError):
        BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(picture, "rgb8"), encoding)


@pytest.mark.parametrize("message", [Image(height=1, width=1, encoding="chocolate", step=3, data=b"abc"),
                                     Image(height=1, width=1, encoding="32FC1", step=4, data=b"abcd")])
def test_what_cannot_become_a_colour_is_refused(message):
    with pytest.raises(cv_bridge.CvBridgeError):
        BRIDGE.imgmsg_to_cv2(message, "rgb8")


def test_an_encoding_that_does_not_fit_the_array_is_refused():
    with pytest.raises(cv_bridge.CvBridgeError):
        BRIDGE.cv2_to_imgmsg(BGR, "mono8")
    with pytest.raises(TypeError):
        BRIDGE.cv2_to_imgmsg([[1, 2]], "mono8")


def test_png_is_lossless_and_jpeg_nearly():
    exact = BRIDGE.compressed_imgmsg_to_cv2(BRIDGE.cv2_to_compressed_imgmsg(BGR, "png"))
    np.testing.assert_array_equal(exact, BGR)
    np.testing.assert_array_equal(
        BRIDGE.compressed_imgmsg_to_cv2(BRIDGE.cv2_to_compressed_imgmsg(BGR, "png"), "rgb8"), BGR[..., ::-1])
    smooth = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 1, 3))
    near = BRIDGE.compressed_imgmsg_to_cv2(BRIDGE.cv2_to_compressed_imgmsg(smooth))
    assert np.abs(near.astype(int) - smooth).max() <= 8


def test_a_compressed_picture_with_grey_or_alpha_comes_as_it_is():
    clear = np.dstack((BGR, np.full(BGR.shape[:2], 7, np.uint8)))
    for array in (BGR[..., 0].copy(), clear, BGR[..., 0].astype(np.uint16) * 256):
        np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(BRIDGE.cv2_to_compressed_imgmsg(array, "png")),
                                      array)


def test_an_unknown_compression_is_refused():
    with pytest.raises((cv_bridge.CvBridgeError, cv2.error)):
        BRIDGE.cv2_to_compressed_imgmsg(BGR, "chocolate")
    assert BRIDGE.compressed_imgmsg_to_cv2(CompressedImage(format="jpeg", data=b"not a picture")) is None
