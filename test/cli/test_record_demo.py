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

"""A recording as a person makes it: three processes over DDS."""

import json
import signal

import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability

from sqap_vla_ros.bags.recorded_steps import STEP_NS
from sqap_vla_ros.cli import main as cli
from sqap_vla_ros.cli import record_demo_run
from sqap_vla_ros.data import Episode, EpisodeResult
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.evaluation.demo import MethodRun

TOPICS = {
    "/camera/camera_info": "CameraInfo", "/tf": "TFMessage", "/tf_static": "TFMessage", "/joint_states": "JointState",
    "/instruction": "String", "/delta_twist_cmds": "TwistStamped", "/clock": "Clock",
    "/sim_robot/outcome": "DiagnosticStatus", "/policy_node/latency": "DiagnosticArray",
    "/policy_node/active_instruction": "String"}


def finish(process, timeout_s=100):
    output, errors = process.communicate(timeout=timeout_s)
    return process.returncode, json.loads(output.splitlines()[-1]), errors


def read(path):
    """Connections by topic, and (topic, log time, message) in the order of the bag."""
    with AnyReader([path]) as reader:
        return ({connection.topic: connection for connection in reader.connections},
                [(connection.topic, log_ns, reader.deserialize(data, connection.msgtype))
                 for connection, log_ns, data in reader.messages()])


def stamps_of(messages, topic):
    """Stamps in ns of a topic's messages, of the first transform where it holds several."""
    stamps = [(message.transforms[0] if hasattr(message, "transforms") else message).header.stamp
              for name, _, message in messages if name == topic]
    return [stamp.sec * 10**9 + stamp.nanosec for stamp in stamps]


def list_steps(messages):
    """When each step of each episode began, in ns."""
    outcomes = [{entry.key: entry.value for entry in message.values} for topic, _, message in messages
                if topic == "/sim_robot/outcome"]
    counts = {int(values["start_ns"]): int(values["steps"]) for values in outcomes if values["task"]}
    return {start_ns + number * STEP_NS for start_ns, steps in counts.items() for number in range(steps)}


def test_bag_holds_each_step_with_its_picture_frames_and_command(sqap, untrained, tmp_path):
    bag = tmp_path / "bag"
    code, line, errors = finish(sqap("record-demo", bag, "--episodes", 2, "--checkpoint", untrained))
    assert code == 0, errors
    connections, messages = read(bag)
    assert {topic: connection.msgtype.rsplit("/", 1)[1] for topic, connection in connections.items()} == {
        **TOPICS, "/camera/image_raw": "Image"}
    assert line["messages"] == {topic: connection.msgcount for topic, connection in connections.items()}
    assert all(line["messages"].values()), line
    assert (line["episodes"], line["successes"], line["steps"], line["missing"]) == (2, 0, 120, {})
    assert line["complete"] is True and line["path"] == str(bag)
    steps = list_steps(messages)
    assert len(steps) == 120
    pictures = set(stamps_of(messages, "/camera/image_raw"))
    assert pictures == steps and connections["/camera/image_raw"].msgcount == 120
    assert line["left_out"] > 0
    for topic in ("/camera/camera_info", "/tf", "/joint_states"):
        assert pictures <= set(stamps_of(messages, topic)), topic
    assert steps <= set(stamps_of(messages, "/delta_twist_cmds"))
    log_ns = [moment for _, moment, _ in messages]
    assert log_ns == sorted(log_ns) and line["duration_s"] == pytest.approx((log_ns[-1] - log_ns[0]) / 1e9, abs=1e-3)
    clocks = {message.clock.sec * 10**9 + message.clock.nanosec for topic, _, message in messages if topic == "/clock"}
    assert steps <= clocks
    assert {moment for topic, moment, _ in messages if topic == "/camera/image_raw"} <= clocks
    assert [profile.durability for profile in connections["/tf_static"].ext.offered_qos_profiles] == [
        QosDurability.TRANSIENT_LOCAL]
    assert messages[0][0] == "/tf_static"
    given = [message.data for topic, _, message in messages if topic == "/instruction"]
    followed = [message.data for topic, _, message in messages if topic == "/policy_node/active_instruction"]
    assert len(given) == 2 and [text for text in followed if text] == given
    metadata = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (metadata["version"], metadata["storage_identifier"], metadata["message_count"]) == (8, "mcap",
                                                                                                len(messages))
    assert line["size_bytes"] == sum(file.stat().st_size for file in bag.iterdir())
    assert {file.name for file in bag.iterdir()} == {"metadata.yaml", "bag.mcap"}
    assert (tmp_path / "bag-logs/policy_node-float.log").exists()
    assert "2/2" in errors and "not done" in errors


