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

"""Plotly figures as plain values, of one look on every page.

A figure says which tone each trace has, not which colour: ``meta`` of a trace holds its ``tone`` and its ``name``, and
the page colours both by the reader's light or dark scheme. ``meta`` of the layout may hold ``cells``: small plots with
a title each, which the page sets side by side or one below the other as its width allows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sqap_vla_ros.report.page import Plot

# Numbers of the colours in report.css.
NEUTRAL, BLUE, ORANGE, GREEN, PURPLE, OCHRE, ROSE, CYAN = TONES = range(8)
MAX_POINTS = 2000
BINS = 40
# Beyond this many times the 95th percentile, a histogram has one last bin for all.
LONGEST_TAIL = 2.5
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}


@dataclass(frozen=True)
class Series:
    """What one trace of a plot shows; those of one name are switched on and off together.

    :param name: in the legend, plain text
    :param values: one for each time or category, or samples of a histogram; None where there is none
    :param tone: one of :data:`TONES`
    :param dash: of a line: 'solid', 'dot' or 'dash'
    :param intervals: lower and upper bound of each value; empty where they are not known
    """

    name: str
    values: Sequence[float | None]
    tone: int
    dash: str = "solid"
    intervals: Sequence[Sequence[float] | None] = ()


def choose_tone(index: int) -> int:
    """The tone of a page's policy or method, by its place in the list; neutral is left for what is compared with."""
    return BLUE + index % (len(TONES) - 1)


def plot_over_time(times_s: Sequence[float], cells: Mapping[str, Sequence[Series]], description: str, *,
                   stacked: bool = False, share: bool = False, cell_px: int = 96) -> Plot:
    """Lines over one axis of time, a cell for each quantity; zooming one zooms all.

    :param times_s: s, increasing
    :param cells: title with its unit to the lines of that cell
    :param description: what the plot shows, in a sentence
    :param stacked: lines are parts of a whole, areas one on another
    :param share: values are 0 to 1 and shown in per cent
    :param cell_px: height of a cell
    """
    stride = max(1, math.ceil(len(times_s) / MAX_POINTS))
    traces, layout = [], _arrange(cells, columns=1, cell_px=cell_px, shared=True)
    for place, lines in enumerate(cells.values()):
        for line in lines:
            trace = {**_begin_trace(line, "scatter", place), "mode": "lines", "x": list(times_s[::stride]),
                     "y": list(line.values[::stride]), "xaxis": "x",
                     "line": {"width": 1.6, "dash": line.dash}, "zorder": int(line.dash != "solid")}
            if stacked:
                trace |= {"stackgroup": f"cell{place}", "line": {"width": 0.8}}
            elif sum(value is not None for value in line.values) == 1:
                trace["mode"] = "markers"
            traces.append(trace)
        layout[_axis("yaxis", place)] |= {"fixedrange": True, "nticks": 5, "showspikes": False,
                                            "hoverformat": ".1%" if share else ".4~g",
                                            **({"tickformat": ".0%"} if share else {})}
    # One axis for all cells: what is zoomed in one is zoomed in all.
    layout |= {"xaxis": {"title": {"text": "time (s)"}, "hoverformat": ".2f"}, "hovermode": "x unified"}
    layout["meta"] |= {"time": True}
    if stride > 1:
        description = f"{description} Every {stride}{_ORDINALS.get(stride, 'th')} look is drawn."
    return Plot({"data": traces, "layout": layout}, description)


def plot_histograms(cells: Mapping[str, Sequence[Series]], description: str, *, unit: str, columns: int = 3,
                    cell_px: int = 150) -> Plot:
    """How often which value came, a cell for each quantity, series one over another.

    :param cells: title to the samples of each series
    :param description: what the plot shows, in a sentence
    :param unit: of the values
    :param columns: cells in a row, where the page is wide enough
    :param cell_px: height of a cell
    """
    traces, layout = [], _arrange(cells, columns=columns, cell_px=cell_px)
    for place, series in enumerate(cells.values()):
        samples = [_finite(one.values) for one in series]
        edges = _choose_edges(np.concatenate([np.zeros(0), *samples]))
        labels = [f"{low:.4g} to {high:.4g} {unit}" for low, high in pairwise(edges.tolist())]
        if any(len(values) and values.max() > edges[-1] for values in samples):
            labels[-1] = f"{edges[-2]:.4g} {unit} and more"
        for one, values in zip(series, samples, strict=True):
            counts = np.histogram(np.minimum(values, edges[-1]), edges)[0]
            traces.append({**_begin_trace(one, "bar", place), "xaxis": _axis("x", place), "opacity": 0.6,
                           "x": ((edges[:-1] + edges[1:]) / 2).tolist(), "width": float(edges[1] - edges[0]),
                           "y": (counts / max(len(values), 1)).tolist(), "hovertext": labels,
                           "hovertemplate": "%{hovertext}: %{y:.1%}<extra>%{fullData.name}</extra>"})
        layout[_axis("xaxis", place)] |= {"title": {"text": escape_text(unit), "standoff": 4}, "nticks": 6}
        layout[_axis("yaxis", place)] |= {"tickformat": ".0%", "nticks": 4, "rangemode": "tozero",
                                            "fixedrange": True}
    return Plot({"data": traces, "layout": layout | {"barmode": "overlay", "bargap": 0}}, description)


