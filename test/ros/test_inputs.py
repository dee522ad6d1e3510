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

"""Pictures and joint states over real DDS."""

import re
from dataclasses import replace

import numpy as np
import pytest
import rclpy
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import CameraInfo, JointState

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.knobs import InputKnobs
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.inputs import Cameras, JointStates
from sqap_vla_ros.ros.transforms import FoundTool, TfHit

S, MS = 1_000_000_000, 1_000_000
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def listener(peer):
    """A node beside the peer's, spun with it."""
    node = rclpy.create_node("listener", context=peer.context)
    peer.executor.add_node(node)
    yield node
    peer.executor.remove_node(node)
    node.destroy_node()


class Cell:
    """Cameras that send what a test says, and what is made of it."""

    def __init__(self, peer, node, knobs):
        self.peer, self.pictures, self.calibrations, self.notes = peer, [], [], []
        self.cameras = Cameras(node, knobs, self.pictures.append, self._calibrate,
                               lambda kind, sentence: self.notes.append((kind, sentence)),
                               lambda: Clock(clock_type=ClockType.STEADY_TIME).now().nanoseconds)
        end = interface.IMAGE_COMPRESSED if knobs.transport == "compressed" else interface.IMAGE
        self.outs, self.infos = ([interface.advertise(peer.node, interface.of_camera(item, camera))
                                  for camera in knobs.cameras] for item in (end, interface.CAMERA_INFO))
        for out in self.outs + self.infos:
            peer.wait(lambda out=out: out.get_subscription_count() == 1, f"subscription to {out.topic_name}")

    def _calibrate(self, index, message):
        self.calibrations.append((index, message))
        if message.width == 0:
            raise InputError("no width")

    def send(self, index, stamp_ns, encode=codecs.encode_image):
        self.outs[index].publish(encode(RGB, stamp_ns, f"lens_{index}"))

    def gather(self, index, stamp_ns):
        """Send what completes a set, and give the stamps of that set."""
        count = len(self.pictures)
        self.send(index, stamp_ns)
        self.peer.wait(lambda: len(self.pictures) > count, "a complete set")
        assert len(self.pictures) == count + 1
        return [codecs.stamp_to_ns(message.header.stamp) for message in self.pictures[-1].messages]

    def keep(self, index, stamp_ns, why):
        """Send what completes nothing, and have that said."""
        count, waiting = len(self.pictures), self.cameras._waiting[index]
        self.send(index, stamp_ns)
        self.peer.wait(lambda: waiting and waiting[-1][0] == stamp_ns, "the image")
        assert len(self.pictures) == count
        assert re.fullmatch(why, self.cameras.why_incomplete)


@pytest.fixture
def open_cell(peer, listener):
    """``open_cell(cameras, **changed knobs)``."""
    opened = []

    def start(cameras=("camera",), **changes):
        opened.append(Cell(peer, listener, replace(InputKnobs(), cameras=cameras, **changes)))
        return opened[-1]

    yield start
    for cell in opened:
        cell.cameras.close()


# --- pictures

@pytest.mark.parametrize(("transport", "encode", "kind"), [("raw", codecs.encode_image, "Image"),
                                                           ("compressed", codecs.encode_compressed, "CompressedImage")])
def test_a_single_cameras_pictures_come_one_by_one(open_cell, peer, transport, encode, kind):
    cell, wall = open_cell(transport=transport), Clock(clock_type=ClockType.STEADY_TIME)
    assert cell.cameras.topics == ({"raw": "camera/image_raw", "compressed": "camera/image_raw/compressed"}[transport],)
    assert cell.cameras.why_incomplete == f"no image has arrived on {cell.cameras.topics[0]}"
    before_ns = wall.now().nanoseconds
    for count in (1, 2):
        cell.send(0, count * S, encode)
        peer.wait(lambda count=count: len(cell.pictures) == count, "the picture")
    picture = cell.pictures[-1]
    assert [message.__msgtype__ for message in picture.messages] == [f"sensor_msgs/msg/{kind}"]
    assert picture.stamp_ns == 2 * S and picture.messages[0].header.frame_id == "lens_0"
    assert before_ns < cell.pictures[0].arrived_ns < picture.arrived_ns < wall.now().nanoseconds
    decoded, = cell.cameras.decode(picture)
    np.testing.assert_array_equal(decoded, RGB if transport == "raw" else codecs.decode_compressed(picture.messages[0]))
    assert cell.cameras.why_incomplete == ""


