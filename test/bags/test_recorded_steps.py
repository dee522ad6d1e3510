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

"""Episodes cut out of what a robot publishes, message by message."""

from functools import cache

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import TransformStamped
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.bags.recorded_steps import STEP_NS, RecordedSteps
from sqap_vla_ros.bags.recording import of_node
from sqap_vla_ros.ros import codecs, interface

OUTCOME, INFO = of_node(interface.OUTCOME, "sim_robot"), of_node(interface.CAMERA_INFO, "")
FRAMES, CLOCK, COMMANDS = interface.TF, interface.CLOCK, of_node(interface.TWIST, "")
BEGIN_NS = 2_000_000_000


def make_steps():
    return RecordedSteps(OUTCOME, (INFO, FRAMES), COMMANDS, (CLOCK,))


# Kept, since bytes between the fields of a message may differ from one time it is serialized to the next.
@cache
def outcome(start_ns, steps, *, task="reach", finished=False):
    values = {"start_ns": start_ns, "steps": steps, "task": task, "finished": str(finished).lower()}
    return OUTCOME.name, start_ns, serialize_message(DiagnosticStatus(
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()]))


@cache
def info(stamp_ns):
    return INFO.name, stamp_ns, serialize_message(CameraInfo(header=codecs.make_header(stamp_ns, "camera")))


@cache
def command(stamp_ns):
    return COMMANDS.name, stamp_ns, serialize_message(codecs.encode_twist((0, 0, 0), (0, 0, 0), stamp_ns, "base"))


@cache
def frames(stamp_ns):
    transform = TransformStamped(header=codecs.make_header(stamp_ns, "base"))
    return FRAMES.name, stamp_ns, serialize_message(TFMessage(transforms=[transform]))


@cache
def clock(now_ns):
    return CLOCK.name, now_ns, serialize_message(Clock(clock=codecs.ns_to_stamp(now_ns)))


def test_episodes_pass_and_what_is_between_them_does_not():
    steps, told = make_steps(), ("/instruction", 5, serialize_message(String(data="reach the red block")))
    first, end, early = outcome(BEGIN_NS, 0), outcome(BEGIN_NS, 1, finished=True), info(3 * BEGIN_NS)
    second = outcome(3 * BEGIN_NS, 0)
    written = [list(steps.select(message)) for message in (
        outcome(1, 0, task=""), clock(5), info(5), told, first, clock(BEGIN_NS), info(BEGIN_NS), frames(BEGIN_NS), end,
        clock(BEGIN_NS + STEP_NS), info(BEGIN_NS + STEP_NS), told, early, second, clock(3 * BEGIN_NS))]
    assert written == [[outcome(1, 0, task="")], [], [], [told], [first], [clock(BEGIN_NS)], [info(BEGIN_NS)],
                       [frames(BEGIN_NS)], [end], [], [], [told], [], [early, second], [clock(3 * BEGIN_NS)]]
    assert (steps.steps, steps.left_out) == (1, 4)


def test_picture_that_overtakes_two_words_of_the_robot_is_kept():
    steps, early = make_steps(), info(BEGIN_NS)
    assert not steps.select(early)
    assert list(steps.select(outcome(1, 0, task=""))) == [outcome(1, 0, task="")]
    assert list(steps.select(outcome(BEGIN_NS, 0))) == [early, outcome(BEGIN_NS, 0)]


def test_picture_of_the_end_is_of_no_step_even_when_it_comes_before_the_word_of_it():
    steps, last, late = make_steps(), info(BEGIN_NS + STEP_NS), frames(BEGIN_NS)
    steps.select(outcome(BEGIN_NS, 0))
    assert not steps.select(last)
    assert list(steps.select(outcome(BEGIN_NS, 1, finished=True))) == [outcome(BEGIN_NS, 1, finished=True)]
    assert list(steps.select(late)) == [late]
    following = make_steps()
    following.select(outcome(BEGIN_NS, 0))
    assert not following.select(last)
    assert list(following.select(outcome(BEGIN_NS, 1))) == [last, outcome(BEGIN_NS, 1)]


def test_what_the_robot_sends_again_is_left_out_and_every_command_stays():
    steps = make_steps()
    steps.select(outcome(BEGIN_NS, 0))
    for message, count in ((info(BEGIN_NS), 1), (frames(BEGIN_NS), 1), (command(BEGIN_NS), 3), (clock(BEGIN_NS), 3)):
        assert sum(len(tuple(steps.select(message))) for _ in range(3)) == count
    assert steps.left_out == 4


def test_steps_without_a_message_are_counted_by_topic():
    steps = make_steps()
    for start_ns, count in ((BEGIN_NS, 3), (3 * BEGIN_NS, 2)):
        steps.select(outcome(start_ns, 0))
        for number in range(count):
            if number != 1:
                steps.select(info(start_ns + number * STEP_NS))
            steps.select(frames(start_ns + number * STEP_NS))
            steps.select(command(start_ns + min(number, 1) * STEP_NS))
            steps.select(outcome(start_ns, number + 1, finished=number == count - 1))
    assert steps.steps == 5
    assert steps.count_missing() == {INFO.name: 2, COMMANDS.name: 1}
