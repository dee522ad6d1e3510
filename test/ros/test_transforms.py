from dataclasses import replace

import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from sensor_msgs.msg import CameraInfo

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.knobs import FootprintKnobs
from sqap_vla_ros.ros import codecs
from sqap_vla_ros.ros.transforms import FootprintFinder

S = 1_000_000_000
KNOBS = FootprintKnobs(frames=("hand", "finger"), radii_m=(0.05, 0.02), max_tf_age_s=0.2)
SIZE = (640, 480)


def make_info(**changes):
    return CameraInfo(**{"width": 640, "height": 480, "distortion_model": "plumb_bob", "d": [0.0] * 5,
                         "k": [400.0, 0.0, 320.0, 0.0, 400.0, 240.0, 0.0, 0.0, 1.0]} | changes)


class Eyes:
    """A finder whose buffer is filled by hand."""

    def __init__(self, node):
        self.finder = FootprintFinder(node)

    def put(self, stamp_ns, hand=(0.1, 0.0, 1.0), finger=(0.0, 0.1, 0.0)):
        for pose in (("lens", "hand", hand), ("hand", "finger", finger)):
            message = codecs.encode_transform(*pose, (0.0, 0.0, 0.0, 1.0), stamp_ns)
            self.finder._buffer.set_transform(message, "test")

    def find(self, stamp_ns, knobs=KNOBS, frame="lens", size=SIZE):
        return self.finder.find(knobs, frame, size, stamp_ns)


@pytest.fixture
def node():
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("eyes", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def eyes(node):
    eyes = Eyes(node)
    eyes.finder.take_camera_info(make_info())
    yield eyes
    eyes.finder.close()


def test_at_the_images_stamp_the_pose_between_two_transforms_is_projected(eyes):
    eyes.put(S, hand=(0.0, 0.0, 1.0))
    eyes.put(2 * S, hand=(0.4, 0.0, 1.0))
    found = eyes.find(S + S // 4)
    assert found.exact and found.reason == ""
    np.testing.assert_allclose(found.footprint.centers_px, [(360.0, 240.0), (360.0, 280.0)])
    assert found.footprint.frames == ("hand", "finger")
    np.testing.assert_allclose(found.footprint.radii_px, (20.0, 8.0), rtol=0.02)


def test_frames_not_joined_protect_nothing_between_them(eyes):
    eyes.put(S)
    apart = eyes.find(S, replace(KNOBS, joined=False)).footprint
    np.testing.assert_allclose(apart.radii_px, (20.0, 0.0, 8.0), rtol=0.02)


def test_a_rectified_picture_goes_by_the_projection(node):
    finder = FootprintFinder(node, rectified=True)
    with pytest.raises(InputError, match=r"P\[0\] is 0"):
        finder.take_camera_info(make_info())
    finder.take_camera_info(make_info(p=[200.0, 0.0, 300.0, 0.0, 0.0, 200.0, 200.0, 0.0, 0.0, 0.0, 1.0, 0.0]))
    for pose in (("lens", "hand", (0.1, 0.0, 1.0)), ("hand", "finger", (0.0, 0.1, 0.0))):
        finder._buffer.set_transform(codecs.encode_transform(*pose, (0.0, 0.0, 0.0, 1.0), S), "test")
    np.testing.assert_allclose(finder.find(KNOBS, "lens", SIZE, S).footprint.centers_px, [(320, 200), (320, 220)])
    finder.close()


def test_a_transform_that_is_late_is_replaced_by_the_latest_and_said_to_be_inexact(eyes):
    eyes.put(S)
    found = eyes.find(S + S // 5)
    assert not found.exact and found.reason == ""
    np.testing.assert_allclose(found.footprint.centers_px[0], (360.0, 240.0))


@pytest.mark.parametrize("away_s", [0.21, -0.21])
def test_a_transform_too_far_from_the_image_protects_nothing(eyes, away_s):
    eyes.put(10 * S)
    found = eyes.find(10 * S + round(away_s * S))
    assert found.footprint is None and not found.exact
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


def test_a_calibration_that_cannot_be_used_voids_the_one_before(eyes):
    eyes.put(S)
    with pytest.raises(InputError, match=r"K\[0\] is 0"):
        eyes.finder.take_camera_info(make_info(k=[0.0] * 9))
    assert eyes.find(S).footprint is None and "K[0] is 0" in eyes.find(S).reason
    # It is told every time, and the next good one serves again.
    with pytest.raises(InputError):
        eyes.finder.take_camera_info(make_info(k=[0.0] * 9))
    eyes.finder.take_camera_info(make_info())
    assert eyes.find(S).footprint is not None


def test_clearing_forgets_the_poses_but_not_the_calibration(eyes):
    eyes.put(10 * S)
    eyes.finder.clear()
    assert eyes.find(10 * S).footprint is None
    eyes.put(S, hand=(0.2, 0.0, 1.0))
    np.testing.assert_allclose(eyes.find(S).footprint.centers_px[0], (400.0, 240.0))