def test_a_set_is_complete_when_every_camera_brought_an_image_of_about_one_moment(open_cell):
    cell = open_cell(("front", "/cell/left", "wrist"))
    assert cell.cameras.topics == ("front/image_raw", "/cell/left/image_raw", "wrist/image_raw")
    cell.keep(1, S, "no image has arrived on front/image_raw, wrist/image_raw")
    cell.keep(2, S + 20 * MS, "no image has arrived on front/image_raw")
    assert cell.gather(0, S + 50 * MS) == [S + 50 * MS, S, S + 20 * MS]
    assert cell.pictures[0].stamp_ns == S
    assert [message.header.frame_id for message in cell.pictures[0].messages] == ["lens_0", "lens_1", "lens_2"]
    # None of them is used again.
    assert cell.cameras.why_incomplete == ""
    cell.keep(0, S + 60 * MS, "no newer image has arrived on /cell/left/image_raw, wrist/image_raw")


def test_images_too_far_apart_are_no_set_and_the_limit_may_change(open_cell):
    cell = open_cell(("front", "wrist"), max_skew_s=0.05)
    cell.keep(0, S, "no image has arrived on wrist/image_raw")
    cell.keep(1, S + 50 * MS + 1, re.escape(
        "the image on front/image_raw is 0.050 s older than that on wrist/image_raw; allowed are 0.05 s, which is "
        "input.max_skew_s; synchronise the cameras or their clocks"))
    cell.cameras.knobs = replace(cell.cameras.knobs, max_skew_s=0.2)
    assert cell.gather(1, S + 150 * MS) == [S, S + 50 * MS + 1]


def test_a_camera_whose_images_take_longer_is_waited_for(open_cell):
    cell = open_cell(("front", "wrist"), max_skew_s=0.01)
    for index in range(5):
        cell.keep(0, S + index * 33 * MS, "no image has arrived on wrist/image_raw")
    # The oldest of six makes room.
    cell.keep(0, S + 5 * 33 * MS, "no image has arrived on wrist/image_raw")
    cell.keep(1, S, "the image on wrist/image_raw is 0.033 s older than that on front/image_raw; .*")
    assert cell.gather(1, S + 33 * MS) == [S + 33 * MS] * 2
    assert cell.gather(1, S + 3 * 33 * MS) == [S + 3 * 33 * MS] * 2
    assert cell.gather(1, S + 5 * 33 * MS) == [S + 5 * 33 * MS] * 2


def test_of_a_faster_camera_the_image_nearest_to_the_slower_ones_is_taken(open_cell):
    cell = open_cell(("front", "wrist"), max_skew_s=0.05)
    for stamp_ms in (0, 10, 20, 30):
        cell.keep(0, S + stamp_ms * MS, "no image has arrived on wrist/image_raw")
    assert cell.gather(1, S + 18 * MS) == [S + 20 * MS, S + 18 * MS]
    assert cell.gather(1, S + 90 * MS - 11 * MS) == [S + 30 * MS, S + 79 * MS]


def test_a_camera_that_begins_anew_is_not_held_to_its_old_images(open_cell):
    cell = open_cell(("front", "wrist"))
    cell.keep(0, 50 * S, "no image has arrived on wrist/image_raw")
    cell.keep(1, 2 * S, "the image on wrist/image_raw is 48.000 s older than that on front/image_raw; .*")
    assert cell.gather(0, 2 * S) == [2 * S, 2 * S]
    assert cell.cameras.why_incomplete == ""


