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

"""Several runs paired where they can be: episodes of the same trials, looks of the same bags.

What cannot be paired is said in a sentence and still stands on the page: a difference between scenes that were not the
same tells of the scenes as much as of the methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqap_vla_ros.evaluation.results import EpisodeRecord, compare_records
from sqap_vla_ros.report.replays import (
    LookComparison,
    MotionComparison,
    Replays,
    compare_looks,
    compare_motions,
    sort_replays,
)
from sqap_vla_ros.report.runs import EVALUATION, REPLAY, Run, read_episodes

# What makes two episodes of one seed the same trial. Checkpoint, knobs and blanked tokens are what may be compared.
_TRIALS = ("suite", "first_seed", "episodes", "scene", "language", "trials_sha256")


@dataclass(frozen=True)
class EpisodeComparison:
    """One method of a run against one of an earlier run, over the scenes that both have finished.

    :param first: method of the earlier run
    :param first_run: its name
    :param other: method of the later run
    :param other_run: its name
    :param change: as :func:`~sqap_vla_ros.evaluation.results.compare_records` gives it
    """

    first: str
    first_run: str
    other: str
    other_run: str
    change: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What several runs have to do with each other.

    :param runs: in the order given
    :param episodes: methods of evaluations, paired
    :param replays: bags and policies; None without replays
    :param looks: policies of replays, paired
    :param motions: the same, by how they would have moved
    :param remarks: sentences on what could not be paired, and why
    """

    runs: Sequence[Run]
    episodes: Sequence[EpisodeComparison]
    replays: Replays | None
    looks: Sequence[LookComparison]
    motions: Sequence[MotionComparison]
    remarks: Sequence[str]

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {"runs": [{"name": run.name, "kind": run.kind, "folder": str(run.folder)} for run in self.runs],
                **{name: [asdict(one) for one in getattr(self, name)] for name in ("episodes", "looks", "motions")},
                "remarks": list(self.remarks)}


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Pair what can be paired.

    :param runs: at least two
    :raises InputError: when episodes or looks cannot be read
    """
    evaluations = [run for run in runs if run.kind == EVALUATION]
    found = [run for run in runs if run.kind == REPLAY]
    remarks: list[str] = []
    episodes = list(_compare_evaluations(evaluations, remarks))
    replays = sort_replays(found) if found else None
    if evaluations and found:
        remarks.append("Evaluations and replays are never paired with each other: the ones act, the others look on.")
    return Comparison(runs, episodes, replays, list(compare_looks(replays)) if replays else [],
                      list(compare_motions(replays)) if replays else [],
                      [*remarks, *(replays.remarks if replays else [])])


def explain_mismatch(first: Run, other: Run) -> str:
    """Why episodes of two evaluations cannot be paired; empty where they can.

    :param first: the earlier one
    :param other: the later one
    """
    one, two = first.summary["settings"], other.summary["settings"]
    unsaid = [run.name for run, settings in ((first, one), (other, two)) if not settings.get("trials_sha256")]
    if unsaid:
        return (f"{other.name} is not paired with {first.name}: {' and '.join(unsaid)} does not say which trials it "
                "played; play it again with --fresh.")
    differing = [f"{name} {_say(two.get(name))} against {_say(one.get(name))}" for name in _TRIALS
                 if two.get(name) != one.get(name)]
    if not differing:
        return ""
    return (f"{other.name} is not paired with {first.name}: it played other trials ({', '.join(differing)}); play both "
            "with the same --suite, --seeds, --episodes, --scene and --language.")


def _compare_evaluations(runs: Sequence[Run], remarks: list[str]) -> Iterator[EpisodeComparison]:
    # Each with the first before it that played the same trials.
    for place, other in enumerate(runs[1:], start=1):
        first = next((run for run in runs[:place] if not explain_mismatch(run, other)), None)
        if first is None:
            remarks.append(explain_mismatch(runs[0], other))
            continue
        one, two = _split_episodes(first), _split_episodes(other)
        empty = [run.name for run, records in ((first, one), (other, two)) if not any(records.values())]
        if empty:
            remarks.append(f"{other.name} is not paired with {first.name}: the folder of {' and '.join(empty)} has no "
                           "finished episodes in episodes.jsonl; copy that file beside summary.json.")
            continue
        for method, records in two.items():
            # The method's own counterpart where there is one, which takes away what the method itself changes.
            with_ = method if method in one else next(iter(one))
            yield EpisodeComparison(with_, first.name, method, other.name, compare_records(one[with_], records))


def _split_episodes(run: Run) -> dict[str, list[EpisodeRecord]]:
    records = sorted(read_episodes(run), key=lambda record: record.seed)
    return {method: [record for record in records if record.method == method] for method in run.summary["methods"]}


def _say(value: Any) -> str:
    return "nothing" if value in (None, "", []) else ", ".join(value) if isinstance(value, list) else str(value)
