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

"""Bags in MCAP: by their index, and where that is of no use, record by record."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from rosbags.interfaces import ConnectionExtRosbag2
from rosbags.rosbag2 import Reader

from sqap_vla_ros.bags.mcap_scan import BROKEN, MAGIC, ScannedMcap, has_index
from sqap_vla_ros.bags.storage import (
    BagMessage,
    Complain,
    Storage,
    TopicFacts,
    foreign_topic,
    gather_topics,
    read_around,
)
from sqap_vla_ros.errors import InputError


def open_mcap(path: Path, name: str, complain: Complain) -> Storage:
    """Open one ``.mcap`` file.

    :param name: by which complaints call it
    :raises InputError: when nothing of it can be read
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{name} does not begin as an MCAP file does; copy it again, or record anew")
        indexed = has_index(file)
    if indexed:
        try:
            return IndexedMcap(path, name, complain)
        except BROKEN as error:
            complain(f"the index of {name} cannot be used ({_first_line(error)}); it is read without; `mcap recover "
                     f"{name} -o whole.mcap` writes a whole file")
    return ScannedMcap(path, name, complain)


class IndexedMcap:
    """A file with an index; where reading by it breaks off, it goes on without.

    :param name: by which complaints call it
    """

    def __init__(self, path: Path, name: str, complain: Complain) -> None:
        self._path, self._name, self._complain = path, name, complain
        self._scanned: ScannedMcap | None = None
        self._reader = Reader(path)
        self._reader.open()
        self._connections = []
        for connection in self._reader.connections:
            assert isinstance(connection.ext, ConnectionExtRosbag2)
            if connection.ext.serialization_format == "cdr":
                self._connections.append(connection)
            else:
                complain(foreign_topic(connection.topic, name, connection.ext.serialization_format))
        self.topics: dict[str, TopicFacts] = gather_topics(
            (connection.topic, connection.msgtype, connection.msgcount) for connection in self._connections)
        self.start_ns: int = self._reader.start_time
        self.end_ns: int = self._reader.end_time - 1

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Those of some topics by log time, equal ones in the order written."""
        if self._scanned is not None:
            return self._scanned.messages(topics)
        return read_around(self._by_index(topics), BROKEN, lambda error: self._without_index(topics, error))

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()
        if self._scanned is not None:
            self._scanned.close()

    def _by_index(self, topics: Collection[str]) -> Iterator[BagMessage]:
        wanted = [connection for connection in self._connections if connection.topic in topics]
        # No connections would mean all.
        for connection, log_ns, data in self._reader.messages(wanted) if wanted else ():
            yield BagMessage(connection.topic, connection.msgtype, log_ns, data)

    def _without_index(self, topics: Collection[str], reason: Exception) -> Iterator[BagMessage]:
        self._complain(f"{self._name} is damaged ({_first_line(reason)}); what can be read of its messages is used; "
                       f"copy it again, or write a whole file with `mcap recover {self._name} -o whole.mcap`")
        self._scanned = ScannedMcap(self._path, self._name, self._complain)
        return self._scanned.messages(topics)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
