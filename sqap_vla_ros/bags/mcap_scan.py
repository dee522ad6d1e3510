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

"""MCAP files without an index: it was never written, or the file was cut off.

Such a file is read record by record once, and from then on by what was found.
"""

from __future__ import annotations

import os
import struct
import sys
from binascii import crc32
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from lz4.frame import LZ4FrameDecompressor
from rosbags.rosbag2 import ReaderError

from sqap_vla_ros.bags.storage import BagMessage, Complain, TopicFacts, foreign_topic, gather_topics, merge_sources

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x89MCAP0\r\n"
# What reading raises when bytes are not what they should be.
BROKEN = (ReaderError, zstd.ZstdError, struct.error, ValueError, LookupError, TypeError, RuntimeError, OSError,
          EOFError, OverflowError, MemoryError)
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _DATA_END = 2, 3, 4, 5, 6, 8, 15
# With their lengths: they follow the last message.
_ENDS = ((_DATA_END, 4), (_FOOTER, 20))
# Opcode and length of a record; footer; log time and more before a message; times, size and checksum of a chunk, and
# the length of its compression's name; any other name's length.
_RECORD, _FOOT = struct.Struct("<BQ"), struct.Struct("<BQQQI8s")
_MESSAGE_HEAD, _CHUNK_HEAD, _LENGTH = struct.Struct("<HIQQ"), struct.Struct("<QQQII"), struct.Struct("<I")
# Messages outside chunks are read in pieces of this size.
_PIECE_BYTES = 1 << 20
# Of a chunk that was cut off, no more is read than this: if its length is nonsense, the rest of the file would be.
_CUT_BYTES = 1 << 26


@dataclass(frozen=True)
class _Block:
    """A chunk, or messages outside chunks that follow each other.

    :param offset: of the chunk's content, or of the first record, in bytes
    :param length: in bytes; of a chunk that was cut off, of what is there
    """

    offset: int
    length: int
    is_chunk: bool
    is_cut: bool


