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
from itertools import zip_longest
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
# After so many steps without a look, what adds up begins anew.
GAP_PERIODS = 3
# As they are drawn into the pictures.
_RULE_TONES = {TokenRule.ATTENTION: ORANGE, TokenRule.ROBOT: CYAN, TokenRule.COVERAGE: NEUTRAL,
               TokenRule.UNPRUNED: NEUTRAL, TokenRule.RANDOM: PURPLE}

Look = Mapping[str, Any]
Values = Sequence["float | None"]


def measure_times(looks: Sequence[Look]) -> list[float]:
    """When each look was complete, s since the first."""
    return [(look["log_ns"] - looks[0]["log_ns"]) * 1e-9 for look in looks]


def plot_actions(looks: Sequence[Look], labels: Sequence[str]) -> Plot | None:
    """Each dimension over time, recorded and as each policy's first step; None where no action is known."""
    sources = [(name, tone) for name, tone in ((RECORDED, NEUTRAL), *_tone_labels(labels))
               if any(_find_action(look, name) for look in looks)]
    cells = {f"{dimension} ({UNITS[dimension]})": [
        Series(name, _trace_dimension(looks, name, place), tone, "dot" if name == RECORDED else "solid")
        for name, tone in sources] for place, dimension in enumerate(ACTION_NAMES)}
    return plot_over_time(measure_times(looks), cells, "Actions over time, a row for each dimension: for one step, in "
                          "the base frame.") if sources else None


def plot_deviation(looks: Sequence[Look], labels: Sequence[str], compared: Sequence[Mapping[str, Any]],
                   period_s: float | None) -> Plot | None:
    """How the differences of each dimension of motion add up, for each pair that is compared; None where none is.

    The gripper opens and closes, so its differences do not add up to anything.

    :param labels: of the policies
    :param compared: pairs, ``policy`` and ``with``
    :param period_s: how long a step lasts: a look counts until the next one, at most for a whole step; None when that
        is not known and each look counts as a step
    """
    answered = [(look, at_s) for look, at_s in zip(looks, measure_times(looks), strict=True)
                if all(label in look["answers"] for label in labels)]
    looks, times_s = [look for look, _ in answered], [at_s for _, at_s in answered]
    weights = _weigh_looks(looks, period_s)
    # A policy's deviation from what was recorded has the policy's tone, as everywhere.
    tones = dict(_tone_labels(labels))
    others = [row for row in compared if row["with"] != RECORDED]
    pairs = [(row["policy"], row["with"], choose_tone(len(labels) + others.index(row)) if row in others
              else tones[row["policy"]]) for row in compared]
    sums = {pair: [_sum_differences(looks, *pair[:2], place, weights) for place in range(len(ACTION_NAMES) - 1)]
            for pair in pairs}
    known = [pair for pair in pairs if any(value is not None for value in sums[pair][0])]
    cells = {f"{dimension} ({UNITS[dimension]})": [
        Series(f"{policy} \u2212 {other}", sums[policy, other, tone][place], tone) for policy, other, tone in known]
        for place, dimension in enumerate(ACTION_NAMES[:-1])}
    return plot_over_time(times_s, cells, "Cumulative deviation: the differences of the actions, added "
                          "up; anew with each instruction and behind each gap.") if known else None


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
    return plot_over_time(measure_times(looks), {"gripper tokens kept": lines}, "Share of the tokens where the "
                          "projection shows the gripper that stayed.", share=True, cell_px=130) if lines else None


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


def _weigh_looks(looks: Sequence[Look], period_s: float | None) -> list[tuple[float, bool]]:
    """For which share of its step each look counts, and whether what adds up begins anew with it."""
    weights, begins = [], True
    for look, following in zip_longest(looks, looks[1:]):
        gap_s = (following["stamp_ns"] - look["stamp_ns"]) * 1e-9 if following else 0.0
        ends = (following is None or gap_s <= 0.0 or following["instruction"] != look["instruction"]
                or (period_s is not None and gap_s > GAP_PERIODS * period_s))
        weights.append((1.0 if ends or period_s is None else min(gap_s / period_s, 1.0), begins))
        begins = ends
    return weights


def _sum_differences(looks: Sequence[Look], policy: str, other: str, place: int,
                     weights: Sequence[tuple[float, bool]]) -> list[float | None]:
    sums: list[float | None] = []
    total = 0.0
    for one, two, (weight, begins) in zip(_trace_dimension(looks, policy, place),
                                          _trace_dimension(looks, other, place), weights, strict=True):
        apart = None if one is None or two is None else one - two
        total = (0.0 if begins else total) + weight * (apart or 0.0)
        sums.append(None if apart is None else total)
    return sums


def _list_answers(looks: Sequence[Look], label: str) -> list[Mapping[str, Any]]:
    return [look["answers"][label] for look in looks if look["answers"].get(label)]


def _collect(looks: Sequence[Look], label: str, read: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    return [read(answer) if (answer := look["answers"].get(label)) else None for look in looks]


def _count_of(rule: TokenRule) -> Callable[[Mapping[str, Any]], int]:
    return lambda answer: int(answer["rules"].get(rule.name.lower(), 0))
