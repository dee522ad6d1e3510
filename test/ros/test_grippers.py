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

import pytest
from control_msgs.action import ParallelGripperCommand
from rclpy.action import ActionServer, GoalResponse
from trajectory_msgs.msg import JointTrajectory

from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.ros.grippers import MEMORY_NS, RETRY_NS, Answer, Gripper, open_link

MS = 1_000_000
NOW_NS = 7_000_000_000
JOINTS = ("left_finger", "right_finger")


class FakeLink:
    """Takes everything unless told otherwise."""

    name = "gripper_cmd"
    stops = 0

    def __init__(self):
        self.sent, self.answers, self.lack, self.says = [], [], "", Answer.TOOK

    def missing(self):
        return self.lack

    def send(self, opening, knobs, answer):
        self.sent.append(opening)
        self.answers.append(answer)
        if self.says is not None:
            answer(self.says)

    def stop(self):
        self.stops += 1

    def close(self):
        pass


@pytest.fixture
def link():
    return FakeLink()


@pytest.fixture
def told():
    return []


@pytest.fixture
def gripper(link, told):
    return Gripper(link, told.append)


def move_all(gripper, openings, begin_ns=NOW_NS, **knobs):
    for number, opening in enumerate(openings):
        gripper.move(opening, ControlKnobs(**knobs), begin_ns + number * 20 * MS)


# --- when a goal leaves

@pytest.mark.parametrize(("openings", "change", "sent"), [
    ([0.5, 0.55, 0.45, 0.59, 0.41, 0.5], 0.1, [0.5]),
    ([0.5, 0.61, 0.55, 0.52, 0.5], 0.1, [0.5, 0.61, 0.5]),
    ([0.95, 1.0, 0.99, 1.0, 0.93], 0.1, [0.95, 1.0]),
    ([0.05, 0.0, 0.0], 1.0, [0.05, 0.0]),
    ([0.5, 0.5, 0.500001, 0.500001], 0.0, [0.5, 0.500001])])
def test_a_goal_leaves_where_the_opening_changed_enough_or_reached_an_end(gripper, link, openings, change, sent):
    move_all(gripper, openings, gripper_change_ratio=change)
    assert link.sent == sent


@pytest.mark.parametrize(("pause_ns", "times"), [(MEMORY_NS, 1), (MEMORY_NS + 1, 2), (-MEMORY_NS - 1, 2)])
def test_after_a_pause_the_opening_is_sent_again(gripper, link, pause_ns, times):
    for now_ns in (NOW_NS, NOW_NS + pause_ns):
        gripper.move(0.5, ControlKnobs(), now_ns)
    assert link.sent == [0.5] * times


def test_a_gripper_that_is_missing_is_told_once_and_gets_its_opening_when_it_comes(gripper, link, told):
    link.lack = "no action server on gripper_cmd"
    move_all(gripper, [0.5, 0.5, 1.0])
    assert link.sent == [] and told == ["no action server on gripper_cmd; the gripper does not move"]
    link.lack = ""
    move_all(gripper, [0.5, 0.5])
    assert link.sent == [0.5] and len(told) == 1
    # It was started again: what it was told before is lost, and that it was missing is news.
    link.lack = "no action server on gripper_cmd"
    move_all(gripper, [0.5, 0.5])
    link.lack = ""
    move_all(gripper, [0.5, 0.5])
    assert link.sent == [0.5, 0.5] and len(told) == 2


def test_a_gripper_that_refuses_is_told_once_and_asked_again_once_a_second(gripper, link, told):
    link.says = Answer.REFUSED
    move_all(gripper, [0.5] * 100)
    assert link.sent == [0.5, 0.5] and told == ["gripper_cmd refused a goal"]
    link.says = Answer.TOOK
    gripper.move(0.5, ControlKnobs(), NOW_NS + 2 * RETRY_NS)
    assert link.sent == [0.5] * 3
    link.says = Answer.REFUSED
    gripper.move(1.0, ControlKnobs(), NOW_NS + 2 * RETRY_NS + 20 * MS)
    assert told == ["gripper_cmd refused a goal"] * 2


def test_an_answer_to_an_older_goal_changes_nothing(gripper, link, told):
    link.says = None
    move_all(gripper, [0.5, 1.0])
    link.answers[0](Answer.REFUSED)
    link.answers[1](Answer.TOOK)
    move_all(gripper, [1.0] * 5)
    assert link.sent == [0.5, 1.0] and told == []


def test_a_goal_that_is_aborted_is_told_once_and_sent_again_once_a_second(gripper, link, told):
    gripper.move(0.5, ControlKnobs(), NOW_NS)
    for beat in range(1, 101):
        if beat % 10 == 0:
            link.answers[-1](Answer.ABORTED)
        gripper.move(0.5, ControlKnobs(), NOW_NS + beat * 20 * MS)
    assert link.sent == [0.5] * 3 and told == ["gripper_cmd aborted a goal"]
    # One that is reached makes the next that is aborted news.
    link.answers[-1](Answer.REACHED)
    gripper.move(1.0, ControlKnobs(), NOW_NS + 4 * RETRY_NS)
    link.answers[-1](Answer.ABORTED)
    assert told == ["gripper_cmd aborted a goal"] * 2


def test_after_a_stop_the_opening_is_sent_again_and_older_answers_count_no_more(gripper, link, told):
    link.says = None
    move_all(gripper, [0.5, 0.5])
    gripper.stop()
    assert link.stops == 1
    for answer in (Answer.REFUSED, Answer.ABORTED):
        link.answers[0](answer)
    move_all(gripper, [0.5, 0.5], NOW_NS + 40 * MS)
    assert link.sent == [0.5, 0.5] and told == []


