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

"""Bags of every kind, written as ROS 2 writes them, whole and damaged."""

import shutil
import struct
from dataclasses import dataclass
from types import SimpleNamespace
from zlib import crc32

import lz4.frame
import pytest
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_HUMBLE)
STRING, JPEG = "std_msgs/msg/String", "sensor_msgs/msg/CompressedImage"
START_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True)
class Recorded:
    """A message to be written."""

    log_ns: int
    topic: str
    type_name: str
    data: bytes


def serialize(message, type_name):
    """Message of rosbags to CDR."""
    return bytes(STORE.serialize_cdr(message, type_name))


def text(log_ns, content, topic="/instruction"):
    """A string, recorded at ``START_NS + log_ns``."""
    message = STORE.types[STRING](data=content)
    return Recorded(START_NS + log_ns, topic, STRING, serialize(message, STRING))


def picture(log_ns, data, topic="/camera/image_raw/compressed"):
    """A compressed picture, recorded at ``START_NS + log_ns``.

    :param data: 1-D uint8 array
    """
    sec, nanosec = divmod(START_NS + log_ns, 10**9)
    stamp = STORE.types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
    header = STORE.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
    message = STORE.types[JPEG](header=header, format="bgr8; jpeg compressed bgr8", data=data)
    return Recorded(START_NS + log_ns, topic, JPEG, serialize(message, JPEG))


def write_bag(folder, messages, storage="mcap", version=8, compression="none"):
    """A bag of one file.

    :param messages: :class:`Recorded` in the order written; may be a generator
    :param version: of the metadata, 5, 8 or 9
    :param compression: 'none', 'message', 'file', or 'storage' for MCAP's own chunks
    :return: the folder
    """
    writer = Writer(folder, version=max(version, 8), storage_plugin=StoragePlugin[storage.upper()])
    writer.set_compression(CompressionMode[compression.upper()], CompressionFormat.ZSTD)
    connections = {}
    with writer:
        for message in messages:
            if message.topic not in connections:
                connections[message.topic] = writer.add_connection(message.topic, message.type_name, typestore=STORE)
            writer.write(connections[message.topic], message.log_ns, message.data)
    if version == 5:
        edit_metadata(folder, _as_humble)
    return folder


def _as_humble(information):
    information.update(version=5, compression_mode=information["compression_mode"].upper())
    for name in ("custom_data", "ros_distro"):
        del information[name]
    for topic in information["topics_with_message_count"]:
        del topic["topic_metadata"]["type_description_hash"]


def edit_metadata(folder, change):
    """Let ``change`` edit what metadata.yaml says of the bag."""
    path = folder / "metadata.yaml"
    content = yaml.safe_load(path.read_text())
    change(content["rosbag2_bagfile_information"])
    path.write_text(yaml.safe_dump(content))


def storage_file(folder):
    """The only storage file of a bag."""
    path, = (path for path in folder.iterdir() if path.name != "metadata.yaml")
    return path


def join_bags(folder, parts):
    """One bag of several files, as recording with a maximal size leaves it.

    :param parts: folders of bags of one file each, in the order written; they are gone afterwards
    """
    folder.mkdir()
    files = []
    for number, part in enumerate(parts):
        file = storage_file(part)
        files.append(file.rename(folder / f"{folder.name}_{number}{''.join(file.suffixes)}"))
    shutil.copy(parts[0] / "metadata.yaml", folder)
    counts = [yaml.safe_load((part / "metadata.yaml").read_text())["rosbag2_bagfile_information"]["message_count"]
              for part in parts]
    edit_metadata(folder, lambda information: information.update(
        relative_file_paths=[file.name for file in files], message_count=sum(counts)))
    for part in parts:
        shutil.rmtree(part)
    return folder


def _record(opcode, content):
    return struct.pack("<BQ", opcode, len(content)) + content


def _prefixed(value):
    return struct.pack("<I", len(value)) + value


def write_plain_mcap(path, messages, per_chunk=0, compression="", encoding=b"cdr"):
    """An MCAP file without an index, as a recorder that must be quick leaves it.

    :param per_chunk: messages in each chunk, which have checksums; 0 for messages outside chunks
    :param compression: of the chunks, '' or 'lz4'
    :param encoding: of the messages
    :return: where each message outside chunks, or each chunk, begins, in bytes
    """
    numbers, offsets = {}, []
    content = b"\x89MCAP0\r\n" + _record(1, _prefixed(b"ros2") + _prefixed(b"test"))
    for message in messages:
        if message.topic not in numbers:
            number = numbers[message.topic] = len(numbers) + 1
            content += _record(3, struct.pack("<H", number) + _prefixed(message.type_name.encode())
                               + _prefixed(b"ros2msg") + _prefixed(b""))
            content += _record(4, struct.pack("<HH", number, number) + _prefixed(message.topic.encode())
                               + _prefixed(encoding) + _prefixed(b""))
    records = [_record(5, struct.pack("<HIQQ", numbers[message.topic], 0, message.log_ns, message.log_ns)
                       + message.data) for message in messages]
    stamps = [message.log_ns for message in messages]
    for begin in range(0, len(records), per_chunk or 1):
        inside = b"".join(records[begin:begin + (per_chunk or 1)])
        offsets.append(len(content))
        if per_chunk:
            of_chunk = stamps[begin:begin + per_chunk]
            packed = lz4.frame.compress(inside) if compression == "lz4" else inside
            inside = _record(6, struct.pack("<QQQI", min(of_chunk), max(of_chunk), len(inside), crc32(inside))
                             + _prefixed(compression.encode()) + struct.pack("<Q", len(packed)) + packed)
        content += inside
    content += _record(15, struct.pack("<I", 0)) + _record(2, struct.pack("<QQI", 0, 0, 0)) + b"\x89MCAP0\r\n"
    path.write_bytes(content)
    return offsets


@pytest.fixture
def tmp_path(tmp_path):
    """pytest's own folder, but gone after the test: bags are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def bags():
    """The makers of messages and bags of this file, by name."""
    return SimpleNamespace(text=text, picture=picture, write_bag=write_bag, join_bags=join_bags,
                           edit_metadata=edit_metadata, storage_file=storage_file, write_plain_mcap=write_plain_mcap,
                           store=STORE, start_ns=START_NS)
