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

"""The simulated robot's episodes, cut out of what it publishes, and whether everything of each step is there.

The robot goes on while the next scene is asked for; that is no part of any episode. Within one, its clock stands still
at the beginning of each step until a command has come, so every message of that moment bears the same stamp, and what
is missing can be named. While it stands, the robot sends the same again now and then, for those who come late; once is
enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.serialization import deserialize_message

from sqap_vla_ros.bags.recording import Message
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import peek_stamp_ns
from sqap_vla_ros.ros.interface import Endpoint
from sqap_vla_ros.simulation.session import TICK_NS, TICKS_PER_STEP

STEP_NS = TICKS_PER_STEP * TICK_NS
# Of a message of transforms, the length of the list stands before the first one's header.
_LENGTH_BYTES = 4


class RecordedSteps:
    """Given all messages, lets those of episodes through.

    :param outcome: the topic on which the robot tells of a new scene and of each step that is done
    :param steady: topics on which the robot sends something at the beginning of each step
    :param commands: topic on which the robot is answered in each step
    :param stream: other topics that bear a time and belong to an episode only in its course
    """

    def __init__(self, outcome: Endpoint, steady: Sequence[Endpoint], commands: Endpoint,
                 stream: Sequence[Endpoint]) -> None:
        self._outcome = outcome.name
        self._steady = {topic.name for topic in steady}
        self._skipped = {topic.name: _LENGTH_BYTES if topic.type is interface.TF.type else 0
                         for topic in (*steady, commands, *stream)}
        self._stamps_ns: dict[str, set[int]] = {topic.name: set() for topic in (*steady, commands)}
        self._episodes: dict[int, int] = {}
        # Which time is part of the newest episode, as far as the robot has told.
        self._begin_ns = self._end_ns = 0
        self._held: list[tuple[int, Message]] = []
        self._left_out = 0

    @property
    def steps(self) -> int:
        """What the robot has done in all episodes."""
        return sum(self._episodes.values())

    @property
    def left_out(self) -> int:
        """Messages of no episode, and those that were sent again."""
        return self._left_out + len(self._held)

    def select(self, message: Message) -> Iterable[Message]:
        """What to write now, given what has come."""
        topic, _, data = message
        if topic == self._outcome:
            return (*self._follow(data), message)
        if topic not in self._skipped:
            return (message,)
        stamp_ns = peek_stamp_ns(data, self._skipped[topic])
        if self._begin_ns <= stamp_ns < self._end_ns:
            return self._admit(stamp_ns, message)
        # A picture may overtake the word that its step has begun.
        self._held.append((stamp_ns, message))
        return ()

    def count_missing(self) -> dict[str, int]:
        """Steps that lack their message, by topic; topics that lack none are left out."""
        expected = {begin_ns + number * STEP_NS for begin_ns, steps in self._episodes.items()
                    for number in range(steps)}
        missing = {topic: len(expected - stamps_ns) for topic, stamps_ns in self._stamps_ns.items()}
        return {topic: count for topic, count in missing.items() if count}

    def _follow(self, data: bytes) -> list[Message]:
        values = {entry.key: entry.value for entry in deserialize_message(data, DiagnosticStatus).values}
        if not values["task"]:
            return []
        self._begin_ns, steps = int(values["start_ns"]), int(values["steps"])
        self._episodes[self._begin_ns] = steps
        self._end_ns = self._begin_ns + (steps + (values["finished"] == "false")) * STEP_NS
        ready = [entry for entry in self._held if self._begin_ns <= entry[0] < self._end_ns]
        later = [entry for entry in self._held if entry[0] >= self._end_ns]
        self._left_out += len(self._held) - len(ready) - len(later)
        self._held = later
        return [message for entry in ready for message in self._admit(*entry)]

    def _admit(self, stamp_ns: int, message: Message) -> tuple[Message, ...]:
        topic = message[0]
        if topic in self._stamps_ns:
            if topic in self._steady and stamp_ns in self._stamps_ns[topic]:
                self._left_out += 1
                return ()
            self._stamps_ns[topic].add(stamp_ns)
        return (message,)
