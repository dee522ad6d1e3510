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

"""A bag seen through the node's own eyes, step by step: every complete set of pictures, in order, none dropped.

A picture that was sent twice, by its stamp, is looked at once.
The very parts that listen in the node listen here, to a node that is none: what they subscribe to is given to them out
of the bag, and its clock is the bag's. A set of pictures waits for TF as it does there, in the bag's time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.time import Time

from sqap_vla_ros.bags.contract import Names
from sqap_vla_ros.bags.reading import Bag, BagMessage
from sqap_vla_ros.config import Config
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.policy.safety import check_allowed
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import peek_stamp_ns, stamp_to_ns
from sqap_vla_ros.ros.cycle import NO_INSTRUCTION, Picture
from sqap_vla_ros.ros.inputs import Cameras, JointStates
from sqap_vla_ros.ros.observing import Observer, Seen
from sqap_vla_ros.ros.transforms import FootprintFinder, TfHit

# Stamps that lie farther than this from the time of recording are of another clock, a simulation's for example.
CLOCK_TOLERANCE_NS = 5_000_000_000
_FOREVER_NS = 10**18
# What a message with a stamp has at least.
_STAMP_END = 12
_WORST_FIRST = (TfHit.NONE, TfHit.UNASKED, TfHit.LATEST, TfHit.EXACT)


@dataclass(frozen=True)
class Look:
    """One set of pictures.

    :param stamp_ns: the oldest of its stamps
    :param log_ns: when the last of its pictures was recorded
    :param instruction: in force
    :param seen: for the policy; None where it cannot be asked
    :param refused: why not; empty where it can
    :param tf: what TF knew, the worst of all cameras
    """

    stamp_ns: int
    log_ns: int
    instruction: str
    seen: Seen | None
    refused: str
    tf: TfHit


class _Time(Enum):
    # What the node's clock follows.
    OF_TOPIC = "/clock"
    OF_LOG = "when messages were recorded"
    OF_PICTURES = "the pictures' stamps"


@dataclass
class _Subscription:
    type: Any
    topic: str
    callback: Callable[[Any], None]
    raw: bool


class BagNode:
    """What the parts of a node need of rclpy: subscriptions, and a clock that shows what it is told.

    :param names: how relative names become those of the bag
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._subscriptions: list[_Subscription] = []
        self.now_ns = 0

    def create_subscription(self, kind: Any, name: str, callback: Callable[[Any], None], _qos: Any, *,
                            raw: bool = False) -> _Subscription:
        """As rclpy's; the quality of service of a bag is perfect."""
        subscription = _Subscription(kind, self._names.resolve(name), callback, raw)
        self._subscriptions.append(subscription)
        return subscription

    def destroy_subscription(self, subscription: _Subscription) -> None:
        """As rclpy's."""
        self._subscriptions.remove(subscription)

    def get_clock(self) -> BagNode:
        """Itself, which has :meth:`now`."""
        return self

    def now(self) -> Time:
        """What the clock shows."""
        return Time(nanoseconds=self.now_ns)

    def list_readable(self, bag: Bag) -> set[str]:
        """What is listened to, as far as the bag holds it as the type it must have."""
        return {item.topic for item in self._subscriptions
                if item.topic in bag.topics and bag.topics[item.topic].type_name == _name_type(item.type)}

    def deliver(self, message: BagMessage) -> None:
        """Give a message to those who listen to its topic."""
        for subscription in self._subscriptions:
            if subscription.topic == message.topic:
                content = message.data if subscription.raw else deserialize_message(message.data, subscription.type)
                subscription.callback(content)


def _name_type(kind: Any) -> str:
    package, what = kind.__module__.split(".")[:2]
    return f"{package}/{what}/{kind.__name__}"


