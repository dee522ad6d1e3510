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

import re
import sys
import zlib

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState, RegionOfInterest

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.ros import codecs

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def pack(array, encoding, padding=0, **changes):
    """A message with ``padding`` bytes of rubbish after every row."""
    rows = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    rows = np.concatenate((rows, np.full((len(rows), padding), 0xAB, np.uint8)), axis=1)
    return Image(**{"height": array.shape[0], "width": array.shape[1], "encoding": encoding, "step": rows.shape[1],
                    "data": rows.tobytes()} | changes)


def with_alpha(array):
    return np.dstack((array, np.full(array.shape[:2], 99, np.uint8)))


GREY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)
ENCODED = {"rgb8": RGB, "bgr8": RGB[..., ::-1], "rgba8": with_alpha(RGB), "bgra8": with_alpha(RGB[..., ::-1]),
           "8UC3": RGB[..., ::-1]}


@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("encoding", ENCODED)
def test_every_colour_order_gives_the_same_picture_whatever_the_rows_are_padded_with(encoding, padding):
    picture = codecs.decode_image(pack(ENCODED[encoding], encoding, padding))
    np.testing.assert_array_equal(picture, RGB)
    assert picture.dtype == np.uint8 and picture.flags.c_contiguous and not picture.flags.writeable


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_becomes_three_equal_channels(encoding):
    np.testing.assert_array_equal(codecs.decode_image(pack(GREY, encoding, 3)), np.dstack((GREY,) * 3))


def test_bytes_have_no_byte_order_and_surplus_bytes_do_no_harm():
    message = pack(RGB, "rgb8", is_bigendian=1)
    message.data = bytes(message.data) + b"tail"
    np.testing.assert_array_equal(codecs.decode_image(message), RGB)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"encoding": "nv21"}, "image encoding 'nv21' cannot be taken; allowed are rgb8, bgr8.*; let the driver or "
                           "image_proc convert"),
    ({"encoding": "rgb16"}, "'rgb16' cannot be taken.*not 8 bits per channel; set the camera driver to 8 bits"),
    ({"encoding": "bayer_gbrg16"}, "'bayer_gbrg16' cannot be taken.*set the camera driver to 8 bits"),
    ({"encoding": "16UC1"}, "not 8 bits per channel, as pictures of depth and heat are; name a colour camera in "
                            "input.cameras"),
    ({"encoding": "32FC1"}, "as pictures of depth and heat are"),
    ({"encoding": "mono16", "is_bigendian": 1}, "as pictures of depth and heat are"),
    ({"encoding": "yuyv"}, "the image is 7 px wide; two pixels of yuyv share their colour"),
    ({"encoding": ""}, "image encoding '' cannot be taken"),
    ({"width": 0}, "the image is 0 x 5 px"), ({"height": 0}, "the image is 7 x 0 px"),
    ({"step": 20}, "step is 20 bytes; a row of 7 px of rgb8 needs at least 21"),
    ({"step": 0}, "step is 0 bytes"),
    ({"data": b"\x01" * 104}, "came with 104 bytes; 5 rows of 21 bytes need 105"), ({"data": b""}, "came with 0 bytes"),
    ({"height": 2**31}, "came with 105 bytes"), ({"width": 2**31}, "step is 21 bytes")])
