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

"""A recorded bag, opened and read message by message, whatever wrote it and however damaged it is.

The storage files say what a bag holds; ``metadata.yaml`` only which files belong to it. So a bag without one, or with
one that does not fit, is read all the same.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import yaml

from sqap_vla_ros.bags.mcap_file import open_mcap
from sqap_vla_ros.bags.sqlite_file import SqliteFile
from sqap_vla_ros.bags.storage import BagMessage, Complain, Storage, TopicFacts, gather_topics, merge_sources
from sqap_vla_ros.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Bag", "BagMessage", "TopicFacts", "open_bag"]

METADATA_FILE = "metadata.yaml"
STORAGES = ("sqlite3", "mcap")
SUFFIXES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Bag:
    """An open bag; :func:`open_bag` makes it.

    :param path: of the folder or the file
    :ivar topics: what there is of each topic, by name
    :ivar start_ns: log time of the first message
    :ivar end_ns: log time of the last message
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._complaints: dict[str, None] = {}
        with ExitStack() as stack:
            files, expected = _find_files(path, self._complain)
            storages = list(self._open_storages(files, stack))
            self.topics: dict[str, TopicFacts] = dict(sorted(gather_topics(
                (topic, facts.type_name, facts.count) for storage in storages
                for topic, facts in storage.topics.items()).items()))
            self._check_count(expected)
            self._storages = [storage for storage in storages if any(facts.count for facts in storage.topics.values())]
            self.start_ns: int = min(storage.start_ns for storage in self._storages)
            self.end_ns: int = max(storage.end_ns for storage in self._storages)
            self._stack = stack.pop_all()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def complaints(self) -> tuple[str, ...]:
        """What is damaged, what of it can be read, and the way out; reading may find more."""
        return tuple(self._complaints)

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """Messages by log time, equal ones in the order written; each call begins anew.

        :param topics: only of these; of all when None
        """
        wanted = frozenset(self.topics if topics is None else topics)
        lost: Counter[str] = Counter()
        for message in merge_sources([(storage.start_ns, partial(storage.messages, wanted))
                                      for storage in self._storages]):
            # CDR begins with a zero, so that no metadata need say whether messages are compressed.
            if message.data.startswith(_ZSTD_MAGIC):
                try:
                    message = replace(message, data=zstd.decompress(message.data))
                except zstd.ZstdError:
                    lost[message.topic] += 1
                    continue
            yield message
        for topic, count in lost.items():
            self._complain(f"{count} compressed messages of {topic} in {self.path.name} are damaged and are left out; "
                           "copy the bag again")

    def close(self) -> None:
        """Let go of all files."""
        self._stack.close()

    def _complain(self, sentence: str) -> None:
        self._complaints[sentence] = None

    def _open_storages(self, files: Sequence[Path], stack: ExitStack) -> Iterator[Storage]:
        for file in files:
            try:
                storage = _open_storage(file, stack, self._complain)
            except InputError as error:
                self._complain(str(error))
            else:
                stack.callback(storage.close)
                yield storage

    def _check_count(self, expected: int) -> None:
        count = sum(facts.count for facts in self.topics.values())
        if count == 0 and self._complaints:
            raise InputError(f"nothing of the bag {self.path} can be read: {'; '.join(self._complaints)}")
        if count == 0:
            raise InputError(f"the bag {self.path} holds no messages; record anew while its topics are published")
        if count < expected and not self._complaints:
            self._complain(f"{METADATA_FILE} of {self.path.name} names {expected} messages, its files hold {count}; "
                           "those are used; copy the bag again, it may have been copied while it was recorded")


def open_bag(path: Path) -> Bag:
    """Open a recorded bag.

    :param path: a folder of rosbag2, or one of its ``.mcap`` or ``.db3`` files
    :raises InputError: when nothing of it can be read, or it holds no messages
    """
    return Bag(Path(path))