class Stepper:
    """Makes looks of a bag.

    :param config: the node's knobs
    :param names: how topics are called in the bag
    :param instruction: given instead of the bag's own; empty for the bag's
    :param note: told what cannot be used: its kind and a sentence
    """

    def __init__(self, config: Config, names: Names, instruction: str, note: Callable[[str, str], None]) -> None:
        self._config, self._names, self._instruction, self._given = config, names, instruction, bool(instruction)
        self._node = BagNode(names)
        node = cast(Node, self._node)
        self._finder = FootprintFinder(node, config.input.cameras, config.footprint, config.safety.max_future_s)
        self._joints = JointStates(node, config.input)
        self._cameras = Cameras(node, config.input, self._on_picture, self._finder.take_camera_info, note,
                                lambda: self._log_ns)
        self._hits: list[TfHit] = []
        self._observer = Observer(self._finder, self._joints, self._cameras.decode, note,
                                  lambda hit: self._hits.append(TfHit(hit)))
        interface.subscribe(node, interface.INSTRUCTION, self._on_instruction)
        interface.subscribe(node, interface.CLOCK, self._on_clock)
        self._waiting: deque[tuple[Picture, str]] = deque()
        self._clock = _Time.OF_LOG
        self._log_ns, self._latest_ns, self._repeated = 0, 0, 0
        self._unreadable: dict[str, tuple[int, str]] = {}

    @property
    def finder(self) -> FootprintFinder:
        """Knows the frames of the moment that was looked at last."""
        return self._finder

    @property
    def complaints(self) -> list[str]:
        """What of the bag could not be used until now, or not as it is, in sentences."""
        told = [f"{count} messages on {topic} cannot be read and are left out, the first because {reason}"
                for topic, (count, reason) in self._unreadable.items()]
        if self._repeated:
            told.append(f"{self._repeated} pictures bear the stamp of the one before and are looked at once")
        if self._clock is _Time.OF_PICTURES:
            told.append("the pictures' stamps are not of the clock that recorded them, so they are taken for the time; "
                        "record /clock, or synchronise the computers' clocks")
        return told

    def looks(self, bag: Bag) -> Iterator[Look]:
        """Every complete set of pictures, in order.

        :param bag: is read from its beginning
        """
        self._choose_clock(bag)
        for message in bag.messages(self._node.list_readable(bag)):
            yield from self._advance(message)
            self._hand_over(message)
            yield from self._look(message.log_ns)
        yield from self._look(None)

    def _choose_clock(self, bag: Bag) -> None:
        ticks = bag.topics.get(self._names.resolve(interface.CLOCK.name))
        if ticks is not None and ticks.count:
            self._clock = _Time.OF_TOPIC
            return
        topics = {self._names.resolve(topic) for topic in self._cameras.topics}
        first = next(iter(bag.messages(topics)), None)
        if first is None or len(first.data) < _STAMP_END:
            return
        ahead_ns = peek_stamp_ns(first.data) - first.log_ns
        if not -CLOCK_TOLERANCE_NS <= ahead_ns <= self._config.safety.max_future_s * 1e9:
            # Recorded by another clock, and nobody told what that showed.
            self._clock, self._finder.max_future_s = _Time.OF_PICTURES, _FOREVER_NS * 1e-9

    def _advance(self, message: BagMessage) -> Iterator[Look]:
        # First the pictures whose time to wait is over before this message came.
        wait_ns = round(self._config.footprint.tf_wait_s * 1e9)
        while self._waiting and (due_ns := self._waiting[0][0].arrived_ns + wait_ns) <= message.log_ns:
            if self._clock is _Time.OF_LOG:
                self._set_clock(due_ns)
            before = len(self._waiting)
            yield from self._look(due_ns)
            assert len(self._waiting) < before, "a picture whose time is over waits on"
        self._log_ns = message.log_ns
        if self._clock is _Time.OF_LOG:
            self._set_clock(message.log_ns)

    def _hand_over(self, message: BagMessage) -> None:
        try:
            self._node.deliver(message)
        except Exception as error:  # noqa: BLE001
            # The border to what others have written; ROS's own errors have no class of their own.
            count, reason = self._unreadable.get(message.topic, (0, str(error)))
            self._unreadable[message.topic] = count + 1, reason

    def _look(self, wall_ns: int | None) -> Iterator[Look]:
        # Those that wait no longer, in their order; at the end of the bag all.
        while self._waiting:
            look = self._observe(*self._waiting[0], wall_ns)
            if look is None:
                return
            self._waiting.popleft()
            yield look

    def _observe(self, picture: Picture, instruction: str, wall_ns: int | None) -> Look | None:
        # None where TF may know more in a moment.
        arrived_ns, seen, refused = picture.arrived_ns, None, ""
        self._hits.clear()
        try:
            self._check(picture, instruction)
            seen = self._observer.observe(picture, instruction, self._config, self._node.now_ns,
                                          arrived_ns + _FOREVER_NS if wall_ns is None else wall_ns)
            if seen is None:
                return None
        except InputError as error:
            refused = str(error)
        tf = min(self._hits, key=_WORST_FIRST.index, default=TfHit.UNASKED)
        return Look(picture.stamp_ns, arrived_ns, instruction, seen, refused, tf)

    def _check(self, picture: Picture, instruction: str) -> None:
        # As the node does before it looks.
        if not instruction:
            raise InputError(NO_INSTRUCTION)
        check_allowed(instruction, self._config.input.instructions)
        if picture.stamp_ns < 0:
            raise InputError(f"the image is stamped {picture.stamp_ns * 1e-9:.3f} s, which is before all time; check "
                             "the camera driver")

    def _on_picture(self, picture: Picture) -> None:
        # Stamps of 0 are none.
        if picture.stamp_ns == self._latest_ns != 0:
            self._repeated += 1
            return
        self._latest_ns = picture.stamp_ns
        if self._clock is _Time.OF_PICTURES:
            self._set_clock(picture.stamp_ns)
        self._waiting.append((picture, self._instruction))

    def _on_instruction(self, message: Any) -> None:
        if not self._given:
            self._instruction = message.data.strip()

    def _on_clock(self, message: Any) -> None:
        self._set_clock(stamp_to_ns(message.clock))

    def _set_clock(self, now_ns: int) -> None:
        jumped_back = now_ns < self._node.now_ns
        self._node.now_ns = now_ns
        if jumped_back:
            self._finder.clear()
            self._cameras.clear()
            self._joints.clear()
