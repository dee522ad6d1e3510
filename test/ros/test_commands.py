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

import math

import numpy as np
import pytest

from sqap_vla_ros.errors import InferenceError
from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.ros.commands import HALTS, Commander, Poses, turn_into

MS = 1_000_000
NOW_NS = 7_000_000_003
QUARTER_TURN = np.array([0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)])
TOOL = (np.array([0.5, 0.1, 0.3]), QUARTER_TURN)
VELOCITY = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
TWIST, POSE = interface.TWIST.name, interface.POSE.name


@pytest.fixture
def command(peer, bare_node):
    """``command(**knobs)``: a commander on an active node, and the list of what the peer hears on each topic."""
    made = []

    def build(**knobs):
        knobs = ControlKnobs(**{"dry_run": False, "gripper": "none"} | knobs)
        made.append(Commander(bare_node, knobs, pytest.fail))
        bare_node.trigger_activate()
        heard = {TWIST: peer.heard["twist"], POSE: []}
        peer.node.create_subscription(interface.POSE.type, POSE, heard[POSE].append, interface.POSE.qos.profile())
        for end in (interface.TWIST, interface.POSE):
            name = f"policy_node/dry_run/{end.name}"
            heard[name] = []
            peer.node.create_subscription(end.type, name, heard[name].append, end.qos.profile())
        publisher = next(item for item in bare_node.publishers if item.msg_type in (interface.TWIST.type,
                                                                                    interface.POSE.type))
        peer.wait(lambda: publisher.get_subscription_count() > 0, "subscription")
        return made[-1], knobs, heard

    yield build
    for item in made:
        item.close()


def take(peer, messages):
    """The newest message, once there is one."""
    peer.wait(lambda: messages, "message")
    message = messages[-1]
    messages.clear()
    return message


def numbers(message):
    position, turn = message.pose.position, message.pose.orientation
    return np.array([position.x, position.y, position.z]), np.array([turn.x, turn.y, turn.z, turn.w])


def test_a_velocity_goes_out_in_the_base_frame_as_it_is(peer, command):
    commander, knobs, heard = command()
    assert commander.needs_tool is False
    assert commander.command(VELOCITY, 1.0, knobs, NOW_NS) == ""
    message = take(peer, heard[TWIST])
    assert (message.header.frame_id, codecs.stamp_to_ns(message.header.stamp)) == ("panda_link0", NOW_NS)
    np.testing.assert_array_equal(np.concatenate(codecs.decode_twist(message)), VELOCITY)
    commander.hold(NOW_NS + 1)
    message = take(peer, heard[TWIST])
    assert (message.header.frame_id, codecs.stamp_to_ns(message.header.stamp)) == ("panda_link0", NOW_NS + 1)
    np.testing.assert_array_equal(np.concatenate(codecs.decode_twist(message)), np.zeros(6))


def test_a_velocity_is_turned_into_the_tools_frame(peer, command):
    commander, knobs, heard = command(command_frame="tool")
    assert commander.needs_tool is True
    assert commander.command(VELOCITY, 1.0, knobs, NOW_NS, TOOL) == ""
    message = take(peer, heard[TWIST])
    assert message.header.frame_id == "panda_hand"
    # The tool is turned by a quarter about z: the base's y is its x, the base's x its -y.
    np.testing.assert_allclose(np.concatenate(codecs.decode_twist(message)), (0.2, -0.1, 0.3, 0.5, -0.4, 0.6),
                               atol=1e-15)


