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

from dataclasses import replace

import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.knobs import FootprintKnobs
from sqap_vla_ros.ros import codecs
from sqap_vla_ros.ros.transforms import FootprintFinder, TfHit

S = 1_000_000_000
KNOBS = FootprintKnobs(frames=("hand", "finger"), radii_m=(0.05, 0.02), max_tf_age_s=0.2)
SIZE = (640, 480)


def make_info(**changes):
    return CameraInfo(**{"width": 640, "height": 480, "distortion_model": "plumb_bob", "d": [0.0] * 5,
                         "k": [400.0, 0.0, 320.0, 0.0, 400.0, 240.0, 0.0, 0.0, 1.0]} | changes)


class Eyes:
    """A finder whose buffer is filled by hand."""

    def __init__(self, node, cameras=("camera",), knobs=KNOBS):
        self.finder, self.knobs = FootprintFinder(node, cameras, knobs, 0.1), knobs
        for index in range(len(cameras)):
            self.finder.take_camera_info(index, make_info())

    def put_one(self, parent, child, translation, stamp_ns, rotation=(0.0, 0.0, 0.0, 1.0)):
        message = codecs.encode_transform(parent, child, translation, rotation, stamp_ns)
        self.finder._buffer.set_transform(message, "test")

    def put(self, stamp_ns, hand=(0.1, 0.0, 1.0), finger=(0.0, 0.1, 0.0)):
        self.put_one("lens", "hand", hand, stamp_ns)
        self.put_one("hand", "finger", finger, stamp_ns)

    def find(self, stamp_ns, knobs=None, frame="lens", size=SIZE, index=0):
        return self.finder.find(knobs or self.knobs, index, frame, size, stamp_ns)