def test_ctrl_c_leaves_a_bag_that_can_be_read(sqap, untrained, tmp_path):
    bag = tmp_path / "bag"
    process = sqap("record-demo", bag, "--episodes", 50, "--checkpoint", untrained, "--compressed", "--storage",
                   "sqlite3")
    assert any(" 1/50" in text for text in process.stderr)
    process.send_signal(signal.SIGINT)
    code, line, errors = finish(process, 40)
    assert code == 130 and "Traceback" not in errors, errors
    assert 1 <= line["episodes"] < 50 and line["complete"] is False and line["missing"] == {}
    connections, messages = read(bag)
    assert connections.keys() == {*TOPICS, "/camera/image_raw/compressed"}
    steps = list_steps(messages)
    assert 60 <= len(steps) == line["steps"]
    pictures = set(stamps_of(messages, "/camera/image_raw/compressed"))
    assert steps <= pictures and len(pictures) <= len(steps) + 1  # of the step that was interrupted
    picture = next(message for topic, _, message in messages if topic == "/camera/image_raw/compressed")
    assert picture.data.tobytes().startswith(b"\xff\xd8") and (bag / "bag.db3").exists()


def test_failure_before_the_first_picture_is_told_and_leaves_no_bag(tmp_path, capsys, monkeypatch):
    def open_stage(*_, **__):
        raise SqapError("policy_node could not be configured")

    monkeypatch.setattr(record_demo_run, "open_stage", open_stage)
    for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOG_DIR"):
        monkeypatch.setenv(name, "0")  # so that it is as before at the end
    assert cli.main(["record-demo", str(tmp_path / "bag")]) == 1
    told = capsys.readouterr()
    assert "sqap record-demo: policy_node could not be configured" in told.err and "Traceback" not in told.err
    line = json.loads(told.out)
    assert (line["path"], line["episodes"], line["messages"], line["size_bytes"]) == (None, 0, {}, 0)
    assert not (tmp_path / "bag").exists()


def test_missing_pictures_are_told_and_exit_with_1(tmp_path, capsys, monkeypatch):
    def lose(*_, **__):
        return {"/camera/image_raw": 3}

    def play(args, runs, *_):
        runs.append(MethodRun(args.method, results=[EpisodeResult(Episode(1, "reach", "red", "x"), True, 9, (), ())]))

    monkeypatch.setattr(record_demo_run.RecordedSteps, "count_missing", lose)
    monkeypatch.setattr(record_demo_run, "_play", play)
    for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOG_DIR"):
        monkeypatch.setenv(name, "0")
    assert cli.main(["record-demo", str(tmp_path / "bag"), "--episodes", "1"]) == 1
    told = capsys.readouterr()
    assert "3 of 0 steps have no message on /camera/image_raw; the recorder could not keep up" in told.err
    line = json.loads(told.out)
    assert (line["missing"], line["complete"], line["successes"]) == ({"/camera/image_raw": 3}, False, 1)


def test_folder_that_exists_is_refused(tmp_path, capsys):
    assert cli.main(["record-demo", str(tmp_path)]) == 1
    assert f"{tmp_path} exists already, and a bag is never overwritten; name another folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "sentence"), [
    ([], "the following arguments are required: OUT"), (["x", "--episodes", "0"], "0 is not allowed"),
    (["x", "--method", "w3a3"], "w3a3"), (["x", "--storage", "zip"], "invalid choice: 'zip'")])
def test_wrong_use_exits_with_2_and_says_what_is_allowed(words, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["record-demo", *words])
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["record-demo", "--help"])
    text = capsys.readouterr().out
    for part in ("examples:", "--compressed", "--storage sqlite3", "ros2 bag play", "OUT-logs", "/tf_static",
                 "Exit codes: 0 all was played and recorded"):
        assert part in text
