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

"""A rosbag2 folder while it is written: topics as they were offered, then messages as they lay on the wire.

Definitions of messages are those of the ROS that runs, so that any type it knows can be stored and read elsewhere.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rosbags.interfaces import (
    Connection,
    Nodetype,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros.codecs import NS_PER_S

# The newest metadata that Humble takes, too: version 9 writes quality of service in a way that it cannot read.
VERSION: Final = 8


class BagWriter:
    """A folder that ``ros2 bag play`` plays once it is closed.

    It has to be used on one thread.

    :param path: the folder, which must not exist
    :param storage: 'mcap' or 'sqlite3'
    :raises SqapError: when it cannot be written, here and in every method
    """

    def __init__(self, path: Path, storage: str = "mcap") -> None:
        self._path = path
        self.counts: Counter[str] = Counter()
        self._connections: dict[str, Connection] = {}
        self._types = get_typestore(Stores.EMPTY)
        with self._telling():
            self._writer = Writer(path, version=VERSION, storage_plugin=StoragePlugin[storage.upper()])
            self._writer.open()

    def add_topic(self, name: str, type_name: str, offered: Sequence[QoSProfile]) -> None:
        """Announce a topic.

        :param name: absolute
        :param type_name: for example 'sensor_msgs/msg/Image'
        :param offered: profile of each publisher; a player offers the same
        """
        _define(type_name, self._types)
        with self._telling():
            self._connections[name] = self._writer.add_connection(
                name, type_name, typestore=self._types, offered_qos_profiles=[_convert(item) for item in offered])
        self.counts[name] = 0

    def write(self, topic: str, log_ns: int, data: bytes) -> None:
        """Append a message.

        :param data: serialized, with its encapsulation
        """
        with self._telling():
            self._writer.write(self._connections[topic], log_ns, data)
        self.counts[topic] += 1

    def close(self) -> None:
        """Write index and metadata; a bag without messages cannot be played, so none is left then."""
        if not self.counts.total():
            self.discard()
            return
        with self._telling():
            self._writer.close()

    def discard(self) -> None:
        """End without a bag."""
        self._writer.abort()
        shutil.rmtree(self._path, ignore_errors=True)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise SqapError(f"the bag {self._path} cannot be written: {error}; look at the folder's permissions and "
                            "at the room on its disk") from error


def _convert(profile: QoSProfile) -> Qos:
    return Qos(QosHistory(int(profile.history)), int(profile.depth), QosReliability(int(profile.reliability)),
               QosDurability(int(profile.durability)), _split(profile.deadline), _split(profile.lifespan),
               QosLiveliness(int(profile.liveliness)), _split(profile.liveliness_lease_duration),
               bool(profile.avoid_ros_namespace_conventions))


def _split(duration: Duration) -> QosTime:
    return QosTime(*divmod(duration.nanoseconds, NS_PER_S))


def _define(type_name: str, types: Typestore) -> None:
    # With all the types of its fields.
    if type_name in types.fielddefs:
        return
    found = get_types_from_msg(_find(type_name).read_text(encoding="utf-8"), type_name)
    for _, fields in found.values():
        for _, description in fields:
            for inner in _list_names(description):
                _define(inner, types)
    types.register(found)


def _find(type_name: str) -> Path:
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    for prefix in prefixes:
        file = Path(prefix, "share", f"{type_name}.msg")
        if file.exists():
            return file
    raise SqapError(f"the definition of {type_name} is in none of {', '.join(prefixes)}; install its package, or "
                    "source the workspace that has it")


def _list_names(description: Any) -> Iterator[str]:
    kind, inner = description
    if kind == Nodetype.NAME:
        yield inner
    elif kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
        yield from _list_names(inner[0])
