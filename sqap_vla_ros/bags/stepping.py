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
from typing import Any, cast

from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.time import Time

from sqap_vla_ros.bags.contract import Names
from sqap_vla_ros.bags.reading import Bag, BagMessage
from sqap_vla_ros.config import Config
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import stamp_to_ns
from sqap_vla_ros.ros.cycle import NO_INSTRUCTION, Picture
from sqap_vla_ros.ros.inputs import Cameras, JointStates
from sqap_vla_ros.ros.observing import Observer, Seen
from sqap_vla_ros.ros.transforms import FootprintFinder, TfHit

# Stamps that lie farther than this from the time of recording are of another clock, a simulation's for example.
CLOCK_TOLERANCE_NS = 5_000_000_000
_FOREVER_NS = 10**18
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

    @property
    def topics(self) -> set[str]:
        """What is listened to."""
        return {subscription.topic for subscription in self._subscriptions}

    def deliver(self, message: BagMessage) -> None:
        """Give a message to those who listen to its topic."""
        for subscription in self._subscriptions:
            if subscription.topic == message.topic:
                content = message.data if subscription.raw else deserialize_message(message.data, subscription.type)
                subscription.callback(content)


class Stepper:
    """Makes looks of a bag.

    :param config: the node's knobs
    :param names: how topics are called in the bag
    :param instruction: given instead of the bag's own; empty for the bag's
    :param note: told what cannot be used: its kind and a sentence

    ``repeated`` counts the pictures that were there before.
    """

    def __init__(self, config: Config, names: Names, instruction: str, note: Callable[[str, str], None]) -> None:
        self._config, self._names, self._instruction, self._given = config, names, instruction, bool(instruction)
        self._node = BagNode(names)
        node = cast(Node, self._node)
        self._finder = FootprintFinder(node, config.input.cameras, config.footprint, config.safety.max_future_s)
        self._joints = JointStates(node, config.input)
        self._cameras = Cameras(node, config.input, self._on_picture, self._finder.take_camera_info, note,
                                lambda: self._log_ns)
        self._observer = Observer(self._finder, self._joints, self._cameras.decode, note, lambda hit: None)
        interface.subscribe(node, interface.INSTRUCTION, self._on_instruction)
        interface.subscribe(node, interface.CLOCK, self._on_clock)
        self._waiting: deque[tuple[Picture, str]] = deque()
        self._log_ns, self._ticks, self._follows_stamps = 0, False, False
        self._latest_ns, self.repeated = -1, 0

    @property
    def finder(self) -> FootprintFinder:
        """Knows the frames of the moment that was looked at last."""
        return self._finder

    def looks(self, bag: Bag) -> Iterator[Look]:
        """Every complete set of pictures, in order.

        :param bag: is read from its beginning
        :raises InputError: when a message cannot be read at all
        """
        self._ticks = self._names.resolve(interface.CLOCK.name) in bag.topics
        for message in bag.messages(self._node.topics):
            yield from self._advance(message)
            self._hand_over(message)
            yield from self._look(message.log_ns)
        yield from self._look(None)

    def _advance(self, message: BagMessage) -> Iterator[Look]:
        self._log_ns = message.log_ns
        if not self._ticks and not self._follows_stamps:
            self._set_clock(message.log_ns)
        yield from self._look(message.log_ns)

    def _hand_over(self, message: BagMessage) -> None:
        try:
            self._node.deliver(message)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"a message on {message.topic} at {message.log_ns} ns cannot be read as "
                             f"{message.type_name}: {error}") from error

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
        arrived_ns = picture.arrived_ns
        seen, refused = None, "" if instruction else NO_INSTRUCTION
        if instruction:
            try:
                seen = self._observer.observe(picture, instruction, self._config, self._node.now_ns,
                                              arrived_ns + _FOREVER_NS if wall_ns is None else wall_ns)
            except InputError as error:
                refused = str(error)
        if seen is None and not refused:
            return None
        tf = TfHit.UNASKED if seen is None else min(seen.hits, key=_WORST_FIRST.index)
        return Look(picture.stamp_ns, arrived_ns, instruction, seen, refused, tf)

    def _on_picture(self, picture: Picture) -> None:
        if not self._ticks and not self._follows_stamps and (
                abs(picture.stamp_ns - self._log_ns) > CLOCK_TOLERANCE_NS):
            # Recorded by another clock, and nobody told what that showed.
            self._follows_stamps, self._finder.max_future_s = True, _FOREVER_NS * 1e-9
            self._node.now_ns = picture.stamp_ns
        if self._follows_stamps:
            self._set_clock(picture.stamp_ns)
        if picture.stamp_ns == self._latest_ns:
            self.repeated += 1
            return
        self._latest_ns = picture.stamp_ns
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