def _find_files(path: Path, complain: Complain) -> tuple[list[Path], int]:
    """Storage files of a bag in the order written, and how many messages its metadata names; 0 where that is unknown.

    :raises InputError: when there are none
    """
    if not path.exists():
        raise InputError(f"there is no bag {path}; name its folder, or a {_or(SUFFIXES)} file")
    if path.is_dir():
        return _find_in_folder(path, complain)
    if path.name.endswith(SUFFIXES):
        return [path], 0
    if path.suffix == ".bag":
        raise InputError(_of_ros_1(path))
    raise InputError(f"{path} is no bag; name the folder of one, or a {_or(SUFFIXES)} file")


def _find_in_folder(folder: Path, complain: Complain) -> tuple[list[Path], int]:
    present = sorted((file for file in folder.iterdir() if file.name.endswith(SUFFIXES)), key=_split_number)
    metadata_path = folder / METADATA_FILE
    if not metadata_path.exists() and not present:
        old = next(folder.glob("*.bag"), None)
        raise InputError(_of_ros_1(old) if old else f"{folder} is no bag: it holds neither {METADATA_FILE} nor a "
                         f"{_or(SUFFIXES)} file; name the folder that `ros2 bag record` wrote")
    try:
        metadata = _read_metadata(metadata_path)
        names = [PurePosixPath(name).name for name in metadata["relative_file_paths"]]
        expected = int(metadata["message_count"])
        storage, compression = metadata["storage_identifier"], metadata.get("compression_format")
    except FileNotFoundError:
        complain(f"{folder.name} has no {METADATA_FILE}; its storage files are read without; `ros2 bag reindex "
                 f"{folder.name}` writes one")
        return present, 0
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        complain(f"{METADATA_FILE} of {folder.name} cannot be read ({' '.join(str(error).split())}); its storage files "
                 f"are read without; `ros2 bag reindex {folder.name}` writes it anew")
        return present, 0
    if storage not in STORAGES or compression not in (None, "", "zstd"):
        raise InputError(f"the bag {folder} is stored as {storage}, compressed as {compression or 'none'}; allowed are "
                         f"{_or(STORAGES)} and zstd or none; `ros2 bag convert` writes such a bag")
    return _choose(folder, names, present, complain), expected


def _choose(folder: Path, names: Sequence[str], present: Sequence[Path], complain: Complain) -> list[Path]:
    """Of the files that metadata names those that are there; where none is, those that are there instead."""
    named = [folder / name for name in names if (folder / name).exists()]
    missing = [name for name in names if folder / name not in named]
    if missing and not named and not present:
        raise InputError(f"of the bag {folder} there is only {METADATA_FILE}; {', '.join(missing)} that it names must "
                         "be in the same folder; copy the whole folder")
    if missing:
        used = ", ".join(file.name for file in named or present)
        complain(f"{METADATA_FILE} of {folder.name} names {', '.join(missing)}, which is not there; {used} is read; "
                 "copy the whole folder again")
    return named or list(present)


def _read_metadata(path: Path) -> Mapping[str, Any]:
    content: Mapping[str, Mapping[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content["rosbag2_bagfile_information"]


def _open_storage(file: Path, stack: ExitStack, complain: Complain) -> Storage:
    """Open a file by its suffix.

    :raises InputError: when nothing of it can be read
    """
    name = file.name
    try:
        if file.stat().st_size == 0:
            raise InputError(f"{name} is empty, 0 bytes; copy it again, or record anew")
        if file.suffix == ".zstd":
            file = _unpack(file, Path(stack.enter_context(TemporaryDirectory())), complain)
        return open_mcap(file, name, complain) if file.suffix == ".mcap" else SqliteFile(file, name, complain)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}; check the disk and who may read it") from error


def _unpack(file: Path, folder: Path, complain: Complain) -> Path:
    """Decompress a whole file as far as it goes."""
    unpacked = folder / file.stem
    try:
        with zstd.open(file, "rb") as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (zstd.ZstdError, EOFError) as error:
        complain(f"{file.name} can be decompressed to its byte {unpacked.stat().st_size} only ({error}); what is there "
                 "is used; copy it again")
    return unpacked


def _split_number(file: Path) -> list[int | str]:
    # name_10 comes after name_9.
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


def _of_ros_1(path: Path) -> str:
    return (f"{path} is a bag of ROS 1; convert it with `rosbags-convert --src {path} --dst {path.with_suffix('')}` "
            "and name what comes out")


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
