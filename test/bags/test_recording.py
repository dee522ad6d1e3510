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

"""A recorder and a sender in one process, over real DDS."""

import json
import sys
import time
from pathlib import Path

import pytest
import rclpy
import yaml
from control_msgs.msg import GripperCommand
from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.bags import recording
from sqap_vla_ros.bags.bag_writer import BagWriter
from sqap_vla_ros.bags.recording import Recorder, of_node
from sqap_vla_ros.cli.processes import choose_domain
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.interface import Endpoint, Qos

CLOCK, STATIC = interface.CLOCK, interface.TF_STATIC
WORDS = Endpoint("/words", String, Qos.RELIABLE, "text")
# A type that rosbags does not bring with it.
GRIPPER = Endpoint("/gripper", GripperCommand, Qos.RELIABLE, "text")
INFO = of_node(interface.CAMERA_INFO, "")
PERIOD_NS = 20_000_000
FIRST_NS = 7_000_000_000


class Sender:
    """A node with simulated time."""

    def __init__(self, **profiles):
        self.context = Context()
        rclpy.init(context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("sender", context=self.context)
        kept = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.ends = {topic.name: self.node.create_publisher(topic.type, topic.name, profile) for topic, profile in (
            (CLOCK, profiles.get("clock", QoSProfile(depth=100))), (STATIC, kept), (GRIPPER, QoSProfile(depth=10)),
            (WORDS, profiles.get("words", QoSProfile(depth=200))))}
        self.now_ns = FIRST_NS
        self.ends[STATIC.name].publish(TFMessage(transforms=[TransformStamped(child_frame_id="camera")]))

    def tick(self, by_ns=PERIOD_NS):
        self.now_ns += by_ns
        self.ends[CLOCK.name].publish(Clock(clock=codecs.ns_to_stamp(self.now_ns)))

    def tick_all(self):
        self.tick()
        self.ends[GRIPPER.name].publish(GripperCommand(position=0.04, max_effort=15.0))
        self.ends[WORDS.name].publish(String(data="hello"))

    def close(self):
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(autouse=True)
def _own_domain(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(choose_domain()))


@pytest.fixture
def opened():
    """Starter of whatever has to be closed."""
    things = []

    def keep(thing):
        things.append(thing)
        return thing

    yield keep
    for thing in reversed(things):
        thing.close()


def read(path):
    """Connections by topic, and (topic, log time, message) in the order of the bag."""
    with AnyReader([path]) as reader:
        messages = [(connection.topic, log_ns, reader.deserialize(data, connection.msgtype))
                    for connection, log_ns, data in reader.messages()]
        return {connection.topic: connection for connection in reader.connections}, messages


def wait(condition, meanwhile=lambda: None, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        meanwhile()


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_everything_is_recorded_at_the_time_of_the_clock(tmp_path, opened, storage):
    sender = opened(Sender())
    recorder = Recorder(tmp_path / "bag", (WORDS, GRIPPER, STATIC, CLOCK), storage)
    recorder.start((WORDS, GRIPPER, STATIC), sender.tick_all)
    sender.tick(-5 * PERIOD_NS)  # Nor does the bag's time go back where the clock does.
    for number in range(100):
        sender.ends[WORDS.name].publish(String(data=str(number)))
        sender.tick()
    recorder.close()
    recorder.check()
    connections, messages = read(tmp_path / "bag")
    words = [message.data for topic, _, message in messages if topic == WORDS.name]
    assert words[-100:] == [str(number) for number in range(100)] and set(words[:-100]) == {"hello"}
    times_ns = [log_ns for _, log_ns, _ in messages]
    assert times_ns == sorted(times_ns) and times_ns[0] > FIRST_NS and times_ns[-1] == sender.now_ns
    assert all((log_ns - FIRST_NS) % PERIOD_NS == 0 for log_ns in times_ns)
    # Fixed frames were sent before the recorder came, and stand before whoever needs them.
    assert messages[0][0] == STATIC.name and messages[0][2].transforms[0].child_frame_id == "camera"
    assert {message.position for topic, _, message in messages if topic == GRIPPER.name} == {0.04}
    assert recorder.counts == {name: connection.msgcount for name, connection in connections.items()}
    assert recorder.duration_ns == times_ns[-1] - times_ns[0]
    offered = {name: connection.ext.offered_qos_profiles for name, connection in connections.items()}
    assert [profile.durability for profile in offered[STATIC.name]] == [QosDurability.TRANSIENT_LOCAL]
    assert [profile.durability for profile in offered[WORDS.name]] == [QosDurability.VOLATILE]
    metadata = yaml.safe_load((tmp_path / "bag/metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (metadata["version"], metadata["storage_identifier"]) == (8, storage)
    # Of metadata of this version, quality of service is a text, which is what Humble reads.
    profiles = {entry["topic_metadata"]["name"]: entry["topic_metadata"]["offered_qos_profiles"]
                for entry in metadata["topics_with_message_count"]}
    assert yaml.safe_load(profiles[STATIC.name])[0]["durability"] == 1


def test_hash_of_a_recorded_type_is_the_one_of_ros(tmp_path):
    bag = BagWriter(tmp_path / "bag")
    for topic in (STATIC, GRIPPER, of_node(interface.CHUNK, "node")):
        bag.add_topic(topic.name, topic.type_name, [])
        bag.write(topic.name, 1, serialize_message(topic.type()))
        file = Path(sys.prefix, "share", f"{topic.type_name}.json")
        if not file.exists():
            pytest.skip("this ROS brings no hashes in a place known here")
        known = {entry["type_name"]: entry["hash_string"] for entry in json.loads(file.read_text())["type_hashes"]}
        assert bag._connections[topic.name].digest == known[topic.type_name]
    bag.close()


def test_sender_without_reliability_is_heard_and_told_as_it_is(tmp_path, opened):
    loose = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
    sender = opened(Sender(words=loose, clock=loose))
    recorder = Recorder(tmp_path / "bag", (WORDS, CLOCK), "mcap")
    recorder.start((WORDS,), sender.tick_all)
    recorder.close()
    connections, messages = read(tmp_path / "bag")
    assert any(topic == WORDS.name for topic, _, _ in messages)
    assert connections[WORDS.name].ext.offered_qos_profiles[0].reliability == QosReliability.BEST_EFFORT


def test_without_a_clock_it_is_the_systems_time(tmp_path, opened):
    sender, before_ns = opened(Sender()), time.time_ns()
    recorder = Recorder(tmp_path / "bag", (WORDS,), "mcap")
    recorder.start((WORDS,), sender.tick_all)
    recorder.close()
    _, messages = read(tmp_path / "bag")
    assert messages and all(before_ns <= log_ns <= time.time_ns() for _, log_ns, _ in messages)


def test_topic_that_nobody_publishes_is_named_and_leaves_no_bag(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(recording, "START_TIMEOUT_S", 0.3)
    opened(Sender())
    recorder = opened(Recorder(tmp_path / "bag", (INFO, CLOCK), "mcap"))
    with pytest.raises(SqapError, match=r"nobody publishes /camera/camera_info; start who does"):
        recorder.start((INFO,), lambda: None)
    assert not (tmp_path / "bag").exists()


def test_topic_that_stays_silent_is_named_and_leaves_no_bag(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(recording, "START_TIMEOUT_S", 5.0)
    sender = opened(Sender())
    recorder = Recorder(tmp_path / "bag", (WORDS, STATIC, CLOCK), "mcap")
    with pytest.raises(SqapError, match=r"nothing came on /words within 5 s"):
        recorder.start((WORDS, STATIC), sender.tick)
    recorder.close()
    assert not (tmp_path / "bag").exists() and not any(recorder.counts.values())


def test_disk_that_is_full_is_told(tmp_path, opened, monkeypatch):
    sender = opened(Sender())
    recorder = opened(Recorder(tmp_path / "bag", (WORDS, CLOCK), "mcap"))
    recorder.start((WORDS,), sender.tick_all)

    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rosbags.rosbag2.Writer.write", write)

    def is_told():
        try:
            recorder.check()
        except SqapError as error:
            return "bag cannot be written: [Errno 28] No space left on device; look at" in str(error)
        return False

    wait(is_told, sender.tick)


def test_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SqapError, match=r"file/bag cannot be written: .*Not a directory"):
        BagWriter(tmp_path / "file/bag")


def test_type_without_definition_is_told(tmp_path):
    bag = BagWriter(tmp_path / "bag")
    with pytest.raises(SqapError, match="definition of nowhere_msgs/msg/Nothing is in none of"):
        bag.add_topic("/nothing", "nowhere_msgs/msg/Nothing", [])
    bag.close()
    assert not (tmp_path / "bag").exists()


def test_what_was_held_back_is_not_written_behind_later_messages(tmp_path, opened):
    sender, held = opened(Sender()), []

    def select(message):
        if message[0] == GRIPPER.name:
            held.append(message)
            return ()
        return (message, *held[-1:])

    recorder = Recorder(tmp_path / "bag", (WORDS, GRIPPER, CLOCK), "mcap", select)
    recorder.start((WORDS, GRIPPER), sender.tick_all)
    recorder.close()
    with AnyReader([tmp_path / "bag"]) as reader:
        log_ns = [moment for _, moment, _ in reader.messages()]
    assert log_ns == sorted(log_ns) and recorder.counts[GRIPPER.name] > 1


def test_stamp_is_read_in_both_byte_orders():
    data = serialize_message(Clock(clock=codecs.ns_to_stamp(1_234_567_890_123)))
    assert codecs.peek_stamp_ns(data) == 1_234_567_890_123
    swapped = b"\0\0\0\0" + data[4:8][::-1] + data[8:12][::-1]
    assert codecs.peek_stamp_ns(swapped) == 1_234_567_890_123