def test_after_a_jump_of_the_clock_nothing_old_is_used(open_cell):
    cell = open_cell(("front", "wrist"))
    cell.keep(0, S, "no image has arrived on wrist/image_raw")
    cell.cameras.clear()
    cell.keep(1, S, "no newer image has arrived on front/image_raw")
    assert cell.gather(0, S + MS) == [S + MS, S]


def test_an_image_that_cannot_be_decoded_is_named_by_its_topic(open_cell, peer):
    cell = open_cell(("front", "wrist"))
    cell.send(0, S)
    cell.gather(1, S)
    message = cell.pictures[0].messages[1]
    message.encoding = "16UC1"
    with pytest.raises(InputError, match=r"^wrist/image_raw: image encoding '16UC1' cannot be taken"):
        cell.cameras.decode(cell.pictures[0])


# --- calibrations

def test_calibrations_go_by_their_camera_and_what_is_wrong_with_one_is_told(open_cell, peer):
    cell = open_cell(("front", "wrist"))
    cell.infos[1].publish(CameraInfo(width=640))
    peer.wait(lambda: len(cell.calibrations) == 1, "the calibration")
    cell.infos[0].publish(CameraInfo(width=0))
    peer.wait(lambda: len(cell.calibrations) == 2, "the calibration")
    assert [(index, message.width) for index, message in cell.calibrations] == [(1, 640), (0, 0)]
    assert cell.notes == [("camera_info", "no width")]


def test_what_is_closed_hears_nothing(open_cell, peer):
    cell = open_cell(("front", "wrist"))
    cell.cameras.close()
    peer.wait(lambda: not any(out.get_subscription_count() for out in cell.outs + cell.infos), "the end")


# --- joint states

KNOBS = InputKnobs(state="joints", joints=("shoulder", "elbow", "finger"))


@pytest.fixture
def open_joints(peer, listener):
    """``open_joints(**changed knobs)``: joint states and what sends them."""
    opened = []

    def start(**changes):
        joints = JointStates(listener, replace(KNOBS, **changes))
        opened.append(joints)
        out = interface.advertise(peer.node, interface.JOINT_STATES)
        peer.wait(lambda: out.get_subscription_count() == 1, "subscription to the joint states")
        return joints, out

    yield start
    for joints in opened:
        joints.close()


def make_joints(stamp_ns, **positions):
    return JointState(header=codecs.make_header(stamp_ns, ""), name=list(positions),
                      position=[float(value) for value in positions.values()])


def complaint(joints, now_ns=S, tool=None):
    """Why there is no state; empty when there is one."""
    try:
        joints.state(now_ns, 0.5, tool)
    except InputError as error:
        return str(error)
    return ""


def test_positions_of_several_publishers_come_in_the_models_order(open_joints, peer):
    joints, arm = open_joints()
    hand = interface.advertise(peer.node, interface.JOINT_STATES)
    peer.wait(lambda: hand.get_subscription_count() == 1, "subscription to the joint states")
    arm.publish(make_joints(S, elbow=-0.5, wheel=9.0, shoulder=0.25))
    peer.wait(lambda: "'finger'" in complaint(joints), "the arm's positions")
    assert complaint(joints) == ("no position of joint 'finger' is on joint_states, of input.joints only shoulder, "
                                 "elbow are")
    hand.publish(make_joints(S, finger=0.04))
    peer.wait(lambda: not complaint(joints), "the finger's position")
    state = joints.state(S, 0.5, None)
    np.testing.assert_array_equal(state, (0.25, -0.5, 0.04))
    assert state.dtype == np.float64
    arm.publish(make_joints(S, elbow=-0.75))
    peer.wait(lambda: joints.state(S, 0.5, None)[1] == -0.75, "the newer position")


