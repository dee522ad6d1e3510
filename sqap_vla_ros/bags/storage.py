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

"""One storage file of a bag: what each kind of it offers, and how several are read as one stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

Complain = Callable[[str], None]
_Heap = list[tuple[int, int, "BagMessage", Iterator["BagMessage"]]]


@dataclass(frozen=True)
class BagMessage:
    """One recorded message.

    :param topic: absolute, '/camera/image_raw'
    :param type_name: 'sensor_msgs/msg/Image'
    :param log_ns: when it was recorded
    :param data: serialized CDR, with its 4 bytes of encapsulation
    """

    topic: str
    type_name: str
    log_ns: int
    data: bytes


@dataclass(frozen=True)
class TopicFacts:
    """What a bag holds of one topic.

    :param type_name: of its messages
    :param count: how many there are; of a damaged bag, how many its index names
    """

    type_name: str
    count: int


class Storage(Protocol):
    """A storage file that has been opened.

    :param topics: by name
    :param start_ns: log time of the first message; of no meaning where there is none
    :param end_ns: log time of the last message
    """

    topics: dict[str, TopicFacts]
    start_ns: int
    end_ns: int

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Those of some topics by log time, equal ones in the order written."""

    def close(self) -> None:
        """Let go of the file."""


def gather_topics(counts: Iterable[tuple[str, str, int]]) -> dict[str, TopicFacts]:
    """Facts by topic.

    :param counts: topic, type and how many, a topic possibly several times
    """
    types: dict[str, str] = {}
    totals: Counter[str] = Counter()
    for topic, type_name, count in counts:
        types.setdefault(topic, type_name)
        totals[topic] += count
    return {topic: TopicFacts(type_name, totals[topic]) for topic, type_name in types.items()}


def foreign_topic(topic: str, name: str, form: str) -> str:
    """The sentence about messages that are not serialized as ROS does."""
    return f"the messages of {topic} in {name} are serialized as '{form}' and are left out; only cdr can be read"


def merge_sources(sources: Sequence[tuple[int, Callable[[], Iterator[BagMessage]]]]) -> Iterator[BagMessage]:
    """Several sources as one by log time; each is opened only when it is due, so that few are in memory at a time.

    :param sources: in the order they were written, each with the log time of its first message, and in order by itself
    """
    heap: _Heap = []
    for number in sorted(range(len(sources)), key=lambda number: sources[number][0]):
        start_ns, open_source = sources[number]
        while heap and heap[0][0] < start_ns:
            yield _pop(heap)
        _push(heap, number, open_source())
    while heap:
        yield _pop(heap)


def _pop(heap: _Heap) -> BagMessage:
    _, number, message, source = heappop(heap)
    _push(heap, number, source)
    return message


def _push(heap: _Heap, number: int, source: Iterator[BagMessage]) -> None:
    message = next(source, None)
    if message is not None:
        heappush(heap, (message.log_ns, number, message, source))


def read_around(whole: Iterator[BagMessage], broken: tuple[type[Exception], ...],
                salvage: Callable[[Exception], Iterator[BagMessage]]) -> Iterator[BagMessage]:
    """The messages of ``whole`` until it breaks off, then those that it has not given yet.

    :param broken: what it raises when it does
    :param salvage: gives from the beginning what can be read, in the same order
    """
    last_ns, equal = None, 0
    try:
        for message in whole:
            equal = equal + 1 if message.log_ns == last_ns else 1
            last_ns = message.log_ns
            yield message
        return
    except broken as error:
        rest = salvage(error)
    for message in rest:
        if last_ns is None or message.log_ns > last_ns:
            yield message
        elif message.log_ns == last_ns:
            if equal <= 0:
                yield message
            equal -= 1
