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

"""What a bag says the robot was told."""

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sqap_vla_ros.bags.contract import Names
from sqap_vla_ros.bags.reading import BagMessage, TopicFacts, open_bag
from sqap_vla_ros.bags.recorded import RecordedActions
from sqap_vla_ros.config import build_config
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.simulation import expert
from sqap_vla_ros.simulation.suite import choose_trials

MS = 1_000_000
ROOT = Names("", {})
# A quarter turn around z: x of the tool is y of the base.
TURNED = (np.zeros(3), np.array([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]))


class ListedBag:
    """A bag in memory."""

    def __init__(self, *entries):
        self._messages = [BagMessage(ROOT.resolve(end.name), end.type_name, log_ns, serialize_message(message))
                          for end, message, log_ns in entries]

    @property
    def topics(self):
        return {message.topic: TopicFacts(message.type_name, 1) for message in self._messages}

    def messages(self, topics):
        return iter([message for message in self._messages if message.topic in topics])


def twist(at_ms, linear, frame="panda_link0"):
    return interface.TWIST, codecs.encode_twist(linear, (0.0, 0.0, 0.1), at_ms * MS, frame), at_ms * MS


def fingers(at_ms, position, name="panda_finger_joint1"):
    return interface.JOINT_STATES, JointState(header=codecs.make_header(at_ms * MS, ""), name=[name],
                                              position=[position]), at_ms * MS


def read(*entries, **knobs):
    return RecordedActions(ListedBag(*entries), build_config({name.replace("__", "."): value
                                                              for name, value in knobs.items()}), ROOT)


def test_the_mean_velocity_of_a_steps_time_is_its_motion():
    recorded = read(twist(0, (0.1, 0.0, 0.0)), twist(50, (0.3, 0.0, 0.0)), twist(100, (9.0, 0.0, 0.0)))
    np.testing.assert_allclose(recorded.action(0, None)[:6], (0.02, 0.0, 0.0, 0.0, 0.0, 0.01))
    assert recorded.action(0, None)[6] is None and recorded.action(500 * MS, None) is None


def test_velocities_of_the_tools_frame_are_turned_into_the_base():
    recorded = read(twist(0, (0.1, 0.0, 0.0), "panda_hand"))
    np.testing.assert_allclose(recorded.action(0, TURNED)[:3], (0.0, 0.01, 0.0), atol=1e-12)
    assert recorded.action(0, None) is None


def test_velocities_of_any_other_frame_are_told_and_left_out():
    recorded = read(twist(0, (0.1, 0.0, 0.0), "world"), twist(20, (0.1, 0.0, 0.0), "world"))
    assert recorded.action(0, TURNED) is None
    sentence, = recorded.complaints
    assert "recorded velocities are in 'world', which is neither control.base_frame 'panda_link0'" in sentence


def test_a_command_that_is_not_finite_is_told_and_left_out():
    recorded = read(twist(0, (np.nan, 0.0, 0.0)), twist(20, (0.1, 0.0, 0.0)))
    assert recorded.action(0, None)[0] == pytest.approx(0.01)
    assert "a recorded command is left out: the twist is not finite" in recorded.complaints[0]


def test_what_cannot_be_read_or_is_of_another_type_is_left_out():
    bag = ListedBag(twist(0, (0.1, 0.0, 0.0)), fingers(0, 0.04))
    bag._messages.append(BagMessage("/delta_twist_cmds", interface.TWIST.type_name, 1, b"\x00\x01\x00\x00"))
    recorded = RecordedActions(bag, build_config({}), ROOT)
    assert recorded.action(0, None)[0] == pytest.approx(0.01)
    assert recorded.complaints == ["messages on /delta_twist_cmds that cannot be read are left out"]
    plain = ListedBag((interface.JOINT_STATES, String(data="?"), 0))
    plain._messages[0] = BagMessage("/joint_states", "std_msgs/msg/String", 0, plain._messages[0].data)
    assert RecordedActions(plain, build_config({}), ROOT).complaints == []


def test_the_gripper_is_where_its_joint_was_at_the_steps_end_between_the_least_and_the_most():
    recorded = read(twist(0, (0.1, 0.0, 0.0)), fingers(0, 0.04), fingers(90, 0.03), fingers(100, 0.01),
                    fingers(110, 0.0))
    assert recorded.action(0, None)[6] == pytest.approx(0.25)
    assert read(twist(0, (0.1, 0.0, 0.0)), fingers(0, 0.04), fingers(90, 0.0401)).action(0, None)[6] is None
    assert read(twist(0, (0.1, 0.0, 0.0)), fingers(0, 0.04, "other")).action(0, None)[6] is None


def test_a_trajectory_that_was_sent_goes_before_the_joints():
    goal = JointTrajectory(points=[JointTrajectoryPoint(positions=[0.02])])
    recorded = read(twist(0, (0.1, 0.0, 0.0)), fingers(0, 0.04), fingers(90, 0.0),
                    (interface.GRIPPER_TRAJECTORY, goal, 50 * MS))
    assert recorded.action(0, None)[6] == pytest.approx(0.25)


def test_the_experts_own_actions_come_back(simulated_bag, tabletop):
    with open_bag(simulated_bag) as bag:
        recorded = RecordedActions(bag, build_config({}), ROOT)
    trial = choose_trials("base", 1, 2_000_000)[0]
    tabletop.reset(trial.seed)
    for step in range(12):
        action = expert.act(tabletop.state(), trial.task, tabletop.layout)
        np.testing.assert_allclose(recorded.action(1_000_000_000 + step * 100 * MS, None)[:6], action[:6], atol=1e-9)
        tabletop.step(action)
