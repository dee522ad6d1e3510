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

"""Stage times as bars, one color per engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLORS = ("#5b7fa6", "#6aa56f", "#e08a3c", "#a06ab4", "#c0504d", "#4bacc6")


def draw_bench(engines: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw a PNG: medians, whiskers from the 10th to the 90th percentile.

    :param engines: by name, as :func:`~sqap_vla_ros.evaluation.bench.summarize_rounds` gives them
    :param title: what was measured
    """
    figure = Figure(figsize=(8.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(engines)
    stages = list(next(iter(engines.values()))["stages_ms"])
    for index, (name, row) in enumerate(engines.items()):
        places = [place + (index - (len(engines) - 1) / 2) * width for place in range(len(stages))]
        middle = [row["stages_ms"][stage] for stage in stages]
        below = [max(value - row["spread_ms"][stage][0], 0.0) for value, stage in zip(middle, stages, strict=True)]
        above = [max(row["spread_ms"][stage][1] - value, 0.0) for value, stage in zip(middle, stages, strict=True)]
        axes.bar(places, middle, width, yerr=[below, above], capsize=3, color=_COLORS[index % len(_COLORS)],
                 label=name)
        for place, value, reach in zip(places, middle, above, strict=True):
            axes.text(place, value + reach, f"{value:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(stages)), stages)
    axes.set(ylabel="ms (bar: median, whiskers: p10 to p90)", title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(len(engines), 4), frameon=False)
    figure.savefig(path, dpi=120)
