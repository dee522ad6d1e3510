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

"""A bag looked at through the node's own parts."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.bags.contract import Names, find_missing, list_wanted, parse_remap
from sqap_vla_ros.bags.reading import BagMessage, TopicFacts, open_bag
from sqap_vla_ros.bags.stepping import Stepper
from sqap_vla_ros.config import Config, build_config
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.transforms import TfHit

MS = 1_000_000
START_NS = 5_000 * MS
CAMERA = Camera(np.array([[80.0, 0.0, 32.0], [0.0, 80.0, 24.0], [0.0, 0.0, 1.0]]), np.zeros(5), "plumb_bob", 64, 48)
UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])
ROOT = Names("", {})


@dataclass
class ListedBag:
    """A bag in memory."""

    entries: list = field(default_factory=list)

    def add(self, endpoint, message, log_ns):
        self.entries.append(BagMessage(ROOT.resolve(endpoint.name), endpoint.type_name, log_ns,
                                       serialize_message(message)))

    @property
    def topics(self):
        return {entry.topic: TopicFacts(entry.type_name, 1) for entry in self.entries}

    def messages(self, topics):
        return iter([entry for entry in sorted(self.entries, key=lambda entry: entry.log_ns) if entry.topic in topics])


def make_bag(count=3, *, tf_late_ns=0, offset_ns=0, instruction="go", period_ns=100 * MS):
    """Pictures with the hand in front of the camera; log times are stamps plus an offset."""
    bag = ListedBag()
    if instruction:
        bag.add(interface.INSTRUCTION, String(data=instruction), START_NS + offset_ns)
    for index in range(count):
        add_moment(bag, START_NS + index * period_ns, offset_ns, tf_late_ns)
    return bag


def add_moment(bag, stamp_ns, offset_ns=0, tf_late_ns=0, image=None):
    frames = [("lens", "panda_hand", (0.0, 0.0, 0.8)), ("panda_hand", "panda_leftfinger", (-0.04, 0.0, 0.0)),
              ("panda_hand", "panda_rightfinger", (0.04, 0.0, 0.0))]
    transforms = [codecs.encode_transform(parent, child, np.array(place), UPRIGHT, stamp_ns)
                  for parent, child, place in frames]
    bag.add(interface.TF, TFMessage(transforms=transforms), stamp_ns + offset_ns + tf_late_ns)
    bag.add(interface.CAMERA_INFO, codecs.encode_camera_info(CAMERA, stamp_ns, "lens"), stamp_ns + offset_ns)
    image = codecs.encode_image(np.zeros((48, 64, 3), np.uint8), stamp_ns, "lens") if image is None else image
    bag.add(interface.IMAGE, image, stamp_ns + offset_ns)


def make_stepper(instruction="", notes=None, **knobs):
    config = build_config({"footprint.required": False,
                           **{name.replace("__", "."): value for name, value in knobs.items()}})
    notes = [] if notes is None else notes
    return Stepper(config, ROOT, instruction, lambda kind, sentence: notes.append((kind, sentence)))


def step(bag, instruction="", **knobs):
    notes = []
    return list(make_stepper(instruction, notes, **knobs).looks(bag)), notes


def test_every_picture_is_looked_at_with_the_robot_where_it_was():
    looks, _ = step(make_bag(3))
    assert [look.stamp_ns for look in looks] == [START_NS + index * 100 * MS for index in range(3)]
    assert all(look.tf is TfHit.EXACT and look.instruction == "go" and not look.refused for look in looks)
    footprint, = looks[0].seen.observation.footprints
    np.testing.assert_allclose(footprint.centers_px[0], (32.0, 24.0))


def test_a_picture_waits_for_tf_in_the_bags_own_time_and_no_longer():
    looks, _ = step(make_bag(3, tf_late_ns=20 * MS))
    assert [look.tf for look in looks] == [TfHit.EXACT] * 3
    looks, _ = step(make_bag(3, tf_late_ns=50 * MS))
    assert [look.tf for look in looks] == [TfHit.NONE, TfHit.LATEST, TfHit.LATEST]
    assert "panda_hand" in looks[0].seen.observation.footprint_reason


@pytest.mark.parametrize("offset_ns", [10**18, 6_000 * MS, 1_000 * MS, -150 * MS, -1_000 * MS, -4_500 * MS])
def test_a_recording_clock_that_is_not_the_robots_is_no_hindrance(offset_ns):
    bag, stepper = make_bag(3, offset_ns=offset_ns), make_stepper()
    assert [look.tf for look in stepper.looks(bag)] == [TfHit.EXACT] * 3
    told = "the pictures' stamps are not of the clock that recorded them" in "".join(stepper.complaints)
    assert told == (offset_ns != 1_000 * MS)


def test_a_clock_topic_without_messages_is_none():
    bag = make_bag(3)
    topics = {**bag.topics, "/clock": TopicFacts(interface.CLOCK.type_name, 0)}
    silent = SimpleNamespace(topics=topics, messages=bag.messages)
    assert [look.tf for look in make_stepper().looks(silent)] == [TfHit.EXACT] * 3


def test_pictures_without_stamps_are_all_looked_at_and_those_from_before_time_are_refused():
    bag = ListedBag()
    bag.add(interface.INSTRUCTION, String(data="go"), 0)
    for index, sec in enumerate((0, 0, -5)):
        image = codecs.encode_image(np.zeros((48, 64, 3), np.uint8), 0, "lens")
        image.header.stamp.sec = sec
        bag.add(interface.IMAGE, image, index * 100 * MS)
    looks, _ = step(bag)
    assert [look.stamp_ns for look in looks] == [0, 0, -5_000 * MS]
    assert [bool(look.refused) for look in looks] == [False, False, True] and "-5.000 s" in looks[2].refused


def test_where_the_robot_must_be_found_the_looks_without_it_are_refused_and_counted_as_such():
    looks, _ = step(make_bag(3, tf_late_ns=50 * MS), footprint__required=True)
    assert [look.tf for look in looks] == [TfHit.NONE, TfHit.LATEST, TfHit.LATEST]
    assert [bool(look.refused) for look in looks] == [True, False, False]


def test_an_instruction_that_the_node_would_not_take_is_not_taken():
    looks, _ = step(make_bag(1), input__instructions=["wave", "stop"])
    assert looks[0].seen is None and "wave" in looks[0].refused


def test_a_state_is_as_old_as_it_was_when_the_wait_was_over():
    bag = ListedBag()
    bag.add(interface.INSTRUCTION, String(data="go"), START_NS)
    for index in range(2):
        stamp_ns = START_NS + index * 1_000 * MS
        bag.add(interface.JOINT_STATES, JointState(header=codecs.make_header(stamp_ns - MS, ""), name=["j"],
                                                   position=[0.5]), stamp_ns)
        bag.add(interface.CAMERA_INFO, codecs.encode_camera_info(CAMERA, stamp_ns, "lens"), stamp_ns)
        bag.add(interface.IMAGE, codecs.encode_image(np.zeros((48, 64, 3), np.uint8), stamp_ns, "lens"), stamp_ns)
    looks, _ = step(bag, input__state="joints", input__joints=["j"])
    assert [look.refused for look in looks] == ["", ""] and looks[0].seen.observation.state.tolist() == [0.5]


def test_with_a_recorded_clock_that_one_counts_and_its_jump_back_forgets_the_frames():
    bag = make_bag(2, offset_ns=10**18)
    bag.add(interface.CLOCK, Clock(clock=codecs.ns_to_stamp(START_NS + 150 * MS)), START_NS + 10**18 + 150 * MS)
    bag.add(interface.CLOCK, Clock(clock=codecs.ns_to_stamp(1000 * MS)), START_NS + 10**18 + 160 * MS)
    image = codecs.encode_image(np.zeros((48, 64, 3), np.uint8), START_NS + 100 * MS, "lens")
    bag.add(interface.IMAGE, image, START_NS + 10**18 + 170 * MS)
    looks, _ = step(bag)
    assert looks[-1].stamp_ns == START_NS + 100 * MS and looks[-1].tf is TfHit.NONE


def test_a_picture_that_was_sent_twice_is_looked_at_once():
    bag, stepper = make_bag(2), make_stepper()
    add_moment(bag, START_NS + 100 * MS, offset_ns=MS)
    assert len(list(stepper.looks(bag))) == 2
    assert stepper.complaints == ["1 pictures bear the stamp of the one before and are looked at once"]


def test_the_instruction_in_force_is_that_of_the_moment_or_the_one_that_is_given():
    bag = make_bag(3)
    bag.add(interface.INSTRUCTION, String(data="stop it"), START_NS + 150 * MS)
    assert [look.instruction for look in step(bag)[0]] == ["go", "go", "stop it"]
    assert [look.instruction for look in step(bag, instruction="dance")[0]] == ["dance"] * 3


def test_without_an_instruction_nothing_is_asked_and_the_reason_is_told():
    looks, _ = step(make_bag(2, instruction=""))
    assert [look.seen for look in looks] == [None, None]
    assert looks[0].refused == "there is no instruction on instruction yet"


def test_a_picture_that_cannot_be_read_is_refused_and_the_others_go_on():
    bag = make_bag(2)
    add_moment(bag, START_NS + 200 * MS, image=Image(
        header=codecs.make_header(START_NS + 200 * MS, "lens"), width=64, height=48, encoding="16UC1", step=128,
        data=bytes(128 * 48)))
    looks, notes = step(bag)
    assert [bool(look.refused) for look in looks] == [False, False, True]
    assert "camera/image_raw: image encoding '16UC1' cannot be taken" in looks[2].refused
    assert ("image", looks[2].refused) in notes


def test_a_message_that_is_no_message_is_told_with_its_topic():
    bag = make_bag(3)
    for index in range(2):
        bag.entries.append(BagMessage("/tf", interface.TF.type_name, START_NS + index, b"\x00\x01\x00\x00\xff"))
    bag.entries.append(BagMessage("/camera/image_raw", interface.IMAGE.type_name, START_NS + 50 * MS, b"\x00\x01\x00"))
    stepper = make_stepper()
    assert [look.tf for look in stepper.looks(bag)] == [TfHit.EXACT] * 3
    assert [sentence.partition(", the first")[0] for sentence in stepper.complaints] == [
        "2 messages on /tf cannot be read and are left out",
        "1 messages on /camera/image_raw cannot be read and are left out"]


def test_a_topic_of_another_type_is_not_listened_to():
    bag = make_bag(2)
    bag.entries = [BagMessage(entry.topic, "std_msgs/msg/String", entry.log_ns, serialize_message(String(data="no")))
                   if entry.topic == "/camera/camera_info" else entry for entry in bag.entries]
    looks, _ = step(bag)
    assert len(looks) == 2 and "no camera_info" in looks[0].seen.observation.footprint_reason


def test_topics_are_found_in_a_namespace_and_by_other_names():
    names = Names("/arm", parse_remap(["camera/image_raw:=/wrist/color", "~/chunk:=answers"]))
    assert names.resolve("camera/camera_info") == "/arm/camera/camera_info"
    assert names.resolve("camera/image_raw") == "/wrist/color" and names.resolve("/tf") == "/tf"
    assert names.resolve("~/chunk") == "/arm/answers" and names.resolve("~/path") == "/arm/policy_node/path"
    with pytest.raises(ConfigError, match="'a=b' remaps nothing; write FROM:=TO"):
        parse_remap(["a=b"])


def test_what_is_missing_is_named_with_what_could_be_meant():
    wanted = list_wanted(Config(), ROOT, "")
    image, info = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"
    found = {item.name: (item, sentence) for item, sentence in find_missing(wanted, {
        "/wrist/image_raw": TopicFacts(image, 5), "/camera/camera_info": TopicFacts(image, 5),
        "/tf": TopicFacts("tf2_msgs/msg/TFMessage", 0), "/instruction": TopicFacts("std_msgs/msg/String", 1)})}
    assert found["/camera/image_raw"][0].required and "/instruction" not in found
    assert found["/camera/image_raw"][1] == (
        "/camera/image_raw is not there; of its type there are /wrist/image_raw, /camera/camera_info: --remap "
        "/camera/image_raw:=/wrist/image_raw")
    assert found["/camera/camera_info"][1].startswith(f"/camera/camera_info holds {image}, not {info}")
    assert found["/tf"][1] == "/tf is empty"


def test_a_bag_of_the_simulated_robot_is_looked_at_whole(simulated_bag):
    with open_bag(simulated_bag) as bag:
        looks, notes = step(bag)
    assert len(looks) == 12 and notes == []
    assert {look.tf for look in looks} == {TfHit.EXACT}
    assert all(look.seen.observation.footprints[0] is not None for look in looks)


def test_a_parameter_that_asks_for_compressed_pictures_asks_for_their_topic():
    wanted = list_wanted(build_config({"input.transport": "compressed", "input.cameras": ["left", "right"],
                                       "footprint.camera_frames": ["", ""]}), ROOT, "go")
    assert [item.name for item in wanted if item.required] == ["/left/image_raw/compressed",
                                                              "/right/image_raw/compressed"]
