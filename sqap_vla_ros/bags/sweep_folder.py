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

"""A sweep on disk: a folder for each cell, which says whether that is finished, and a line for each that has landed.

What is finished is in the cells' folders alone; ``results.jsonl`` is made of them, and made anew by a sweep that goes
on.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from sqap_vla_ros.bags.sweep_plan import Cell, Sweep
from sqap_vla_ros.bags.sweep_results import Landed, build_row
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.summary import write_json

SWEEP_FILE, RESULTS_FILE, CELLS = "sweep.json", "results.jsonl", "cells"
RESULT_FILES = ("summary.json", "table.md")
_CELL_FILE, _SUMMARY_FILE, _LOCK_FILE = "cell.json", "summary.json", "lock"


@contextmanager
def hold_cell(cell: Cell) -> Generator[None, None, None]:
    """Keep a cell's folder to this process; one that comes second waits, as for a worker that was only thought dead."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (cell.folder / _LOCK_FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_finished(cell: Cell) -> Landed | None:
    """The cell as it was finished before; None when it was not, or with other settings."""
    record, summary = _read_json(cell.folder / _CELL_FILE), _read_json(cell.folder / _SUMMARY_FILE)
    if not summary or record.get("settings") != _plain(cell.settings):
        return None
    return Landed(cell, summary, begun=record["begun"], alone=record["alone"])


def begin_cell(cell: Cell, *, alone: bool) -> Landed:
    """Note that a cell is begun. What another of its name has left goes; what this one has left is for it to use.

    :param alone: whether no other cell runs beside it
    :return: the cell as it would land if it failed
    """
    record = _read_json(cell.folder / _CELL_FILE)
    # A folder that was moved is finished as it is, but what was cut short goes on with the same files alone.
    asked = {"settings": _plain(cell.settings), "policies": _plain(dict(cell.policies))}
    if any(record.get(name) != value for name, value in asked.items()):
        for path in cell.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK_FILE:
                path.unlink()
        record = {**asked, "begun": 0, "alone": True}
    record |= {"begun": record["begun"] + 1, "alone": record["alone"] and alone}
    write_json(cell.folder / _CELL_FILE, record)
    return Landed(cell, None, begun=record["begun"], alone=record["alone"])


class SweepFolder:
    """The folder of one sweep, held by one process at a time.

    :param folder: created when missing
    :param sweep: what is asked for
    :param cells: of that sweep
    :param resume: go on with what is there
    :raises ConfigError: when the folder cannot be used, is in use, or holds results and ``resume`` is false
    """

    def __init__(self, folder: Path, sweep: Sweep, cells: Sequence[Cell], *, resume: bool = False) -> None:
        self.landed: list[Landed] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / RESULTS_FILE).open("ab")
        except OSError as error:
            raise ConfigError(f"--out {folder} cannot be written: {error.strerror}; take another folder") from error
        try:
            self._open(folder, _plain(sweep.describe()), cells, resume=resume)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SweepFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, landed: Landed) -> None:
        """Keep a cell that has landed, so that its line outlives a kill of this process."""
        self.landed.append(landed)
        self._file.write(json.dumps(build_row(landed)).encode() + b"\n")
        self._file.flush()

    def _open(self, folder: Path, settings: dict[str, Any], cells: Sequence[Cell], *, resume: bool) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another sweep writes to {folder}; wait for it or take another --out") from error
        if (folder / SWEEP_FILE).exists() and not resume:
            earlier = _read_json(folder / SWEEP_FILE)
            other = next((name for name in settings if earlier.get(name) != settings[name]), None)
            holds = "results of this sweep" if other is None else (
                f"results of a sweep with {other} {json.dumps(earlier.get(other))}, not {json.dumps(settings[other])}")
            raise ConfigError(f"{folder} holds {holds}; say --resume to run what is missing and keep the cells that "
                              "are the same, or take another --out")
        for name in RESULT_FILES:
            # What an earlier run left would be taken for this one's.
            (folder / name).unlink(missing_ok=True)
        write_json(folder / SWEEP_FILE, settings)
        self._file.truncate(0)
        for landed in filter(None, map(read_finished, cells)):
            self.add(landed)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    # As they are when they are read back.
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _read_json(path: Path) -> dict[str, Any]:
    # What cannot be read is not there: it was being written, and is written again.
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