class ScannedMcap:
    """A file that is read through record by record when it is opened.

    :param name: by which complaints call it
    """

    def __init__(self, path: Path, name: str, complain: Complain) -> None:
        self._name, self._complain = name, complain
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, str]] = {}
        self._counts: Counter[int] = Counter()
        self._damaged: set[int] = set()
        # With the log time of the first message of each.
        self._blocks: list[tuple[int, _Block]] = []
        self.end_ns: int = 0
        self._file = path.open("rb")
        size = self._file.seek(0, os.SEEK_END)
        stopped = self._scan(size)
        self.start_ns: int = min((start_ns for start_ns, _ in self._blocks), default=0)
        self.topics: dict[str, TopicFacts] = gather_topics(
            (topic, type_name, self._counts[channel]) for channel, (topic, type_name) in self._channels.items())
        if stopped is not None:
            complain(f"{name} is cut off or damaged at byte {stopped} of {size}; the {self._counts.total()} messages "
                     f"that are whole until there are used; copy it again, or write a whole file with `mcap recover "
                     f"{name} -o whole.mcap`")
        if self._damaged:
            complain(f"{len(self._damaged)} of the chunks in {name} are damaged; what of them cannot be read is left "
                     "out; copy it again")

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Those of some topics by log time, equal ones in the order written."""
        wanted = {channel for channel, (topic, _) in self._channels.items() if topic in topics}
        return merge_sources([(start_ns, partial(self._read_block, block, wanted)) for start_ns, block in self._blocks])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _scan(self, size: int) -> int | None:
        """Find all blocks.

        :param size: of the file
        :return: the byte at which the data breaks off; None where it ends as it should
        """
        end = len(MAGIC)
        for opcode, offset, length in _join_messages(_records(self._file, end, size), size):
            is_cut = offset + length > size
            if (opcode, length) in _ENDS:
                return None
            if opcode == _CHUNK or (opcode == _MESSAGE and not is_cut):
                there = min(size - offset, _CUT_BYTES) if is_cut else length
                self._add(_Block(offset, there, opcode == _CHUNK, is_cut))
            elif opcode in (_SCHEMA, _CHANNEL) and not is_cut:
                is_cut = not self._learn_at(opcode, offset, length)
            if is_cut:
                return offset - _RECORD.size
            end = offset + length
        return end

    def _add(self, block: _Block) -> None:
        stamps = []
        for channel, log_ns, _ in self._messages_of(block):
            self._counts[channel] += 1
            stamps.append(log_ns)
        if stamps:
            self._blocks.append((min(stamps), block))
            self.end_ns = max(self.end_ns, *stamps)

    def _read_block(self, block: _Block, wanted: Collection[int]) -> Iterator[BagMessage]:
        return iter(sorted((BagMessage(*self._channels[channel], log_ns, bytes(data))
                            for channel, log_ns, data in self._messages_of(block) if channel in wanted),
                           key=lambda message: message.log_ns))

    def _messages_of(self, block: _Block) -> Iterator[tuple[int, int, memoryview]]:
        """Channel, log time and data of each, as written."""
        try:
            content, end = memoryview(self._content(block)), 0
            for opcode, offset, length in _records(BytesIO(content), 0, len(content)):
                end = offset + length
                record = content[offset:end]
                if end > len(content):
                    break
                if opcode == _MESSAGE:
                    channel, _, log_ns, _ = _MESSAGE_HEAD.unpack_from(record)
                    if channel in self._channels:
                        yield channel, log_ns, record[_MESSAGE_HEAD.size:]
                else:
                    self._learn(opcode, bytes(record))
            if end != len(content):
                raise EOFError("its last record is not whole")
        except BROKEN:
            if not block.is_cut:
                self._damaged.add(block.offset)

    def _content(self, block: _Block) -> bytes:
        self._file.seek(block.offset)
        data = self._file.read(block.length)
        if not block.is_chunk:
            return data
        _, _, size, crc, name_length = _CHUNK_HEAD.unpack_from(data)
        begin = _CHUNK_HEAD.size + name_length
        content = _decompress(data[begin + 8:], data[_CHUNK_HEAD.size:begin].decode())
        if not block.is_cut and (len(content) != size or (crc and crc32(content) != crc)):
            raise ValueError("the chunk is not what its checksum says")
        return content

    def _learn_at(self, opcode: int, offset: int, length: int) -> bool:
        self._file.seek(offset)
        try:
            self._learn(opcode, self._file.read(length))
        except BROKEN:
            return False
        return True

    def _learn(self, opcode: int, record: bytes) -> None:
        if opcode == _SCHEMA:
            number, = struct.unpack_from("<H", record)
            self._schemas[number] = _string(record, 2)[0]
        elif opcode == _CHANNEL:
            number, schema = struct.unpack_from("<HH", record)
            topic, end = _string(record, 4)
            form, _ = _string(record, end)
            if form == "cdr":
                self._channels[number] = topic, self._schemas.get(schema, "unknown")
            else:
                self._complain(foreign_topic(topic, self._name, form))


def has_index(file: BinaryIO) -> bool:
    """Whether it ends as it should, with an index of chunks."""
    size = file.seek(0, os.SEEK_END)
    if size < len(MAGIC) + _FOOT.size:
        return False
    file.seek(size - _FOOT.size)
    opcode, _, summary, _, _, magic = _FOOT.unpack(file.read())
    return (opcode, magic) == (_FOOTER, MAGIC) and summary > 0 and any(
        record[0] == _CHUNK_INDEX for record in _records(file, summary, size))


def _records(file: BinaryIO, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Opcode of each record, and where its content is; that of the last one may end beyond ``size``."""
    while offset + _RECORD.size <= size:
        file.seek(offset)
        opcode, length = _RECORD.unpack(file.read(_RECORD.size))
        if opcode == 0:
            return  # not allowed: a hole that was never written
        yield opcode, offset + _RECORD.size, length
        offset += _RECORD.size + length


def _join_messages(records: Iterator[tuple[int, int, int]], size: int) -> Iterator[tuple[int, int, int]]:
    """Those records, but whole messages that follow each other as one piece that begins with the first one's head."""
    begin = end = 0
    for opcode, offset, length in records:
        is_message = opcode == _MESSAGE and offset + length <= size
        if is_message:
            begin, end = begin if end else offset - _RECORD.size, offset + length
            if end - begin < _PIECE_BYTES:
                continue
        if end:
            yield _MESSAGE, begin, end - begin
            end = 0
        if not is_message:
            yield opcode, offset, length
    if end:
        yield _MESSAGE, begin, end - begin


def _decompress(data: bytes, compression: str) -> bytes:
    """What there is of a chunk, which may be cut off."""
    if compression == "zstd":
        return zstd.ZstdDecompressor().decompress(data)
    if compression == "lz4":
        return LZ4FrameDecompressor().decompress(data)
    if compression:
        raise ValueError(f"chunks are compressed with {compression}; zstd and lz4 can be read")
    return data


def _string(record: bytes, offset: int) -> tuple[str, int]:
    """A string and where it ends."""
    length, = _LENGTH.unpack_from(record, offset)
    end = offset + _LENGTH.size + length
    return record[offset + _LENGTH.size:end].decode(), end
