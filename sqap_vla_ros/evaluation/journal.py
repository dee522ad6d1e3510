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

"""What an evaluation has finished, on disk as it goes, so that a killed one goes on where it was.

``run.json`` says what was asked for; ``episodes.jsonl`` has one line per finished episode. Only a run that asks for the
same goes on in the same folder.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.evaluation.results import EpisodeRecord
from sqap_vla_ros.evaluation.summary import write_json

RUN_FILE, EPISODES_FILE = "run.json", "episodes.jsonl"
RESULT_FILES = ("summary.json", "report.html", "table.md", "chart.png", "kept_tokens.png")


class Journal:
    """The folder of one evaluation, held by one process at a time.

    :param folder: created when missing
    :param settings: everything that decides the outcomes, as plain JSON values
    :param fresh: forget what an earlier run left in the folder
    :raises ConfigError: when the folder cannot be used, is in use, or holds episodes of other settings
    :raises InputError: when its episodes cannot be read
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.records: list[EpisodeRecord] = []
        self._path = folder / EPISODES_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        except OSError as error:
            raise ConfigError(f"--out {folder} cannot be written: {error.strerror}; take another folder") from error
        try:
            self._open(folder, json.loads(json.dumps(settings)), fresh=fresh)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, record: EpisodeRecord) -> None:
        """Keep a finished episode, so that it outlives a kill of this process."""
        self.records.append(record)
        self._file.write(json.dumps(asdict(record)).encode() + b"\n")
        self._file.flush()

    def _open(self, folder: Path, settings: dict[str, Any], *, fresh: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another evaluation writes to {folder}; wait for it or take another --out") from error
        if fresh:
            self._file.truncate(0)
            (folder / RUN_FILE).unlink(missing_ok=True)
        self.records = self._read()
        if self.records:
            _check_same(folder, settings)
        for name in RESULT_FILES:
            # What an earlier run left would be taken for this one's.
            (folder / name).unlink(missing_ok=True)
        write_json(folder / RUN_FILE, settings)

    def _read(self) -> list[EpisodeRecord]:
        self._file.seek(0)
        content = self._file.read()
        # A line without its end was being written when the process was killed.
        whole = content[:content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        self._file.seek(0, os.SEEK_END)
        records = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                records.append(EpisodeRecord(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InputError(f"line {number} of {self._path} is no finished episode: {error}; start anew with "
                                 "--fresh, or take another --out") from error
        return records


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / RUN_FILE
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds episodes, but {path} that says of what cannot be read: {error}; start anew "
                         "with --fresh, or take another --out") from error
    if not isinstance(earlier, dict):
        earlier = {}
    for name in dict.fromkeys((*settings, *earlier)):
        if earlier.get(name) != settings.get(name):
            raise ConfigError(f"{folder} holds episodes with {name} {json.dumps(earlier.get(name))}, not "
                              f"{json.dumps(settings.get(name))}; start anew with --fresh, or take another --out")
