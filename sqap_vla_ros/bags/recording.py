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

"""A live recorder: what is published, as it lies on the wire, into a bag.

Times of the bag are those of ``/clock`` where that is recorded, as ``ros2 bag record --use-sim-time`` does it, and of
the system otherwise. They never go back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import try_shutdown

from sqap_vla_ros.bags.bag_writer import BagWriter
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.codecs import peek_stamp_ns
from sqap_vla_ros.ros.interface import Endpoint

NODE_NAME = "bag_recorder"
START_TIMEOUT_S = 30.0
_POLL_S = 0.05
# At the end: how long it must be quiet, and how long that is waited for where somebody goes on publishing.
_QUIET_S, _DRAIN_S = 0.2, 5.0
# Messages of one topic that may wait while the disk does.
_DEPTH = 1000

# Topic, time in the bag in ns, serialized form.
Message = tuple[str, int, bytes]


def of_node(endpoint: Endpoint, node: str) -> Endpoint:
    """The same topic by its absolute name.

    :param node: whose private topic it is if it is one; without namespace
    """
    name = endpoint.name.replace("~", node, 1)
    return replace(endpoint, name=name if name.startswith("/") else f"/{name}")


class Recorder:
    """One recording; nothing is written before :meth:`start`.

    :param path: of the bag, which must not exist
    :param topics: with absolute names, see :func:`of_node`
    :param storage: 'mcap' or 'sqlite3'
    :param select: given each message that came, says what to write now, on the recorder's own thread
    """

    def __init__(self, path: Path, topics: Sequence[Endpoint], storage: str,
                 select: Callable[[Message], Iterable[Message]] = lambda message: (message,)) -> None:
        self._path, self._storage, self._select = path, storage, select
        # The time first, so that of messages that came together it is read first.
        self._topics = sorted(topics, key=lambda topic: topic.name != interface.CLOCK.name)
        self._simulated = self._topics[0].name == interface.CLOCK.name
        self._now_ns = self._first_ns = self._last_ns = 0
        self._began, self._received = False, 0
        self._awaited: set[str] = set()
        self._latched: set[str] = set()
        self._waiting: list[Message] = []
        self._bag: BagWriter | None = None
        self._failure: SqapError | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(NODE_NAME, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    @property
    def counts(self) -> dict[str, int]:
        """Messages written so far, by topic."""
        return dict(self._bag.counts) if self._bag is not None else {}

    @property
    def duration_ns(self) -> int:
        """From the first message written to the last."""
        return self._last_ns - self._first_ns

    def start(self, steady: Collection[Endpoint], check: Callable[[], None]) -> None:
        """Begin to record, and wait until every publisher is known and some have been heard.

        The bag begins with what was sent before and kept for those who come late, above all fixed frames.

        :param steady: topics on which something comes in any case
        :param check: called while waiting; raises when waiting has become pointless
        :raises SqapError: when nobody publishes a topic or nothing comes within ``START_TIMEOUT_S``
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        self._awaited = {topic.name for topic in steady}
        offered = self._discover(check, deadline)
        self._thread = threading.Thread(target=self._record, args=(offered,), name=NODE_NAME)
        self._thread.start()
        while not self._began:
            if time.monotonic() >= deadline:
                silent = ", ".join(sorted(self._awaited or {interface.CLOCK.name}))
                raise SqapError(f"nothing came on {silent} within {START_TIMEOUT_S:g} s; look at who publishes it")
            self._thread.join(_POLL_S)
            self.check()
            check()

    def check(self) -> None:
        """Raise when the bag could not be written.

        :raises SqapError: why
        """
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Write what has arrived, and close the bag; :meth:`check` tells whether that went well."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        try_shutdown(context=self._context)

    def _discover(self, check: Callable[[], None], deadline: float) -> dict[str, list[QoSProfile]]:
        while True:
            offered = {topic.name: [info.qos_profile for info in self._node.get_publishers_info_by_topic(topic.name)]
                       for topic in self._topics}
            absent = [name for name, profiles in offered.items() if not profiles]
            if not absent:
                return offered
            if time.monotonic() >= deadline:
                raise SqapError(f"nobody publishes {', '.join(absent)}; start who does, or record without")
            check()
            self._executor.spin_once(timeout_sec=_POLL_S)

    # --- on the recorder's own thread

    def _record(self, offered: dict[str, list[QoSProfile]]) -> None:
        try:
            self._bag = BagWriter(self._path, self._storage)
            with closing(self._bag):
                for topic in self._topics:
                    self._bag.add_topic(topic.name, topic.type_name, offered[topic.name])
                for topic in self._topics:
                    profile = _match(offered[topic.name])
                    if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL:
                        self._latched.add(topic.name)
                    self._node.create_subscription(topic.type, topic.name, self._receiver(topic.name), profile,
                                                   raw=True)
                self._spin()
        except SqapError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001
            # The thread's border; the other side raises it.
            self._failure = SqapError(f"the recording ended: {type(error).__name__}: {error}")
            self._failure.__cause__ = error

    def _spin(self) -> None:
        while not self._closing.is_set():
            self._executor.spin_once(timeout_sec=_POLL_S)
        deadline = time.monotonic() + _DRAIN_S
        while time.monotonic() < deadline:
            before = self._received
            self._executor.spin_once(timeout_sec=_QUIET_S)
            if self._received == before:
                return

    def _receiver(self, topic: str) -> Callable[[bytes], None]:
        return lambda data: self._on_data(topic, bytes(data))

    def _on_data(self, topic: str, data: bytes) -> None:
        self._received += 1
        if topic == interface.CLOCK.name:
            self._now_ns = max(self._now_ns, peek_stamp_ns(data))
        elif not self._simulated:
            self._now_ns = max(self._now_ns, time.time_ns())
        if self._began:
            self._write((topic, self._now_ns, data))
            return
        self._awaited.discard(topic)
        self._waiting.append((topic, self._now_ns, data))
        if not self._awaited and self._now_ns:
            self._begin()

    def _begin(self) -> None:
        begin_ns = next(log_ns for _, log_ns, _ in self._waiting if log_ns)
        for topic, log_ns, data in sorted(self._waiting, key=lambda message: message[0] not in self._latched):
            self._write((topic, begin_ns if topic in self._latched else max(log_ns, begin_ns), data))
        self._waiting.clear()
        self._began = True

    def _write(self, message: Message) -> None:
        assert self._bag is not None
        for topic, log_ns, data in self._select(message):
            # What was held back for a while is not written behind what came after it.
            self._last_ns = max(self._last_ns, log_ns)
            self._first_ns = self._first_ns or self._last_ns
            self._bag.write(topic, self._last_ns, data)


def _match(offered: Sequence[QoSProfile]) -> QoSProfile:
    # The most that all publishers can give.
    reliable = all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in offered)
    latched = all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in offered)
    return QoSProfile(depth=_DEPTH,
                      reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
                      durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)
