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

"""The plots of a replay, from its looks as they are on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from sqap_vla_ros.data import ACTION_NAMES, TokenRule
from sqap_vla_ros.report.figures import (
    CYAN,
    NEUTRAL,
    ORANGE,
    PURPLE,
    Series,
    choose_tone,
    plot_histograms,
    plot_over_time,
)
from sqap_vla_ros.report.page import Plot

RECORDED = "recorded"
TOTAL = "total"
GRIPPER = ACTION_NAMES[-1]
UNITS = {**dict.fromkeys(ACTION_NAMES[:3], "m"), **dict.fromkeys(ACTION_NAMES[3:6], "rad"),
         GRIPPER: "0 closed, 1 open"}
# As they are drawn into the pictures.
_RULE_TONES = {TokenRule.ATTENTION: ORANGE, TokenRule.ROBOT: CYAN, TokenRule.COVERAGE: NEUTRAL,
               TokenRule.UNPRUNED: NEUTRAL, TokenRule.RANDOM: PURPLE}

Look = Mapping[str, Any]
Values = Sequence["float | None"]


def measure_times(looks: Sequence[Look]) -> list[float]:
    """When each look was complete, s since the first."""
    return [(look["log_ns"] - looks[0]["log_ns"]) * 1e-9 for look in looks]


def plot_actions(looks: Sequence[Look], labels: Sequence[str]) -> Plot | None:
    """Each dimension of the action over time: recorded, and the first step of each policy's chunk; None where no
    action is known.
    """
    sources = [(name, tone) for name, tone in ((RECORDED, NEUTRAL), *_tone_labels(labels))
               if any(_find_action(look, name) for look in looks)]
    cells = {f"{dimension} ({UNITS[dimension]})": [
        Series(name, _trace_dimension(looks, name, place), tone, "dot" if name == RECORDED else "solid")
        for name, tone in sources] for place, dimension in enumerate(ACTION_NAMES)}
    return plot_over_time(measure_times(looks), cells, "Actions over time, a row for each dimension: for one step, in "
                          "the base frame.") if sources else None


def plot_deviation(looks: Sequence[Look], compared: Sequence[Mapping[str, Any]]) -> Plot | None:
    """How the differences of each dimension of motion add up, for each pair that is compared; None where none is.

    The gripper opens and closes, so its differences do not add up to anything.
    """
    pairs = [(row["policy"], row["with"], choose_tone(number)) for number, row in enumerate(compared)]
    sums = {pair: [_sum_differences(looks, *pair[:2], place) for place in range(len(ACTION_NAMES) - 1)]
            for pair in pairs}
    known = [pair for pair in pairs if any(value is not None for value in sums[pair][0])]
    cells = {f"{dimension} ({UNITS[dimension]})": [
        Series(f"{policy} \u2212 {other}", sums[policy, other, tone][place], tone) for policy, other, tone in known]
        for place, dimension in enumerate(ACTION_NAMES[:-1])}
    return plot_over_time(measure_times(looks), cells, "Cumulative deviation: the differences of the actions, added "
                          "up from the first look on.") if known else None


def plot_latency(looks: Sequence[Look], labels: Sequence[str]) -> Plot | None:
    """Histograms of the wall time of each stage and of their sum; None where no time is known."""
    times = {label: [answer["milliseconds"] for answer in _list_answers(looks, label) if answer["milliseconds"]]
             for label in labels}
    stages = dict.fromkeys(stage for entries in times.values() for entry in entries for stage in entry)
    cells: dict[str, list[Series]] = {stage: [] for stage in (*stages, TOTAL)}
    for label, tone in _tone_labels(labels):
        for stage, series in cells.items():
            samples = [sum(entry.values()) if stage == TOTAL else entry.get(stage) for entry in times[label]]
            if any(sample is not None for sample in samples):
                series.append(Series(label, samples, tone))
    return plot_histograms(cells, "Share of looks by latency, a plot for each stage.", unit="ms") if stages else None


def plot_kept_tokens(looks: Sequence[Look], labels: Sequence[str]) -> Plot | None:
    """Tokens over time by the rule that kept them, for each policy that prunes; None where none does."""
    pruning = [label for label in labels
               if any(answer["kept"] < answer["total"] for answer in _list_answers(looks, label))]
    cells = {label: [Series(rule.name.lower(), values, tone) for rule, tone in _RULE_TONES.items()
                     if any(values := _collect(looks, label, _count_of(rule)))] for label in pruning}
    return plot_over_time(measure_times(looks), cells, "Visual tokens kept over time, by the rule that kept them.",
                          stacked=True, cell_px=150) if any(cells.values()) else None


def plot_gripper_tokens(looks: Sequence[Look], labels: Sequence[str]) -> Plot | None:
    """Share of the tokens on the protected frames that stayed, over time; None where it is not known."""
    every = [Series(label, _collect(looks, label, lambda answer: answer.get("gripper_kept")), tone)
             for label, tone in _tone_labels(labels)]
    lines = [line for line in every if any(value is not None for value in line.values)]
    return plot_over_time(measure_times(looks), {"share of gripper tokens kept": lines}, "Share of the tokens where "
                          "the projection shows the gripper that stayed.", cell_px=130) if lines else None


def _tone_labels(labels: Sequence[str]) -> list[tuple[str, int]]:
    return [(label, choose_tone(number)) for number, label in enumerate(labels)]


def _find_action(look: Look, name: str) -> Values | None:
    if name == RECORDED:
        recorded: Values | None = look.get("recorded")
        return recorded
    answer = look["answers"].get(name)
    return answer["steps"][0] if answer and answer["steps"] else None


def _trace_dimension(looks: Sequence[Look], name: str, place: int) -> list[float | None]:
    return [action[place] if (action := _find_action(look, name)) else None for look in looks]


def _sum_differences(looks: Sequence[Look], policy: str, other: str, place: int) -> list[float | None]:
    pairs = zip(_trace_dimension(looks, policy, place), _trace_dimension(looks, other, place), strict=True)
    apart = [None if one is None or two is None else one - two for one, two in pairs]
    sums = accumulate(0.0 if value is None else value for value in apart)
    return [None if value is None else total for value, total in zip(apart, sums, strict=True)]


def _list_answers(looks: Sequence[Look], label: str) -> list[Mapping[str, Any]]:
    return [look["answers"][label] for look in looks if look["answers"].get(label)]


def _collect(looks: Sequence[Look], label: str, read: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    return [read(answer) if (answer := look["answers"].get(label)) else None for look in looks]


def _count_of(rule: TokenRule) -> Callable[[Mapping[str, Any]], int]:
    return lambda answer: int(answer["rules"].get(rule.name.lower(), 0))