def test_what_is_wrong_with_an_image_is_named(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        codecs.decode_image(pack(RGB, **{"encoding": "rgb8"} | changes))


def test_an_encoded_picture_decodes_to_itself():
    message = codecs.encode_image(RGB[:, ::-1], 1_500_000_007, "lens")
    assert (message.height, message.width, message.step, message.encoding) == (5, 7, 21, "rgb8")
    assert (message.header.frame_id, codecs.stamp_to_ns(message.header.stamp)) == ("lens", 1_500_000_007)
    assert message.is_bigendian == (sys.byteorder == "big")
    np.testing.assert_array_equal(codecs.decode_image(message), RGB[:, ::-1])


# --- mosaics and brightness with shared colour

COLOR = (200, 40, 10)


def mosaic(pattern):
    """What a sensor of this pattern sees of ``COLOR``, (6, 8)."""
    return np.tile(np.array([COLOR["rgb".index(letter)] for letter in pattern], np.uint8).reshape(2, 2), (3, 4))


@pytest.mark.parametrize(("padding", "big"), [(0, 0), (3, 1)])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_becomes_colours(pattern, padding, big):
    message = pack(mosaic(pattern), f"bayer_{pattern}8", padding, is_bigendian=big)
    np.testing.assert_array_equal(codecs.decode_image(message), np.broadcast_to(COLOR, (6, 8, 3)))


@pytest.mark.parametrize(("padding", "big"), [(0, 0), (3, 1)])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_shared_colour_is_spread_over_its_two_pixels(encoding, padding, big):
    # Y, U, Y, V of ITU-R BT.601: white beside black, then red twice.
    rows = np.array([[235, 128, 16, 128], [81, 90, 81, 240]], dtype=np.uint8)
    rows = rows[:, [1, 0, 3, 2]] if encoding in ("yuv422", "uyvy") else rows
    picture = codecs.decode_image(pack(rows.reshape(2, 2, 2), encoding, padding, is_bigendian=big))
    assert np.abs(picture.astype(int) - [[(255,) * 3, (0,) * 3], [(255, 0, 0)] * 2]).max() <= 2


# --- compressed pictures

SMOOTH = np.zeros((32, 48, 3), np.uint8)
SMOOTH[:16], SMOOTH[16:] = (200, 40, 10), (10, 60, 220)


def compress(array, form, extension, **changes):
    """A message of what OpenCV writes; it takes ``array`` for BGR."""
    data = cv2.imencode(f".{extension}", array)[1].tobytes()
    return CompressedImage(**{"format": form, "data": data} | changes)


def test_a_compressed_picture_keeps_its_colours():
    message = codecs.encode_compressed(SMOOTH, 3, "lens")
    assert message.format == "rgb8; jpeg compressed bgr8" and len(message.data) < SMOOTH.size / 2
    picture = codecs.decode_compressed(message)
    assert picture.shape == SMOOTH.shape and picture.dtype == np.uint8 and not picture.flags.writeable
    assert np.abs(picture.astype(int) - SMOOTH).mean() < 3.0


@pytest.mark.parametrize("form", ["png", "bgr8; png compressed bgr8", "rgb8; png compressed bgr8", "",
                                  "rgba8; png compressed bgr8", "yuv422; png compressed bgr8"])
def test_a_png_gives_the_very_pixels(form):
    np.testing.assert_array_equal(codecs.decode_compressed(compress(RGB[..., ::-1], form, "png")), RGB)


@pytest.mark.parametrize("form", ["rgb8; png compressed rgb8", "bgr8; png compressed rgb8", "bgr8; png compressed "])
def test_colours_that_were_handed_over_in_the_other_order_are_turned_back(form):
    np.testing.assert_array_equal(codecs.decode_compressed(compress(RGB, form, "png")), RGB)
    np.testing.assert_array_equal(codecs.decode_compressed(compress(with_alpha(RGB), form, "png")), RGB)


def test_grey_alpha_and_mosaics_may_be_compressed():
    grey = np.dstack((GREY,) * 3)
    for form in ("mono8; png compressed ", "mono8; jpeg compressed mono8", "png", "bayer_rggb8; jpeg compressed mono8"):
        np.testing.assert_array_equal(codecs.decode_compressed(compress(GREY, form, "png")), grey)
    np.testing.assert_array_equal(codecs.decode_compressed(compress(with_alpha(RGB[..., ::-1]), "png", "png")), RGB)
    whole = codecs.decode_compressed(compress(mosaic("gbrg"), "bayer_gbrg8; png compressed ", "png"))
    np.testing.assert_array_equal(whole, np.broadcast_to(COLOR, (6, 8, 3)))


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_picture_that_lost_its_end_is_refused_however_much_is_there(extension):
    data = cv2.imencode(f".{extension}", SMOOTH)[1].tobytes()
    for size in (len(data) - 1, len(data) // 2, 12):
        with pytest.raises(InputError) as caught:
            codecs.decode_compressed(CompressedImage(format=extension, data=data[:size]))
        assert str(caught.value) == (f"the compressed image came with {size} bytes and without its end; data was lost "
                                     "on the way")
    # Cameras fill their buffers up behind the end.
    codecs.decode_compressed(CompressedImage(format=extension, data=data + bytes(7)))


def test_the_end_of_a_preview_is_not_that_of_the_picture():
    data = cv2.imencode(".jpg", SMOOTH)[1].tobytes()
    preview = cv2.imencode(".jpg", SMOOTH[:8, :8])[1].tobytes()
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    message = CompressedImage(format="jpeg", data=data[:2] + segment + data[2:])
    assert codecs.decode_compressed(message).shape == SMOOTH.shape
    message.data = bytes(message.data)[:-2]
    with pytest.raises(InputError, match="without its end"):
        codecs.decode_compressed(message)


def damaged_png():
    data = bytearray(cv2.imencode(".png", RGB)[1].tobytes())
    data[60] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(("message", "sentence"), [
    (CompressedImage(format="jpeg", data=b""), "the compressed image of 0 bytes, 'jpeg', begins with ''"),
    (CompressedImage(format="h264", data=b"\0\0\0\1\x67\x42"), "6 bytes, 'h264', begins with '00 00 00 01 67 42', so "
     "it is neither JPEG nor PNG; set the publisher's format to jpeg or png"),
    (CompressedImage(format="png", data=damaged_png()), "'png', cannot be read; data was damaged on the way"),
    (compress(GREY.astype(np.uint16), "mono16; png compressed ", "png"),
     "'mono16; png compressed ', has uint16 values; it must have 8 bits"),
    (compress(GREY.astype(np.uint16), "16UC1; png compressed ", "png"), "which is depth; name a colour camera"),
    (compress(GREY, "16UC1; compressedDepth png", "png"), "which is depth; name a colour camera in input.cameras")])
def test_what_is_wrong_with_a_compressed_image_is_named(message, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        codecs.decode_compressed(message)


def test_a_picture_larger_than_opencv_reads_is_refused():
    data = bytearray(cv2.imencode(".png", RGB)[1].tobytes())
    data[16:24] = (2**30).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(InputError, match="'png', cannot be read"):
        codecs.decode_compressed(CompressedImage(format="png", data=bytes(data)))


@pytest.mark.parametrize("stamp_ns", [0, 1, 999_999_999, 1_000_000_000, 1_795_000_000_123_456_789])
def test_stamps_survive_both_ways(stamp_ns):
    assert codecs.stamp_to_ns(codecs.ns_to_stamp(stamp_ns)) == stamp_ns


# --- calibration

def make_info(**changes):
    return CameraInfo(**{"width": 640, "height": 480, "distortion_model": "plumb_bob", "d": [0.1, -0.2, 0.01, 0.0, 0.0],
                         "k": [500.0, 0.0, 319.5, 0.0, 510.0, 239.5, 0.0, 0.0, 1.0]} | changes)


def test_calibration_survives_both_ways():
    camera = codecs.decode_camera_info(make_info())
    assert (camera.width, camera.height, camera.model) == (640, 480, "plumb_bob")
    again = codecs.decode_camera_info(codecs.encode_camera_info(camera, 5, "lens"))
    np.testing.assert_array_equal(again.matrix, camera.matrix)
    np.testing.assert_array_equal(again.distortion, [0.1, -0.2, 0.01, 0.0, 0.0])


def test_cutting_out_and_binning_show_the_same_point_where_the_smaller_picture_has_it():
    full = codecs.decode_camera_info(make_info())
    cut = RegionOfInterest(x_offset=100, y_offset=40, width=400, height=200)
    small = codecs.decode_camera_info(make_info(roi=cut, binning_x=2, binning_y=4))
    assert (small.width, small.height) == (200, 50)
    point = np.array([[0.03, -0.02, 0.9]])
    (u, v), = full.project(point)[0]
    # The left edge of the cut-out, at 99.5, is the edge -0.5 of the small picture.
    np.testing.assert_allclose(small.project(point)[0][0], ((u - 99.5) / 2 - 0.5, (v - 39.5) / 4 - 0.5))


def test_a_rectified_picture_goes_by_its_projection():
    info = make_info(p=[400.0, 0.0, 310.0, -40.0, 0.0, 420.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    camera = codecs.decode_camera_info(info, rectified=True)
    # The second camera of a pair, 0.1 m to the right of the first, whose frame the point is in.
    np.testing.assert_allclose(camera.project(np.array([[0.3, -0.2, 2.0]]))[0][0],
                               (400 * (0.3 - 0.1) / 2 + 310, 420 * -0.2 / 2 + 230))
    info.binning_x = info.binning_y = 2
    binned = codecs.decode_camera_info(info, rectified=True)
    assert (binned.width, binned.height, binned.matrix[0, 2]) == (320, 240, 310.5 / 2 - 0.5)
    with pytest.raises(InputError, match=r"P\[0\] is 0; calibrate"):
        codecs.decode_camera_info(make_info(), rectified=True)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"k": [0.0] * 9}, r"K\[0\] is 0; calibrate"), ({"distortion_model": "barrel"}, "'barrel' is not known"),
    ({"d": [0.1, 0.2]}, "2 coefficients"), ({"width": 0}, "0 x 480"),
    ({"k": [500.0, 0.0, np.nan, 0.0, 510.0, 239.5, 0.0, 0.0, 1.0]}, "not finite")])
def test_what_is_wrong_with_a_calibration_is_named(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        codecs.decode_camera_info(make_info(**changes))


# --- joints, commands and transforms

def test_positions_go_by_their_joints():
    message = JointState(name=["a", "b"], position=[0.5, -1.0], velocity=[9.0, 9.0])
    assert codecs.decode_joint_positions(message) == {"a": 0.5, "b": -1.0}
    assert codecs.decode_joint_positions(JointState(name=["a", "b"], velocity=[9.0, 9.0])) == {}
    with pytest.raises(InputError, match="2 names and 1 positions; there must be one position for each name"):
        codecs.decode_joint_positions(JointState(name=["a", "b"], position=[0.5]))


def test_a_velocity_survives_both_ways():
    message = codecs.encode_twist((0.1, -0.2, 0.3), (1.0, 2.0, -3.0), 2_000_000_001, "base")
    assert (message.header.frame_id, codecs.stamp_to_ns(message.header.stamp)) == ("base", 2_000_000_001)
    linear, angular = codecs.decode_twist(message)
    np.testing.assert_array_equal(np.r_[linear, angular], (0.1, -0.2, 0.3, 1.0, 2.0, -3.0))


def test_a_velocity_without_a_frame_or_not_finite_is_refused():
    with pytest.raises(InputError, match="no frame_id"):
        codecs.decode_twist(TwistStamped())
    broken = codecs.encode_twist((0.1, np.inf, 0.3), (0.0, 0.0, 0.0), 1, "base")
    with pytest.raises(InputError, match="not finite"):
        codecs.decode_twist(broken)


def test_a_gripper_goal_and_a_transform_carry_their_numbers():
    goal = codecs.encode_gripper_goal(0.04, 20)
    assert (goal.command.position, goal.command.max_effort) == (0.04, 20.0)
    message = codecs.encode_transform("base", "hand", np.array([1, 2, 3]), np.array([0, 0, 0, 1]), 7)
    shift, turn = message.transform.translation, message.transform.rotation
    assert (message.header.frame_id, message.child_frame_id) == ("base", "hand")
    assert (shift.x, shift.y, shift.z, turn.x, turn.y, turn.z, turn.w) == (1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0)


def test_every_encoding_named_as_allowed_is_tested_here():
    mosaics = {f"bayer_{pattern}8" for pattern in ("rggb", "bggr", "gbrg", "grbg")}
    assert set(codecs.IMAGE_ENCODINGS) == (set(ENCODED) | {"mono8", "8UC1"} | mosaics
                                           | {"yuv422", "uyvy", "yuv422_yuy2", "yuyv"})
    assert re.search("allowed are " + ", ".join(codecs.IMAGE_ENCODINGS), _complaint("nonsense"))


def _complaint(encoding):
    with pytest.raises(InputError) as caught:
        codecs.decode_image(pack(RGB, encoding))
    return str(caught.value)
