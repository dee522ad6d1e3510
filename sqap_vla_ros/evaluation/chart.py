"""Results in one picture: success per task with its interval, and for the demo where the time goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sqap_vla_ros.evaluation.statistics import TOTAL, wilson_interval

_COLORS = ("#5b7fa6", "#e08a3c", "#6aa56f", "#a06ab4", "#c0504d", "#4bacc6", "#8c7853", "#7f7f7f")
_ALL = "all"


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
    """Draw a PNG of success alone.

    :param rows: by label, with ``method``, ``successes``, ``episodes`` and the same two of each of ``tasks``
    :param title: what was played
    """
    groups = _list_groups(rows)
    width = 1.2 + 0.55 * (len(groups) + 1) * max(len(rows), 2)
    figure = Figure(figsize=(max(6.0, width), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, offset, style in _place_bars(rows):
        _draw_success(axes, row, groups, offset, style)
    axes.set(title=title)
    _finish(figure, axes, None, path)


def _list_groups(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows.values() for name in row["tasks"]))


def _place_bars(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float, dict[str, Any]]]:
    # Each method's row, how far its bars stand from the middle of their group, and how they look.
    width = 0.8 / max(len(rows), 1)
    for index, row in enumerate(rows.values()):
        yield row, (index - (len(rows) - 1) / 2) * width, {
            "color": _COLORS[index % len(_COLORS)], "width": width, "label": row["method"]}


def _finish(figure: Figure, first: Axes, second: Axes | None, path: Path) -> None:
    first.set(ylim=(0, 1.05), ylabel="success (whiskers: 95 % interval)")
    for axes in (first, second):
        if axes is not None:
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    handles = first.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(max(len(handles[1]), 1), 4), frameon=False)
    figure.savefig(path, dpi=120)


def _draw_success(axes: Axes, row: Mapping[str, Any], groups: Sequence[str], offset: float,
                  style: dict[str, Any]) -> None:
    counts = {**row["tasks"], _ALL: {"successes": row["successes"], "episodes": row["episodes"]}}
    # A method that was interrupted may lack groups that another has.
    entries = {place: counts[name] for place, name in enumerate((*groups, _ALL)) if name in counts}
    shares = [entry["successes"] / max(entry["episodes"], 1) for entry in entries.values()]
    bounds = [wilson_interval(entry["successes"], entry["episodes"]) for entry in entries.values()]
    whiskers = [[share - low for share, (low, _) in zip(shares, bounds, strict=True)],
                [high - share for share, (_, high) in zip(shares, bounds, strict=True)]]
    places = [place + offset for place in entries]
    axes.bar(places, shares, yerr=whiskers, capsize=3, **style)
    for place, entry in zip(places, entries.values(), strict=True):
        axes.text(place, 0.02, f"{entry['successes']}/{entry['episodes']}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(groups) + 1), [*groups, _ALL])


def _draw_latency(axes: Axes, stages: Mapping[str, Mapping[str, float]], offset: float, style: dict[str, Any]) -> None:
    names = [*(name for name in stages if name != TOTAL), *(name for name in stages if name == TOTAL)]
    middle = [stages[name]["p50"] for name in names]
    above = [max(stages[name]["p95"] - stages[name]["p50"], 0.0) for name in names]
    axes.bar([place + offset for place in range(len(names))], middle, yerr=[[0.0] * len(names), above], capsize=3,
             **style)
    axes.set_xticks(range(len(names)), names)
