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

"""The bag of results, read back."""

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rosbags.highlevel import AnyReader

from sqap_vla_ros.bags.writing import ResultBag, Route, Velocity, check_labels, name_label
from sqap_vla_ros.data import ActionChunk, Inference, StageTimes
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.ros.health import Health

LABEL = "w4a4+sqap@0.4"
PREFIX = "/replay/w4a4_sqap_0_4"
STAMP_NS = 12_345_678_901
STEP_NS = 100_000_000
JPEG = b"\xff\xd8 a picture \xff\xd9"


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def make_latency():
    chunk = ActionChunk(STAMP_NS, STEP_NS, np.zeros((2, 7)))
    return Health("replay").latency(Inference(chunk, StageTimes({"vision": 3.0, "llm": 4.5}), ()), 0.0, "", 99)


def write_full_look(bag, stamp_ns, label=LABEL):
    poses = [(np.array([0.1 * number, 0.2, 0.3]), np.array([0.0, 0.0, 0.0, 1.0])) for number in (1, 2)]
    bag.write_look(label, stamp_ns, velocity=Velocity((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "panda_link0"),
                   route=Route(ActionChunk(0, STEP_NS, np.zeros((2, 7))), poses, "panda_link0", "tool0"),
                   latency=make_latency(), overlay_jpeg=JPEG, frame_id="camera_optical_frame")


def read(path):
    """Messages by topic, each with its log time."""
    found = {}
    with AnyReader([path]) as reader:
        for connection, log_ns, data in reader.messages():
            found.setdefault(connection.topic, []).append((log_ns, reader.deserialize(data, connection.msgtype)))
    return found


def test_look_is_five_messages_with_the_stamp_of_the_picture(tmp_path):
    with ResultBag(tmp_path / "replay") as bag:
        write_full_look(bag, STAMP_NS)
        write_full_look(bag, STAMP_NS + STEP_NS)
        write_full_look(bag, STAMP_NS, "float")
        bag.write_look("float", STAMP_NS + STEP_NS)
    assert sorted(path.name for path in (tmp_path / "replay").iterdir()) == ["metadata.yaml", "replay.mcap"]
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    found = read(tmp_path / "replay")
    ends = ("delta_twist_cmds", "chunk", "path", "latency", "overlay/compressed")
    assert found.keys() == {f"/replay/{name}/{end}" for name in ("w4a4_sqap_0_4", "float") for end in ends}
    for messages in found.values():
        assert all(log_ns == stamp_of(message) for log_ns, message in messages)
    assert [log_ns for log_ns, _ in found[f"{PREFIX}/chunk"]] == [STAMP_NS, STAMP_NS + STEP_NS]
    twist, chunk, path, latency, overlay = (found[f"{PREFIX}/{end}"][1][1] for end in ends)
    assert (twist.twist.linear.z, twist.twist.angular.x, twist.header.frame_id) == (0.3, 0.4, "panda_link0")
    assert (chunk.joint_names, chunk.header.frame_id) == (["tool0"], "panda_link0")
    assert [point.transforms[0].translation.x for point in chunk.points] == pytest.approx([0.1, 0.2])
    assert [point.time_from_start.nanosec for point in chunk.points] == [STEP_NS, 2 * STEP_NS]
    assert [stamp_of(pose) for pose in path.poses] == [STAMP_NS + 2 * STEP_NS, STAMP_NS + 3 * STEP_NS]
    values = {entry.key: entry.value for entry in latency.status[0].values}
    assert (values["llm_ms"], values["total_ms"]) == ("4.500", "7.500")
    assert (overlay.data.tobytes(), overlay.header.frame_id) == (JPEG, "camera_optical_frame")
    assert "jpeg" in overlay.format


def test_bag_can_be_played_by_humble_and_says_what_was_offered(tmp_path):
    with ResultBag(tmp_path / "replay") as bag:
        write_full_look(bag, STAMP_NS)
    metadata = yaml.safe_load((tmp_path / "replay/metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (metadata["version"], metadata["relative_file_paths"]) == (8, ["replay.mcap"])
    assert metadata["starting_time"]["nanoseconds_since_epoch"] == STAMP_NS
    for entry in metadata["topics_with_message_count"]:
        offered = yaml.safe_load(entry["topic_metadata"]["offered_qos_profiles"])
        assert [profile["reliability"] for profile in offered] == [1]


def test_failure_leaves_the_earlier_bag_and_success_replaces_it(tmp_path):
    folder = tmp_path / "replay"
    with ResultBag(folder) as bag:
        write_full_look(bag, STAMP_NS)
    with pytest.raises(KeyboardInterrupt), ResultBag(folder) as bag:
        write_full_look(bag, 2 * STAMP_NS)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    assert read(folder)[f"{PREFIX}/chunk"][0][0] == STAMP_NS
    with ResultBag(folder) as bag:
        write_full_look(bag, 2 * STAMP_NS)
    assert read(folder)[f"{PREFIX}/chunk"][0][0] == 2 * STAMP_NS


def test_unfinished_bag_of_a_killed_run_is_replaced(tmp_path):
    killed = ResultBag(tmp_path / "replay").__enter__()
    write_full_look(killed, STAMP_NS)
    with ResultBag(tmp_path / "replay") as bag:
        write_full_look(bag, 3 * STAMP_NS)
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    assert read(tmp_path / "replay")[f"{PREFIX}/path"][0][0] == 3 * STAMP_NS


def test_bag_without_looks_is_not_left(tmp_path):
    with ResultBag(tmp_path / "replay") as bag:
        bag.write_look(LABEL, STAMP_NS)
    assert not list(tmp_path.iterdir())


def test_header_of_the_latency_is_made_anew(tmp_path):
    given = DiagnosticArray()
    with ResultBag(tmp_path / "replay") as bag:
        bag.write_look(LABEL, STAMP_NS, latency=given)
    assert given == DiagnosticArray()
    assert stamp_of(read(tmp_path / "replay")[f"{PREFIX}/latency"][0][1]) == STAMP_NS


@pytest.mark.parametrize(("label", "name"), [
    (LABEL, "w4a4_sqap_0_4"), ("w4a4-rtn", "w4a4_rtn"), ("float", "float"), ("8bit", "policy_8bit"),
    ("a__b _", "a_b"), ("out/my checkpoint", "out_my_checkpoint")])
def test_label_becomes_a_name_of_ros(label, name):
    assert name_label(label) == name


def test_label_without_a_name_and_two_with_one_are_refused():
    with pytest.raises(ConfigError, match="policy '@@' has no letter or digit"):
        name_label("@@")
    with pytest.raises(ConfigError, match="policies 'a-b' and 'a b' would both be 'a_b' in ROS"):
        check_labels(["a b", "float", "a-b"])
    with pytest.raises(ConfigError, match="no policy may be called 'recorded'"):
        check_labels(["recorded"])
    check_labels(["w4a4+sqap@0.4", "float"])


def test_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SqapError, match="cannot be written: Not a directory"), ResultBag(tmp_path / "file/replay"):
        pass
