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

"""Charts of success with its intervals, for the page of one evaluation and that of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqap_vla_ros.evaluation.methods import FLOAT, Method, parse_method
from sqap_vla_ros.evaluation.statistics import wilson_interval
from sqap_vla_ros.report.figures import NEUTRAL, Series, choose_tone, plot_bars, plot_curves
from sqap_vla_ros.report.page import Plot

_ALL = "all"
_UNPRUNED = "none"
# With more, bars of each group would be too thin to read.
_MOST_WITH_GROUPS = 6
_Row = Mapping[str, Any]


def plot_success(rows: Mapping[str, _Row]) -> Plot:
    """Success with its interval: a bar for each group and method; of many methods, one bar each.

    :param rows: by name, with ``successes``, ``episodes`` and the same two of each of ``tasks``
    """
    if len(rows) > _MOST_WITH_GROUPS:
        series = _measure("success", choose_tone(0), list(rows.values()))
        return plot_bars(list(rows), [series], "Success of each method, with its 95 % interval.", y_title="success",
                         share=True)
    groups = list(dict.fromkeys(group for row in rows.values() for group in row["tasks"]))
    # A method that was interrupted may lack groups that another has.
    series_of_all = [_measure(name, choose_tone(index), [*(row["tasks"].get(group) for group in groups), row])
                     for index, (name, row) in enumerate(rows.items())]
    return plot_bars([*groups, _ALL], series_of_all, "Success by group of tasks and over all, with its 95 % interval.",
                     y_title="success", share=True)


def plot_kept_tokens(rows: Sequence[tuple[str, str, _Row]]) -> Plot | None:
    """Success against the share of visual tokens kept: a line for each recipe and rule that prunes.

    Without pruning, a recipe is the point at 100 % of each of its lines; float is a dashed line across.

    :param rows: of each method its name, what is said behind it to tell runs apart, and its numbers
    :return: None where nothing prunes
    """
    methods = [(parse_method(name), suffix, row) for name, suffix, row in rows]
    whole = {(method.recipe, suffix): row for method, suffix, row in methods if method.rule == _UNPRUNED}
    lines: dict[tuple[str, str, str], list[tuple[float, _Row]]] = {}
    for method, suffix, row in methods:
        if method.rule != _UNPRUNED:
            lines.setdefault((method.recipe, method.rule, suffix), []).append((_keep(method), row))
    if not lines:
        return None
    places: dict[str, list[float]] = {}
    curves = []
    for index, ((recipe, rule, suffix), points) in enumerate(lines.items()):
        end = [(100.0, whole[recipe, suffix])] if (recipe, suffix) in whole else []
        points = sorted([*points, *end], key=lambda point: point[0])
        curve = _measure(f"{recipe}+{rule}{suffix}", choose_tone(index), [row for _, row in points])
        places[curve.name] = [kept for kept, _ in points]
        curves.append(curve)
    for (recipe, suffix), row in whole.items():
        if recipe == FLOAT:
            share = row["successes"] / row["episodes"]
            level = Series(f"{FLOAT}, every token{suffix}", [share, share], NEUTRAL, dash="dash")
            places[level.name] = [min(min(shares) for shares in places.values()), 100.0]
            curves.append(level)
    return plot_curves(places, curves, "Success over the share of visual tokens kept, with its 95 % interval.",
                       x_title="visual tokens kept (%)", y_title="success", share=True)


def _keep(method: Method) -> float:
    return round(100.0 * (1.0 - method.pruned_ratio), 3)


def _measure(name: str, tone: int, rows: Sequence[_Row | None]) -> Series:
    counts = [(row["successes"], row["episodes"]) if row and row["episodes"] else None for row in rows]
    return Series(name, [count and count[0] / count[1] for count in counts], tone,
                  intervals=[count and wilson_interval(*count) for count in counts])
