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

"""Bags in SQLite.

A whole file is read by its index of log times. SQLite stops at the first page that is damaged or missing, so from there
on each message is asked for by its number, and those that cannot be had are left out.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from sqap_vla_ros.bags.storage import BagMessage, Complain, TopicFacts, foreign_topic, gather_topics, read_around
from sqap_vla_ros.errors import InputError

# Messages that lie on one damaged page are passed one by one, a missing end of the file in growing steps.
_SINGLE_STEPS = 1000
_LAST_NUMBER = 2**62


class SqliteFile:
    """One ``.db3`` file.

    :param path: of the file
    :param name: by which complaints call it
    :raises InputError: when nothing of it can be read
    """

    def __init__(self, path: Path, name: str, complain: Complain) -> None:
        self._name, self._complain = name, complain
        self._rows: np.ndarray | None = None
        try:
            self._connection = _connect(path)
            try:
                self._topics = self._read_topics()
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise InputError(f"{name} is no bag in SQLite: {error}; copy it again, or record anew") from error
        found = [row for row in self._summarize(path) if row[0] in self._topics]
        counts = {number: count for number, count, _, _ in found}
        self.topics: dict[str, TopicFacts] = gather_topics(
            (topic, type_name, counts.get(number, 0)) for number, (topic, type_name) in self._topics.items())
        self.start_ns: int = min((start_ns for _, _, start_ns, _ in found), default=0)
        self.end_ns: int = max((end_ns for _, _, _, end_ns in found), default=0)

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Those of some topics by log time, equal ones in the order written."""
        numbers = [number for number, (topic, _) in self._topics.items() if topic in topics]
        if self._rows is not None:
            return self._salvage(self._rows, numbers)
        return read_around(self._query(numbers), (sqlite3.DatabaseError,),
                           lambda error: self._salvage(self._find_rows(error), numbers))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _read_topics(self) -> dict[int, tuple[str, str]]:
        topics = {}
        for number, topic, type_name, form in self._connection.execute(
                "SELECT id, name, type, serialization_format FROM topics ORDER BY id"):
            if form == "cdr":
                topics[number] = topic, type_name
            else:
                self._complain(foreign_topic(topic, self._name, form))
        return topics

    def _summarize(self, path: Path) -> list[tuple[int, int, int, int]]:
        """Number of each topic, how many messages, first and last log time."""
        try:
            _check_size(path)
            summary = self._connection.execute(
                "SELECT topic_id, count(*), min(timestamp), max(timestamp) FROM messages GROUP BY topic_id").fetchall()
            if not all(isinstance(value, int) for row in summary for value in row):
                raise sqlite3.DatabaseError("there are messages without a topic or log time")
            return summary
        except sqlite3.DatabaseError as error:
            rows = self._find_rows(error)
        stamps = {number: rows[rows[:, 2] == number, 0].tolist() for number in self._topics}
        return [(number, len(each), min(each), max(each)) for number, each in stamps.items() if each]

    def _query(self, numbers: Collection[int]) -> Iterator[BagMessage]:
        places = ",".join("?" * len(numbers))
        for number, log_ns, data in self._connection.execute(
                f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({places}) ORDER BY timestamp, id",
                tuple(numbers)):
            if not isinstance(data, bytes):
                raise sqlite3.DatabaseError("there are messages without content")
            topic, type_name = self._topics[number]
            yield BagMessage(topic, type_name, log_ns, data)

    def _find_rows(self, reason: Exception) -> np.ndarray:
        """Log time, number and topic of each message whose beginning can be read, by log time; (N, 3) int64."""
        flat, first, failures = array("q"), 0, 0
        while first < _LAST_NUMBER:
            try:
                for log_ns, number, topic in self._connection.execute(
                        "SELECT timestamp, id, topic_id FROM messages WHERE id >= ? ORDER BY id", (first,)):
                    if number < first:
                        continue  # a page that belongs elsewhere; going back to it would have no end
                    if isinstance(log_ns, int) and topic in self._topics:
                        flat.extend((log_ns, number, topic))
                    first, failures = number + 1, 0
                break
            except sqlite3.DatabaseError:
                failures += 1
                first += 1 << max(0, failures - _SINGLE_STEPS)
        found = np.frombuffer(flat, dtype=np.int64).reshape(-1, 3)
        self._rows = found[np.argsort(found[:, 0], kind="stable")]
        self._complain(f"{self._name} is cut off or damaged ({reason}); what can be read of its messages is used; copy "
                       f"it again, or write a whole file with `sqlite3 {self._name} .recover | sqlite3 whole.db3`")
        return self._rows

    def _salvage(self, rows: np.ndarray, numbers: Collection[int]) -> Iterator[BagMessage]:
        lost = 0
        for log_ns, number, topic_number in rows[np.isin(rows[:, 2], list(numbers))].tolist():
            try:
                row = self._connection.execute("SELECT data FROM messages WHERE id = ?", (number,)).fetchone()
            except sqlite3.DatabaseError:
                row = None
            if row is None or not isinstance(row[0], bytes):
                lost += 1
                continue
            topic, type_name = self._topics[topic_number]
            yield BagMessage(topic, type_name, log_ns, row[0])
        if lost:
            self._complain(f"{lost} of the messages in {self._name} lie on damaged pages and are left out")


def _connect(path: Path) -> sqlite3.Connection:
    # Messages that a killed recorder had not moved into the file yet are in its log; without one nothing is written
    # beside the bag.
    logged = Path(f"{path}-wal")
    immutable = not (logged.exists() and logged.stat().st_size)
    uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    # Otherwise SQLite would not open a file that was cut off.
    connection.execute("PRAGMA writable_schema=ON")
    return connection


def _check_size(path: Path) -> None:
    # SQLite fills up a page that was cut with zeros, and takes those for messages.
    with path.open("rb") as file:
        head = file.read(100)
        size = file.seek(0, os.SEEK_END)
    page_bytes, pages = struct.unpack_from(">H10xI", head, 16)
    # The largest size does not fit.
    whole = (65536 if page_bytes == 1 else page_bytes) * pages
    if size < whole:
        raise sqlite3.DatabaseError(f"it has {size} of {whole} bytes")