def plot_bars(categories: Sequence[str], groups: Sequence[Series], description: str, *, y_title: str,
              share: bool = False) -> Plot:
    """Bars with their intervals, side by side within each category.

    :param categories: below the bars, plain text
    :param groups: one value for each category, with intervals where they are known
    :param description: what the plot shows, in a sentence
    :param y_title: of the values, with their unit
    :param share: values are 0 to 1 and shown in per cent
    """
    traces = [{**_begin_trace(group, "bar", 0), "x": [escape_text(name) for name in categories],
               "y": list(group.values), "error_y": _bound_errors(group)} for group in groups]
    layout = _arrange({"": ()}, columns=1, cell_px=300)
    layout |= {"barmode": "group", "bargap": 0.3, "bargroupgap": 0.08,
               "xaxis": {"type": "category", "automargin": True, "fixedrange": True},
               "yaxis": _value_axis(y_title, share=share)}
    return Plot({"data": traces, "layout": layout}, description)


def plot_curves(x_values: Mapping[str, Sequence[float]], curves: Sequence[Series], description: str, *,
                x_title: str, y_title: str, share: bool = False) -> Plot:
    """Points with their intervals, joined by lines: success against kept tokens, for example.

    :param x_values: of each curve, by its name
    :param curves: one value for each of its ``x_values``
    :param description: what the plot shows, in a sentence
    :param x_title: of the axis, with its unit
    :param y_title: of the values, with their unit
    :param share: values are 0 to 1 and shown in per cent
    """
    traces = [{**_begin_trace(curve, "scatter", 0), "mode": "lines+markers", "x": list(x_values[curve.name]),
               "y": list(curve.values), "error_y": _bound_errors(curve),
               "line": {"width": 1.6, "dash": curve.dash}, "marker": {"size": 8}} for curve in curves]
    layout = _arrange({"": ()}, columns=1, cell_px=320)
    layout |= {"hovermode": "closest", "xaxis": {"title": {"text": escape_text(x_title)}, "automargin": True},
               "yaxis": _value_axis(y_title, share=share)}
    return Plot({"data": traces, "layout": layout}, description)


def escape_text(text: str) -> str:
    """Text that plotly shows as it is; it takes some tags for markup."""
    return html.escape(text, quote=False)


def _begin_trace(series: Series, kind: str, place: int) -> dict[str, Any]:
    name = escape_text(series.name)
    return {"type": kind, "name": name, "legendgroup": name, "yaxis": _axis("y", place),
            "meta": {"tone": series.tone, "name": series.name}}


def _arrange(cells: Mapping[str, Any], *, columns: int, cell_px: int, shared: bool = False) -> dict[str, Any]:
    axes: dict[str, Any] = {_axis(name, place): {} for name in ("xaxis", "yaxis") for place in range(len(cells))
                            if place == 0 or name == "yaxis" or not shared}
    return axes | {"meta": {"cells": [escape_text(title) for title in cells], "columns": columns,
                            "cell_px": cell_px}}


def _axis(name: str, place: int) -> str:
    return name if place == 0 else f"{name}{place + 1}"


def _value_axis(title: str, *, share: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": escape_text(title)}, "fixedrange": True, "automargin": True}
    return axis | ({"tickformat": ".0%", "range": [0, 1.02], "hoverformat": ".1%"} if share
                   else {"rangemode": "tozero", "hoverformat": ".4~g"})


def _bound_errors(series: Series) -> dict[str, Any]:
    if not any(series.intervals):
        return {"visible": False}
    pairs = [(0.0, 0.0) if value is None or not interval else (value - interval[0], interval[1] - value)
             for value, interval in zip(series.values, series.intervals, strict=True)]
    return {"type": "data", "symmetric": False, "thickness": 1.4, "width": 4,
            "array": [above for _, above in pairs], "arrayminus": [below for below, _ in pairs]}


def _finite(values: Sequence[float | None]) -> np.ndarray:
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    return known[np.isfinite(known)]


def _choose_edges(values: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.linspace(0.0, 1.0, BINS + 1)
    low, high = float(values.min()), float(values.max())
    high = min(high, LONGEST_TAIL * max(float(np.percentile(values, 95)), 0.0)) if low >= 0 else high
    return np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, low + 0.5, BINS + 1)