def test_without_a_gripper_nothing_happens(told):
    gripper = Gripper(None, told.append)
    gripper.move(1.0, ControlKnobs(), NOW_NS)
    gripper.stop()
    gripper.close()
    assert told == []


# --- ways to a gripper

@pytest.mark.parametrize("kind", ["gripper_command", "parallel_gripper_command", "none"])
def test_a_dry_run_has_no_action(bare_node, kind):
    assert open_link(bare_node, ControlKnobs(gripper=kind)) is None
    assert open_link(bare_node, ControlKnobs(gripper="none", dry_run=False)) is None
    assert bare_node.get_client_names_and_types_by_node("policy_node", "/") == []


@pytest.fixture
def open_gripper(bare_node, told):
    opened = []

    def build(knobs):
        opened.append(open_link(bare_node, knobs))
        bare_node.trigger_activate()
        return Gripper(opened[-1], told.append)

    yield build
    for link in opened:
        link.close()


def keep_moving(gripper, opening, knobs):
    """As the node does, on a clock of the test's own; a beat takes 20 ms of it."""
    now_ns = [NOW_NS]

    def beat():
        now_ns[0] += 20 * MS
        gripper.move(opening, knobs, now_ns[0])

    return beat


def test_the_plain_action_gets_distance_and_force(peer, open_gripper, told):
    knobs = ControlKnobs(dry_run=False, gripper_open_m=0.1, gripper_effort_n=25.0)
    gripper = open_gripper(knobs)
    peer.wait(lambda: peer.heard["gripper"], "goal", meanwhile=keep_moving(gripper, 0.25, knobs))
    goal = peer.heard["gripper"][0]
    assert (goal.position, goal.max_effort) == (0.025, 25.0)
    assert told in ([], ["no action server on gripper_cmd; the gripper does not move"])


class ParallelServer:
    """Refuses the first goals."""

    def __init__(self, node, refusals):
        self.goals, self.left = [], refusals
        self.server = ActionServer(node, ParallelGripperCommand, "gripper_cmd", self.execute,
                                   goal_callback=self.judge)

    def judge(self, goal):
        self.goals.append(goal.command)
        self.left -= 1
        return GoalResponse.REJECT if self.left >= 0 else GoalResponse.ACCEPT

    def execute(self, handle):
        handle.succeed()
        return ParallelGripperCommand.Result()


def test_the_parallel_action_names_the_joints_and_is_asked_again_after_a_refusal(peer, open_gripper, told):
    # Both kinds of action have one name; a robot has one of them.
    peer.gripper_server.destroy()
    knobs = ControlKnobs(dry_run=False, gripper="parallel_gripper_command", gripper_joints=JOINTS)
    gripper = open_gripper(knobs)
    beat = keep_moving(gripper, 0.5, knobs)
    peer.wait(lambda: told, "the sentence", meanwhile=beat)
    assert told == ["no action server on gripper_cmd; the gripper does not move"]
    server = ParallelServer(peer.node, refusals=2)
    peer.gripper_server = server.server
    peer.wait(lambda: len(server.goals) == 3, "three goals", meanwhile=beat)
    assert told[1:] == ["gripper_cmd refused a goal"]
    assert {(*goal.name, *goal.position, *goal.effort) for goal in server.goals} == {
        (*JOINTS, 0.02, 0.02, 40.0, 40.0)}
    assert not any(len(goal.velocity) for goal in server.goals)


@pytest.mark.parametrize(("dry_run", "topic"), [(False, "gripper_trajectory"),
                                                (True, "policy_node/dry_run/gripper_trajectory")])
def test_a_trajectory_has_one_point_that_begins_on_arrival(peer, open_gripper, told, dry_run, topic):
    knobs = ControlKnobs(gripper="joint_trajectory", gripper_joints=JOINTS, dry_run=dry_run)
    gripper = open_gripper(knobs)
    gripper.move(0.75, knobs, NOW_NS)
    assert told == ([] if dry_run else ["nobody listens on gripper_trajectory; the gripper does not move"])
    heard = []
    peer.node.create_subscription(JointTrajectory, topic, heard.append, 1)
    peer.wait(lambda: peer.node.count_publishers(topic) == 1, "the graph")
    # In a dry run the first went to nobody; a change is sent anyway.
    peer.wait(lambda: heard, "the trajectory", meanwhile=keep_moving(gripper, 0.25, knobs))
    message = heard[0]
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (0, 0)
    assert tuple(message.joint_names) == JOINTS
    (point,) = message.points
    assert list(point.positions) == [0.01, 0.01]
    assert (point.time_from_start.sec, point.time_from_start.nanosec) == (0, 500 * MS)


def test_a_stop_publishes_no_trajectory(peer, open_gripper):
    knobs = ControlKnobs(gripper="joint_trajectory", gripper_joints=JOINTS, dry_run=False)
    gripper, heard = open_gripper(knobs), []
    peer.node.create_subscription(JointTrajectory, "gripper_trajectory", heard.append, 10)
    peer.wait(lambda: heard, "the trajectory", meanwhile=keep_moving(gripper, 0.25, knobs))
    gripper.stop()
    gripper.move(0.75, knobs, NOW_NS)
    peer.wait(lambda: len(heard) == 2, "the next opening")
    assert [list(message.points[0].positions) for message in heard] == [[0.01, 0.01], [0.03, 0.03]]
