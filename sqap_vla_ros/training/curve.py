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

"""A training log as one picture: losses by pictures seen, and success on validation scenes after each stage."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sqap_vla_ros.simulation.suite import SUITES
from sqap_vla_ros.training.settings import Stage

_LOSSES = ("motion", "gripper", "pointer", "place", "gripper_place", "relation", "turn", "turn_seen")


def draw_curve(log: Path, stages: Sequence[Stage], path: Path) -> None:
    """Draw a PNG.

    :param log: ``log.jsonl`` of a run
    :param stages: those of its recipe
    """
    records = [record for record in map(_read, log.read_text().splitlines()) if record]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_losses(left, records, stages)
    validations = {record["stage"]: record for record in records if record["event"] == "validation"}
    _draw_success(right, list(validations.values()))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    right.legend(loc="upper left", frameon=False, ncols=len(SUITES))
    figure.savefig(path, dpi=110)


def _read(line: str) -> dict[str, Any]:
    # A line that a kill or a full disk has cut.
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def _draw_losses(axes: Axes, records: Sequence[dict[str, Any]], stages: Sequence[Stage]) -> None:
    lines: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in _LOSSES}
    start = 0.0
    for stage in stages:
        # A killed run logs some steps twice.
        mine = {record["step"]: record for record in records
                if record["event"] == "losses" and record["stage"] == stage.name}
        for step in sorted(mine):
            for name, (pictures, values) in lines.items():
                pictures.append((start + step * stage.batch_size) / 1e3)
                values.append(mine[step].get(name, math.nan))
        start += stage.samples
        axes.axvline(start / 1e3, color="0.8", linewidth=1, zorder=0)
    for name, (pictures, values) in lines.items():
        axes.plot(pictures, values, label=name.replace("_", " "))
    axes.set(yscale="log", xlabel="pictures seen, thousands", ylabel="loss (running mean)")


def _draw_success(axes: Axes, validations: Sequence[dict[str, Any]]) -> None:
    width = 0.8 / len(SUITES)
    for index, suite in enumerate(SUITES):
        places = [number + (index - (len(SUITES) - 1) / 2) * width for number in range(len(validations))]
        bars = axes.bar(places, [record[suite]["success"] for record in validations], width * 0.95, label=suite)
        axes.bar_label(bars, [f"{record[suite]['successes']}/{record[suite]['episodes']}" for record in validations])
    axes.set_xticks(range(len(validations)), [record["stage"] for record in validations])
    axes.set(ylim=(0, 1.15), ylabel="closed-loop success, validation scenes")