def test_positions_that_are_missing_old_or_not_finite_are_named(open_joints, peer):
    joints, out = open_joints(joints=("shoulder", "elbow"))
    assert complaint(joints) == "no position of joint 'shoulder' is on joint_states, nor is any other"
    out.publish(make_joints(10 * S, shoulder=0.25, elbow=-0.5))
    peer.wait(lambda: not complaint(joints, 10 * S), "the positions")
    assert complaint(joints, 10 * S + 500 * MS) == ""
    assert complaint(joints, 10 * S + 501 * MS) == ("the position of joint 'shoulder' on joint_states is 0.501 s old; "
                                                    "allowed are 0.5 s")
    assert complaint(joints, 8 * S) == ("the position of joint 'shoulder' on joint_states is 2.000 s ahead of the "
                                        "node's clock; allowed are 0.5 s")
    out.publish(make_joints(10 * S, elbow=np.nan))
    peer.wait(lambda: complaint(joints, 10 * S), "the broken position")
    assert complaint(joints, 10 * S) == "the position of joint 'elbow' on joint_states is nan; it must be finite"
    joints.clear()
    assert complaint(joints, 10 * S) == "no position of joint 'shoulder' is on joint_states, nor is any other"


def test_a_message_that_does_not_fit_is_told_while_positions_are_missing(open_joints, peer):
    joints, out = open_joints()
    out.publish(JointState(header=codecs.make_header(S, ""), name=["shoulder", "elbow", "finger"], position=[0.5]))
    peer.wait(lambda: "3 names" in complaint(joints), "the complaint")
    assert complaint(joints) == ("no position of joint 'shoulder' is on joint_states, nor is any other; the joint "
                                 "states have 3 names and 1 positions; there must be one position for each name")
    out.publish(make_joints(S, shoulder=1, elbow=2, finger=3))
    peer.wait(lambda: not complaint(joints), "the positions")
    assert complaint(joints, 9 * S).endswith("is 8.000 s old; allowed are 0.5 s")


TOOL = FoundTool((np.array([0.5, -0.25, 1.0]), np.array([0.0, 0.0, np.sin(0.3), np.cos(0.3)])), "",
                 TfHit.EXACT)


@pytest.mark.parametrize("kind", ["pose_axis_angle", "pose_rpy"])
def test_the_tools_pose_comes_before_the_positions(open_joints, peer, kind):
    joints, out = open_joints(state=kind, joints=("finger",))
    out.publish(make_joints(S, finger=0.04))
    peer.wait(lambda: not complaint(joints, tool=TOOL), "the position")
    np.testing.assert_allclose(joints.state(S, 0.5, TOOL), (0.5, -0.25, 1.0, 0.0, 0.0, 0.6, 0.04))
    turned = replace(TOOL, pose=(TOOL.pose[0], np.array([0.5, 0.5, 0.5, 0.5])))
    third = 2 * np.pi / 3 / np.sqrt(3)
    expected = (third,) * 3 if kind == "pose_axis_angle" else (np.pi / 2, 0.0, np.pi / 2)
    np.testing.assert_allclose(joints.state(S, 0.5, turned)[3:6], expected, atol=1e-12)
    assert complaint(joints, tool=FoundTool(None, "no transform", TfHit.NONE)) == (
        f"the tool's pose, which input.state '{kind}' begins with, is not known: no transform")
    assert complaint(joints).endswith("is not known: it was not looked for")


def test_a_state_without_joints_listens_to_none(listener):
    pose = JointStates(listener, InputKnobs(state="pose_rpy"))
    np.testing.assert_allclose(pose.state(S, 0.5, TOOL), (0.5, -0.25, 1.0, 0.0, 0.0, 0.6))
    assert JointStates(listener, replace(KNOBS, state="none")).state(S, 0.5, TOOL) is None
    assert listener.count_subscribers("joint_states") == 0
    pose.close()