@pytest.fixture
def node():
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("eyes", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def open_eyes(node):
    """``open_eyes(cameras, **changed knobs)``."""
    opened = []

    def start(cameras=("camera",), **changes):
        opened.append(Eyes(node, cameras, replace(KNOBS, **changes)))
        return opened[-1]

    yield start
    for eyes in opened:
        eyes.finder.close()


@pytest.fixture
def eyes(open_eyes):
    return open_eyes()


def test_at_the_images_stamp_the_pose_between_two_transforms_is_projected(eyes):
    eyes.put(S, hand=(0.0, 0.0, 1.0))
    eyes.put(2 * S, hand=(0.4, 0.0, 1.0))
    found = eyes.find(S + S // 4)
    assert found.exact and found.hit is TfHit.EXACT and found.reason == ""
    np.testing.assert_allclose(found.footprint.centers_px, [(360.0, 240.0), (360.0, 280.0)])
    assert found.footprint.frames == ("hand", "finger")
    np.testing.assert_allclose(found.footprint.radii_px, (20.0, 8.0), rtol=0.02)


def test_frames_not_joined_protect_nothing_between_them(eyes):
    eyes.put(S)
    apart = eyes.find(S, replace(KNOBS, joined=False)).footprint
    np.testing.assert_allclose(apart.radii_px, (20.0, 0.0, 8.0), rtol=0.02)


def test_a_rectified_picture_goes_by_the_projection(node):
    finder = FootprintFinder(node, ("camera",), replace(KNOBS, rectified=True), 0.1)
    with pytest.raises(InputError, match=r"P\[0\] is 0"):
        finder.take_camera_info(0, make_info())
    finder.take_camera_info(0, make_info(p=[200.0, 0.0, 300.0, 0.0, 0.0, 200.0, 200.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
    for pose in (("lens", "hand", (0.1, 0.0, 1.0)), ("hand", "finger", (0.0, 0.1, 0.0))):
        finder._buffer.set_transform(codecs.encode_transform(*pose, (0.0, 0.0, 0.0, 1.0), S), "test")
    np.testing.assert_allclose(finder.find(KNOBS, 0, "lens", SIZE, S).footprint.centers_px, [(320, 200), (320, 220)])
    finder.close()


def test_a_transform_that_is_late_is_replaced_by_the_latest_and_said_to_be_inexact(eyes):
    eyes.put(S)
    found = eyes.find(S + S // 5)
    assert not found.exact and found.hit is TfHit.LATEST and found.reason == ""
    np.testing.assert_allclose(found.footprint.centers_px[0], (360.0, 240.0))


@pytest.mark.parametrize("away_s", [0.21, -0.21])
def test_a_transform_too_far_from_the_image_protects_nothing(eyes, away_s):
    eyes.put(10 * S)
    found = eyes.find(10 * S + round(away_s * S))
    assert found.footprint is None and not found.exact and found.hit is TfHit.NONE
    assert found.reason == ("the latest transform from 'hand' to 'lens' is 0.210 s away from the image; "
                            "allowed are 0.2 s")


def test_fixed_frames_are_never_too_old(eyes):
    message = codecs.encode_transform("lens", "bolt", (0.0, 0.0, 2.0), (0.0, 0.0, 0.0, 1.0), S)
    eyes.finder._buffer.set_transform_static(message, "test")
    found = eyes.find(500 * S, knobs=FootprintKnobs(frames=("bolt",), radii_m=(0.1,)))
    assert found.exact
    np.testing.assert_allclose(found.footprint.centers_px, [(320.0, 240.0)])


def test_what_is_missing_is_named(eyes):
    assert eyes.find(S).reason.startswith("no transform from 'hand' to 'lens': ")
    assert eyes.find(S).hit is TfHit.NONE and eyes.find(S, frame="").hit is TfHit.UNASKED
    eyes.put(S)
    assert "finger2" in eyes.find(S, knobs=FootprintKnobs(frames=("hand", "finger2"), radii_m=(0.1, 0.1))).reason
    assert eyes.find(S, frame="").reason.startswith("the image has no frame_id")
    assert eyes.find(S, size=(64, 48)).reason == "camera_info is for 640 x 480 px, the image has 64 x 48"


def test_another_frame_for_the_camera_overrules_the_images(eyes):
    eyes.put(S)
    knobs = FootprintKnobs(camera_frames=("lens",), frames=("hand",), radii_m=(0.1,))
    assert eyes.find(S, knobs=knobs, frame="misnamed").footprint is not None


def test_a_robot_behind_the_camera_is_not_protected(eyes):
    eyes.put(S, hand=(0.0, 0.0, -1.0))
    found = eyes.find(S)
    assert found.footprint is None and found.reason == "none of hand, finger is in front of the camera"
    assert found.hit is TfHit.EXACT


def test_a_calibration_that_cannot_be_used_voids_the_one_before(eyes):
    eyes.put(S)
    with pytest.raises(InputError, match=r"K\[0\] is 0"):
        eyes.finder.take_camera_info(0, make_info(k=[0.0] * 9))
    assert eyes.find(S).footprint is None and "K[0] is 0" in eyes.find(S).reason
    # It is told every time, and the next good one serves again.
    with pytest.raises(InputError):
        eyes.finder.take_camera_info(0, make_info(k=[0.0] * 9))
    eyes.finder.take_camera_info(0, make_info())
    assert eyes.find(S).footprint is not None


def test_clearing_forgets_the_poses_but_not_the_calibration(eyes):
    eyes.put(10 * S)
    eyes.finder.clear()
    assert eyes.find(10 * S).footprint is None
    eyes.put(S, hand=(0.2, 0.0, 1.0))
    np.testing.assert_allclose(eyes.find(S).footprint.centers_px[0], (400.0, 240.0))


# --- several cameras

def test_every_camera_has_its_own_calibration_frame_and_reason(open_eyes, node):
    eyes = open_eyes(("front", "wrist"), camera_frames=("", "wrist_lens"))
    eyes.put(S, hand=(0.1, 0.0, 1.0))
    eyes.put_one("wrist_lens", "lens", (0.0, 0.2, 1.0), S)
    eyes.finder.take_camera_info(1, make_info(k=[200.0, 0.0, 320.0, 0.0, 200.0, 240.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(eyes.find(S, index=0).footprint.centers_px[0], (360.0, 240.0))
    np.testing.assert_allclose(eyes.find(S, index=1).footprint.centers_px[0], (330.0, 260.0))
    with pytest.raises(InputError):
        eyes.finder.take_camera_info(1, make_info(k=[0.0] * 9))
    assert eyes.find(S, index=0).footprint is not None
    assert eyes.find(S, index=1).reason.startswith("wrist: camera_info is not calibrated, K[0] is 0")
    assert eyes.find(S, index=1).hit is TfHit.UNASKED
    fresh = FootprintFinder(node, ("front", "/cell/wrist"), eyes.knobs, 0.1)
    assert fresh.find(KNOBS, 1, "lens", SIZE, S).reason == ("/cell/wrist: no camera_info has arrived on "
                                                            "/cell/wrist/camera_info")
    fresh.close()


# From the base the first camera looks along x, the second straight down.
ALONG_X = (0.0, 0.1, 0.5, -0.5, 0.5, -0.5, 0.5)
DOWN = (1.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0)


def test_cameras_whose_poses_are_given_need_no_frame_of_their_own(open_eyes):
    eyes = open_eyes(("front", "/top"), extrinsics_frame="base", extrinsics=ALONG_X + DOWN)
    eyes.put_one("base", "hand", (1.0, 0.0, 0.4), S)
    eyes.put_one("hand", "finger", (0.0, 0.1, 0.0), S)
    # A driver's tree that knows nothing of the robot does no harm.
    eyes.put_one("mount", "lens", (9.0, 9.0, 9.0), S)
    for frame in ("", "lens"):
        along, down = eyes.find(S, index=0, frame=frame), eyes.find(S, index=1, frame=frame)
        assert along.hit is TfHit.EXACT and down.hit is TfHit.EXACT
        # 0.1 m to the right of the axis and 0.1 m below it, 1 m away; then on the axis, 1.6 m away.
        np.testing.assert_allclose(along.footprint.centers_px[0], (360.0, 280.0))
        np.testing.assert_allclose(down.footprint.centers_px, [(320.0, 240.0), (320.0, 215.0)])


def test_given_poses_outlive_a_jump_of_the_clock_and_moving_frames_do_not(open_eyes):
    eyes = open_eyes(extrinsics_frame="base", extrinsics=ALONG_X)
    for child in ("hand", "finger"):
        eyes.put_one("base", child, (1.0, 0.0, 0.5), 10 * S)
    assert eyes.find(10 * S).footprint is not None
    eyes.finder.clear()
    assert eyes.find(10 * S).reason.startswith("no transform from 'hand' to 'camera/footprint.extrinsics': ")
    for child in ("hand", "finger"):
        eyes.put_one("base", child, (1.0, 0.1, 0.5), S)
    np.testing.assert_allclose(eyes.find(S).footprint.centers_px[0], (320.0, 240.0))


# --- the tool

def test_the_tools_pose_is_that_of_the_moment_or_else_the_latest(eyes):
    turned = (0.0, 0.0, np.sin(0.5), np.cos(0.5))
    eyes.put_one("base", "arm", (1.0, 0.0, 0.0), S)
    eyes.put_one("base", "arm", (2.0, 0.0, 0.0), 2 * S)
    for stamp_ns in (S, 2 * S):
        eyes.put_one("arm", "tool", (0.0, 0.5, 0.0), stamp_ns, rotation=turned)
    found = eyes.finder.find_tool("base", "tool", S + S // 2, 0.2)
    assert (found.hit, found.reason) == (TfHit.EXACT, "")
    np.testing.assert_allclose(found.pose[0], (1.5, 0.5, 0.0))
    np.testing.assert_allclose(found.pose[1], turned)
    found = eyes.finder.find_tool("base", "tool", 2 * S + S // 10, 0.2)
    assert (found.hit, found.reason) == (TfHit.LATEST, "")
    np.testing.assert_allclose(found.pose[0], (2.0, 0.5, 0.0))


def test_why_the_tools_pose_is_not_known_is_told(eyes):
    assert eyes.finder.find_tool("base", "tool", S, 0.2).reason.startswith("no transform from 'tool' to 'base': ")
    eyes.put_one("base", "tool", (1.0, 0.0, 0.0), S)
    found = eyes.finder.find_tool("base", "tool", 2 * S, 0.2)
    assert found.pose is None and found.hit is TfHit.NONE
    assert found.reason == ("the latest transform from 'tool' to 'base' is 1.000 s away from the moment asked for; "
                            "allowed are 0.2 s")
    eyes.put_one("base", "tool", (np.inf, 0.0, 0.0), 2 * S)
    assert eyes.finder.find_tool("base", "tool", 2 * S, 0.2).reason.startswith(
        "the transform from 'tool' to 'base' is not finite: [inf, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]; check who")


def test_what_was_stamped_before_a_jump_back_of_the_clock_and_comes_after_it_is_dropped(open_eyes, node):
    eyes, now_ns = open_eyes(), node.get_clock().now().nanoseconds

    def receive(ahead_ns):
        stamp_ns = now_ns + ahead_ns
        eyes.finder._take_moving(TFMessage(transforms=[
            codecs.encode_transform(parent, child, (0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0), stamp_ns)
            for parent, child in (("lens", "hand"), ("hand", "finger"))]))
        return stamp_ns

    ahead_ns = receive(60 * S)
    assert eyes.find(ahead_ns).hit is TfHit.NONE
    assert eyes.find(receive(0)).hit is TfHit.EXACT
    assert eyes.find(now_ns + S).hit is TfHit.NONE
