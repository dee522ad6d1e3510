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

"""Results in pictures: success with its interval per task, per method or by kept tokens; where the demo's time goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sqap_vla_ros.evaluation.methods import FLOAT, parse_method
from sqap_vla_ros.evaluation.statistics import TOTAL, wilson_interval

_COLORS = ("#5b7fa6", "#e08a3c", "#6aa56f", "#a06ab4", "#c0504d", "#4bacc6", "#8c7853", "#7f7f7f")
_ALL = "all"
_MARKERS = "osD^vP"
_UNPRUNED = "none"
# With more methods, bars of each group would be too thin to read.
_MOST_WITH_GROUPS = 6


def draw_chart(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the demo's PNG: success and latency.

    :param rows: by label, as :func:`~sqap_vla_ros.evaluation.summary.summarize_run` gives them
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    groups = _list_groups(rows)
    for row, offset, style in _place_bars(rows):
        _draw_success(left, row, groups, offset, style)
        _draw_latency(right, row["latency_ms"], offset, style)
    left.set(title="Closed loop on the same scenes")
    right.set(ylabel="ms (bar p50, whisker p95)", title="Time of one inference")
    _finish(figure, left, right, path)


def draw_success(rows: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw a PNG of success alone: a bar for each group and method; of many methods, one bar each.

    :param rows: by label, with ``method``, ``successes``, ``episodes`` and the same two of each of ``tasks``
    :param title: what was played
    """
    if len(rows) > _MOST_WITH_GROUPS:
        _draw_many(list(rows.values()), path, title)
        return
    groups = _list_groups(rows)
    width = 1.2 + 0.55 * (len(groups) + 1) * max(len(rows), 2)
    figure = Figure(figsize=(max(6.0, width), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, offset, style in _place_bars(rows):
        _draw_success(axes, row, groups, offset, style)
    axes.set(title=title)
    _finish(figure, axes, None, path)


def draw_kept_tokens(rows: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> bool:
    """Draw a PNG of success against the share of visual tokens kept: a line for each recipe and rule that prunes.

    Without pruning, a recipe is the point at 100 % of each of its lines; float is a dashed line across.

    :param rows: as for :func:`draw_success`
    :param title: what was played
    :return: whether there was a method that prunes; nothing is drawn otherwise
    """
    methods = [(parse_method(row["method"]), row) for row in rows.values()]
    whole = {method.recipe: row for method, row in methods if method.rule == _UNPRUNED}
    lines: dict[tuple[str, str], list[tuple[float, Mapping[str, Any]]]] = {}
    for method, row in methods:
        if method.rule != _UNPRUNED:
            lines.setdefault((method.recipe, method.rule), []).append((1.0 - method.pruned_ratio, row))
    if not lines:
        return False
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes, lowest = figure.subplots(), 1.0
    if FLOAT in whole:
        lowest = _measure([whole[FLOAT]])[0][0]
        axes.axhline(lowest, color="black", linestyle="--", linewidth=1,
                     label=f"{FLOAT}, every token")
    for index, ((recipe, rule), points) in enumerate(lines.items()):
        if recipe in whole:
            points = [*points, (1.0, whole[recipe])]
        points = sorted(points, key=lambda point: point[0])
        shares, below, above = _measure(row for _, row in points)
        # Beside each other, so that whiskers at the same share can be told apart.
        places = [100.0 * kept + 0.8 * (index - (len(lines) - 1) / 2) for kept, _ in points]
        axes.errorbar(places, shares, yerr=[below, above], capsize=3, marker=_MARKERS[index % len(_MARKERS)],
                      color=_COLORS[index % len(_COLORS)], label=f"{recipe}+{rule}")
        lowest = min(lowest, *(share - reach for share, reach in zip(shares, below, strict=True)))
    axes.set(ylim=(max(0.0, lowest - 0.05), 1.02), xlabel="visual tokens kept, %", title=title)
    axes.grid(axis="x", alpha=0.3)
    _finish(figure, axes, None, path)
    return True


def _draw_many(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    # From above as given, coloured by token rule; the first is what the others are compared with.
    figure = Figure(figsize=(8.5, 1.6 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rules = [parse_method(row["method"]).rule for row in rows]
    for color, rule in zip(cycle(_COLORS), dict.fromkeys(rules), strict=False):
        places = [place for place, other in enumerate(rules) if other == rule]
        shares, below, above = _measure(rows[place] for place in places)
        axes.barh(places, shares, xerr=[below, above], capsize=3, color=color, height=0.75,
                  label="every token" if rule == _UNPRUNED else rule)
        for place, share in zip(places, shares, strict=True):
            axes.text(0.01, place, f"{rows[place]['successes']}/{rows[place]['episodes']}   {share:.1%}", va="center",
                      fontsize=8)
    axes.axvline(_measure(rows[:1])[0][0], color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="success (whiskers: 95 % interval)", title=title)
    _clean(axes, "x")
    _save(figure, axes, path)


def _measure(rows: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    # Success, and how far its interval reaches below and above.
    counts = [(row["successes"], row["episodes"]) for row in rows]
    shares = [successes / max(episodes, 1) for successes, episodes in counts]
    bounds = [wilson_interval(*count) for count in counts]
    return (shares, [share - low for share, (low, _) in zip(shares, bounds, strict=True)],
            [high - share for share, (_, high) in zip(shares, bounds, strict=True)])


def _list_groups(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row["tasks"]))


def _place_bars(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float, dict[str, Any]]]:
    # Each method's row, how far its bars stand from the middle of their group, and how they look.
    width = 0.8 / max(len(rows), 1)
    for index, row in enumerate(rows.values()):
        yield row, (index - (len(rows) - 1) / 2) * width, {
            "color": _COLORS[index % len(_COLORS)], "width": width, "label": row["method"]}


def _finish(figure: Figure, first: Axes, second: Axes | None, path: Path) -> None:
    first.set(ylabel="success (whiskers: 95 % interval)")
    for axes in (first, second):
        if axes is not None:
            _clean(axes, "y")
    _save(figure, first, path)


def _clean(axes: Axes, values: Literal["x", "y"]) -> None:
    axes.grid(axis=values, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(max(len(handles[1]), 1), 4), frameon=False)
    figure.savefig(path, dpi=120)


def _draw_success(axes: Axes, row: Mapping[str, Any], groups: Sequence[str], offset: float,
                  style: dict[str, Any]) -> None:
    counts = {**row["tasks"], _ALL: {"successes": row["successes"], "episodes": row["episodes"]}}
    # A method that was interrupted may lack groups that another has.
    entries = {place: counts[name] for place, name in enumerate((*groups, _ALL)) if name in counts}
    shares, below, above = _measure(entries.values())
    places = [place + offset for place in entries]
    axes.bar(places, shares, yerr=[below, above], capsize=3, **style)
    axes.set_ylim(0, 1.05)
    for place, entry in zip(places, entries.values(), strict=True):
        axes.text(place, 0.02, f"{entry['successes']}/{entry['episodes']}", ha="center", va="bottom", fontsize=8,
                  rotation="horizontal" if entry["episodes"] < 100 else "vertical")
    axes.set_xticks(range(len(groups) + 1), [*groups, _ALL])


def _draw_latency(axes: Axes, stages: Mapping[str, Mapping[str, float]], offset: float, style: dict[str, Any]) -> None:
    names = [*(name for name in stages if name != TOTAL), *(name for name in stages if name == TOTAL)]
    middle = [stages[name]["p50"] for name in names]
    above = [max(stages[name]["p95"] - stages[name]["p50"], 0.0) for name in names]
    axes.bar([place + offset for place in range(len(names))], middle, yerr=[[0.0] * len(names), above], capsize=3,
             **style)
    axes.set_xticks(range(len(names)), names)
