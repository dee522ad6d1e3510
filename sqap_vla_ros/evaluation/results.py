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

"""Finished episodes to numbers: success by group, kind and colour; each method against the first, scene by scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqap_vla_ros.evaluation.resampling import resample_difference, resample_ratio
from sqap_vla_ros.evaluation.statistics import summarize_counts, wilson_interval


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode; a line of ``episodes.jsonl``.

    :param method: what played, as on the command line
    :param seed: the scene
    :param group: what it counts for: a task of the base suite, a difficulty of the hard one
    :param task: kind of the task
    :param color: of the block that the task is about
    :param instruction: the task in words
    :param success: whether it was done in time
    :param steps: control steps until then, or all that were allowed
    :param jerk: mean commanded jerk, m/s^3; None for fewer than 3 steps
    :param path_m: length of the commanded path
    :param nearest: block over which the gripper ended
    :param target: block that the instruction meant
    :param replaced: block that the scene's own task meant, when the instruction was exchanged; empty otherwise
    """

    method: str
    seed: int
    group: str
    task: str
    color: str
    instruction: str
    success: bool
    steps: int
    jerk: float | None
    path_m: float
    nearest: str
    target: str
    replaced: str = ""


def summarize_records(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Success with its interval, and how the robot moved, in some episodes.

    :return: ``success`` (0 to 1), ``interval``, ``successes``, ``episodes``, ``steps_to_success`` (median and p90 over
        successes), ``path_to_success_m`` (mean over successes), ``jerk_m_s3`` (mean over episodes), and, of exchanged
        instructions, ``went_to``
    """
    successes, episodes = sum(record.success for record in records), len(records)
    jerks = [record.jerk for record in records if record.jerk is not None]
    paths = [record.path_m for record in records if record.success]
    summary = {
        "success": round(successes / episodes, 4) if episodes else 0.0,
        "interval": [round(bound, 4) for bound in wilson_interval(successes, episodes)],
        "successes": successes,
        "episodes": episodes,
        "steps_to_success": summarize_counts([record.steps for record in records if record.success]),
        "path_to_success_m": round(sum(paths) / len(paths), 4) if paths else None,
        "jerk_m_s3": round(sum(jerks) / len(jerks), 3) if jerks else None,
    }
    if any(record.replaced for record in records):
        summary["went_to"] = {
            "named": sum(record.nearest == record.target for record in records),
            "replaced": sum(record.nearest == record.replaced for record in records),
            "elsewhere": sum(record.nearest not in (record.target, record.replaced) for record in records),
        }
    return summary


def summarize_method(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """One method's episodes as a whole, by group (``tasks``), by colour, and by kind and colour."""
    return {
        **summarize_records(records),
        "tasks": _split(records, lambda record: record.group, summarize_records),
        "colors": _split(records, lambda record: record.color, summarize_records),
        "kinds": _split(records, lambda record: record.task, lambda part: {
            **summarize_records(part), "colors": _split(part, lambda record: record.color, summarize_records)}),
    }


def summarize_methods(records: Sequence[EpisodeRecord], methods: Sequence[str]) -> dict[str, Any]:
    """Every method's numbers, and what each further method changes against the first.

    :param records: in any order
    :param methods: names in the order wanted; the first is what others are compared with
    :return: ``methods`` and ``compared``, by name
    """
    ordered = sorted(records, key=lambda record: record.seed)
    by_method = {name: [record for record in ordered if record.method == name] for name in methods}
    first = methods[0]
    return {
        "methods": {name: {"method": name, **summarize_method(part)} for name, part in by_method.items()},
        "compared": {name: {"with": first, **compare_records(by_method[first], by_method[name])}
                     for name in methods[1:]},
    }


def compare_records(first: Sequence[EpisodeRecord], other: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """What the other method changes against the first, over the scenes that both have finished.

    :return: ``difference`` of the success rates with its ``interval``, and McNemar's four counts: ``both``,
        ``only_first``, ``only_this``, ``neither``; ``jerk``, and of the scenes that both solved ``path`` and ``steps``:
        each ``ratio`` of the other's mean to the first's with ``interval`` and ``episodes``, or None where there are
        too few
    """
    by_seed = {record.seed: record for record in first}
    pairs = [(by_seed[record.seed], record) for record in other if record.seed in by_seed]
    outcomes = [(one.success, two.success) for one, two in pairs]
    both, only_first, only_this, neither = (
        outcomes.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False)))
    interval = resample_difference([one for one, _ in outcomes], [two for _, two in outcomes])
    solved = [(one, two) for one, two in pairs if one.success and two.success]
    return {
        "difference": round((only_this - only_first) / len(pairs), 4) if pairs else 0.0,
        "interval": [round(bound, 4) for bound in interval],
        "episodes": len(pairs),
        "both": both, "only_first": only_first, "only_this": only_this, "neither": neither,
        "jerk": _compare_values([(one.jerk, two.jerk) for one, two in pairs
                                 if one.jerk is not None and two.jerk is not None]),
        "path": _compare_values([(one.path_m, two.path_m) for one, two in solved]),
        "steps": _compare_values([(one.steps, two.steps) for one, two in solved]),
    }


def _compare_values(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    found = resample_ratio([one for one, _ in pairs], [two for _, two in pairs])
    if found is None:
        return None
    ratio, low, high = found
    return {"ratio": round(ratio, 4), "interval": [round(low, 4), round(high, 4)], "episodes": len(pairs)}


def _split(records: Sequence[EpisodeRecord], key: Callable[[EpisodeRecord], str],
           summarize: Callable[[Sequence[EpisodeRecord]], dict[str, Any]]) -> dict[str, Any]:
    # In the order of first appearance.
    parts: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        parts.setdefault(key(record), []).append(record)
    return {name: summarize(part) for name, part in parts.items()}