def test_turning_undoes_the_frames_own_rotation():
    quaternion = np.array([0.1, -0.7, 0.4, 0.5])
    quaternion /= np.linalg.norm(quaternion)
    x, y, z, w = quaternion
    # Rotation matrix of a unit quaternion.
    rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                         [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                         [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    np.testing.assert_allclose(turn_into(quaternion, VELOCITY[:3]), rotation.T @ VELOCITY[:3], atol=1e-15)


def test_without_the_tools_pose_the_robot_holds_and_the_reason_is_given(peer, command):
    commander, knobs, heard = command(command_frame="tool")
    assert commander.command(VELOCITY, 1.0, knobs, NOW_NS) == "the pose of panda_hand in panda_link0 is not known"
    message = take(peer, heard[TWIST])
    assert message.header.frame_id == "panda_hand"
    np.testing.assert_array_equal(np.concatenate(codecs.decode_twist(message)), np.zeros(6))


def test_a_pose_starts_at_the_tool_follows_the_velocity_and_is_held(peer, command):
    commander, knobs, heard = command(command="pose")
    assert commander.needs_tool is True
    along = np.array([0.5, 0.0, 0.0, 0.0, 0.0, 1.0])
    for passed_ms, expected_m, turned_rad in ((0, 0.0, 0.0), (20, 0.01, 0.02), (40, 0.02, 0.04)):
        assert commander.command(along, 1.0, knobs, NOW_NS + passed_ms * MS, TOOL) == ""
        message = take(peer, heard[POSE])
        assert message.header.frame_id == "panda_link0"
        assert codecs.stamp_to_ns(message.header.stamp) == NOW_NS + passed_ms * MS
        position, turn = numbers(message)
        np.testing.assert_allclose(position, (0.5 + expected_m, 0.1, 0.3), atol=1e-12)
        half = math.pi / 4 + turned_rad / 2
        np.testing.assert_allclose(turn, (0.0, 0.0, math.sin(half), math.cos(half)), atol=1e-12)
    commander.hold(NOW_NS + 1000 * MS)
    held = take(peer, heard[POSE])
    assert codecs.stamp_to_ns(held.header.stamp) == NOW_NS + 1000 * MS
    np.testing.assert_array_equal(np.concatenate(numbers(held)), np.concatenate((position, turn)))
    # The time of standing still does not count.
    assert commander.command(along, 1.0, knobs, NOW_NS + 1010 * MS, TOOL) == ""
    np.testing.assert_allclose(numbers(take(peer, heard[POSE]))[0], (0.525, 0.1, 0.3), atol=1e-12)


def test_a_stop_is_where_the_tool_is_and_a_pose_starts_there_again(peer, command):
    commander, knobs, heard = command(command="pose")
    for passed_ms in (0, 100):
        commander.command(np.array([0.5, 0, 0, 0, 0, 0]), 1.0, knobs, NOW_NS + passed_ms * MS, TOOL)
    # Without the tool's place the last pose stays, and a stop that waits for it is asked for again.
    assert commander.stop(NOW_NS + 120 * MS, None) is False
    peer.wait(lambda: heard[POSE] and codecs.stamp_to_ns(heard[POSE][-1].header.stamp) == NOW_NS + 120 * MS, "stop")
    np.testing.assert_allclose(numbers(heard[POSE][-1])[0], (0.55, 0.1, 0.3), atol=1e-12)
    here = (np.array([0.52, 0.1, 0.3]), TOOL[1])
    assert commander.stop(NOW_NS + 130 * MS, here) is True
    peer.wait(lambda: codecs.stamp_to_ns(heard[POSE][-1].header.stamp) == NOW_NS + 130 * MS, "stop at the tool")
    np.testing.assert_allclose(numbers(heard[POSE][-1])[0], here[0], atol=1e-12)
    heard[POSE].clear()
    commander.hold(NOW_NS + 140 * MS)
    moved = (np.array([0.2, 0.2, 0.2]), TOOL[1])
    commander.command(VELOCITY, 1.0, knobs, NOW_NS + 160 * MS, moved)
    message = take(peer, heard[POSE])
    # With nowhere to stay, the hold in between said nothing.
    assert codecs.stamp_to_ns(message.header.stamp) == NOW_NS + 160 * MS
    np.testing.assert_allclose(numbers(message)[0], moved[0], atol=1e-12)


@pytest.mark.parametrize(("passed_ms", "moved_m"), [(0, 0.0), (-500, 0.0), (100, 0.05), (5000, 0.05)])
def test_a_pose_moves_by_the_time_that_passed_but_not_by_a_pause(passed_ms, moved_m):
    poses = Poses(ControlKnobs())
    along = np.array([0.5, 0, 0, 0, 0, 0])
    poses.move(along, NOW_NS, TOOL)
    message, why_not = poses.move(along, NOW_NS + passed_ms * MS, TOOL)
    assert why_not == "" and numbers(message)[0][0] == pytest.approx(0.5 + moved_m)


def test_a_target_waits_for_an_arm_that_does_not_follow_and_comes_back_when_asked():
    poses = Poses(ControlKnobs())
    along = np.array([0.45, 0, 0, 0, 0, 0])
    said = []
    for number in range(20):
        message, why_not = poses.move(along, NOW_NS + number * 20 * MS, TOOL)
        said.append(why_not)
    # 9 mm a time from the second on; 15 cm ahead is the end of the leash.
    assert said[:17] == [""] * 17
    assert set(said[17:]) == {"the tool is 0.15 m behind its target, which waits for it; is the arm blocked?"}
    assert numbers(message)[0][0] == pytest.approx(0.644)
    message, why_not = poses.move(-along, NOW_NS + 400 * MS, TOOL)
    assert why_not == "" and numbers(message)[0][0] == pytest.approx(0.635)
    # Once the arm has followed, the target goes on.
    message, why_not = poses.move(along, NOW_NS + 460 * MS, (TOOL[0] + (0.1, 0.0, 0.0), TOOL[1]))
    assert why_not == "" and numbers(message)[0][0] == pytest.approx(0.662)


def test_a_target_that_turns_waits_too():
    poses = Poses(ControlKnobs())
    spin = np.array([0, 0, 0, 0, 1.0, 0])
    said = [poses.move(spin, NOW_NS + number * 100 * MS, TOOL)[1] for number in range(8)]
    assert said[:5] == [""] * 5
    assert said[7] == "the tool is 0.5 rad behind its target, which waits for it; is the arm blocked?"


def test_a_tool_pose_that_is_none_is_an_error_and_nothing_leaves(peer, command):
    commander, knobs, heard = command(command="pose")
    with pytest.raises(InferenceError, match="the target's quaternion is zero"):
        commander.command(VELOCITY, 1.0, knobs, NOW_NS, (TOOL[0], np.zeros(4)))
    commander.command(VELOCITY, 1.0, knobs, NOW_NS + 1, TOOL)
    assert codecs.stamp_to_ns(take(peer, heard[POSE]).header.stamp) == NOW_NS + 1


@pytest.mark.parametrize(("kind", "name"), [("twist", TWIST), ("pose", POSE)])
def test_a_dry_run_speaks_on_topics_of_its_own_and_never_advertises_the_robots(peer, command, kind, name):
    commander, knobs, heard = command(command=kind, dry_run=True, gripper="gripper_command", servo="jazzy")
    commander.command(VELOCITY, 1.0, knobs, NOW_NS, TOOL)
    message = take(peer, heard[f"policy_node/dry_run/{name}"])
    assert codecs.stamp_to_ns(message.header.stamp) == NOW_NS
    peer.wait(lambda: peer.node.count_publishers(f"/policy_node/dry_run/{name}") == 1, "the graph")
    assert peer.node.count_publishers(f"/{TWIST}") == peer.node.count_publishers(f"/{POSE}") == 0
    assert peer.heard["gripper"] == [] and heard[name] == []
    assert peer.node.get_client_names_and_types_by_node("policy_node", "/") == []


def test_an_arm_has_one_publisher(peer, command):
    # CRISP's controllers ignore a topic that has two.
    command(command="pose")
    peer.wait(lambda: peer.node.count_publishers(f"/{POSE}") == 1, "the graph")
    assert peer.node.count_publishers(f"/{TWIST}") == 0


class Silent:
    """A node and its publisher in one, which keeps what it is given."""

    def __init__(self):
        self.sent, self.waited_ns = [], []

    def create_lifecycle_publisher(self, *_, **__):
        return self

    def publish(self, message):
        self.sent.append(message)

    def wait_for_all_acked(self, timeout):
        self.waited_ns.append(timeout.nanoseconds)


def test_halts_are_as_many_as_servo_sends_and_their_receipt_is_waited_for():
    node = Silent()
    commander = Commander(node, ControlKnobs(gripper="none"), pytest.fail)
    assert commander.stop(NOW_NS, None) is True
    commander.wait_for_receipt()
    assert len(node.sent) == HALTS == 4 and node.waited_ns == [200 * MS]
    assert not any(np.concatenate(codecs.decode_twist(message)).any() for message in node.sent)
