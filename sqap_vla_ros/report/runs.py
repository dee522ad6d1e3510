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

"""Folders that `sqap replay` and `sqap evaluate` have written: which of them it was, its summary, looks or episodes.

They are read only, so that a report can be made of what another process, machine or release has written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.evaluation.results import EpisodeRecord

SUMMARY_FILE, EPISODES_FILE, LOOKS_FILE = "summary.json", "episodes.jsonl", "looks.jsonl"
REPLAY, EVALUATION = "replay", "evaluation"
_VERBS = {REPLAY: "sqap replay", EVALUATION: "sqap evaluate"}
_NEEDED = {REPLAY: ("bag", "policies", "compared", "motion", "tokens", "timing", "settings"),
           EVALUATION: ("methods", "compared", "complete", "settings")}
_TOLD_SETTINGS = ("suite", "scene", "blind", "language", "episodes", "first_seed", "checkpoint")
_LISTS = {(REPLAY, "compared"), (EVALUATION, "complete")}
_KINDS_TAKEN = "give folders of `sqap replay` or `sqap evaluate`"


@dataclass(frozen=True)
class Run:
    """A folder with results.

    :param name: what tells it from others of the same report: the folder's name where that does, else its path
    :param folder: where it is
    :param kind: ``REPLAY`` or ``EVALUATION``
    :param summary: as its ``summary.json`` has it
    """

    name: str
    folder: Path
    kind: str
    summary: Mapping[str, Any]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the summaries of some folders, in their order.

    :raises InputError: when one holds no results, or none that a report can be made of
    """
    counts = Counter(folder.resolve().name for folder in folders)
    runs = []
    for folder in folders:
        name = folder.resolve().name
        summary = _read_summary(folder)
        kind = _find_kind(folder, summary)
        runs.append(Run(name if counts[name] == 1 else str(folder), folder, kind, summary))
    return runs


def read_episodes(run: Run) -> list[EpisodeRecord]:
    """The finished episodes of an evaluation; none where only the summary was kept.

    :raises InputError: when a line is none
    """
    records = []
    for place, values in _read_lines(run, EPISODES_FILE):
        try:
            records.append(EpisodeRecord(**values))
        except TypeError as error:
            raise InputError(f"{place} is no finished episode: {error}; {_advise(run.kind)}") from error
    return records


def read_looks(run: Run) -> Iterator[dict[str, Any]]:
    """The looks of a replay, one by one; none where only the summary was kept.

    :raises InputError: when a line is none
    """
    for place, values in _read_lines(run, LOOKS_FILE):
        if not {"index", "stamp_ns", "answers"} <= values.keys():
            raise InputError(f"{place} is no look of a replay: index, stamp_ns or answers is missing; "
                             f"{_advise(run.kind)}")
        yield values


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY_FILE
    if not path.is_file():
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; {_KINDS_TAKEN}")
        below = any(folder.glob(f"*/{SUMMARY_FILE}"))
        raise InputError(f"{folder} holds no {SUMMARY_FILE}; "
                         + (f"give the folders in it that do, {folder}/*/" if below else
                            f"{_KINDS_TAKEN}, which write one when they end, also after Ctrl-C"))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; run what wrote it again with the same --out, which goes on "
                         "where it was") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no results but {type(values).__name__}; {_KINDS_TAKEN}")
    return values


def _find_kind(folder: Path, summary: Mapping[str, Any]) -> str:
    path, kind = folder / SUMMARY_FILE, summary.get("kind")
    if kind is None and {"scenes", "worked"} <= summary.keys():
        raise InputError(f"{folder} is of `sqap demo`, which has its own files (chart.png, demo.mp4); {_KINDS_TAKEN}")
    if kind is None and {"methods", "complete"} <= summary.keys():
        kind = EVALUATION  # written before summaries said what they are
    if kind not in list(_NEEDED):
        what = "does not say what wrote it" if kind is None else f"is of the kind {json.dumps(kind)}, not known here"
        raise InputError(f"{path} {what}; {_KINDS_TAKEN}")
    for name in _NEEDED[kind]:
        if not isinstance(summary.get(name), (list, bool) if (kind, name) in _LISTS else dict):
            raise InputError(f"{path} lacks '{name}', or has it in another form than `{_VERBS[kind]}` writes; "
                             f"{_advise(kind)}")
    untold = [name for name in _TOLD_SETTINGS if kind == EVALUATION and name not in summary["settings"]]
    if untold:
        raise InputError(f"the settings in {path} lack {', '.join(untold)}; {_advise(kind)}")
    return str(kind)


def _read_lines(run: Run, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    path = run.folder / name
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    return  # was being written when the process was killed
                place = f"line {number} of {path}"
                values = json.loads(line)
                if not isinstance(values, dict):
                    raise InputError(f"{place} holds no result but {type(values).__name__}; {_advise(run.kind)}")
                yield place, values
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; {_advise(run.kind)}") from error


def _advise(kind: str) -> str:
    return f"run `{_VERBS[kind]}` again with --fresh, or leave the folder out"
