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

"""Every parameter of the simulated robot, and which layouts can be built: each field has a range and the blocks fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.layout import COLORS, Layout
from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import KINDS

# Name to default and description; those without a dot are fixed once the node runs.
PARAMETERS: dict[str, tuple[bool | int | float | str, str]] = {
    "publish_clock": (False, "Publish simulated time on /clock; false stamps everything with the wall clock."),
    "real_time_factor": (1.0, "Simulated seconds per wall second at most; 0 runs as fast as commands arrive."),
    "wait_for_command_s": (0.0, "Longest the clock stands still for a command after a picture, s of wall time."),
    "scene.seed": (-1, "Scene that ~/new_scene lays out; -1 takes the next one."),
    "scene.task": ("", f"Task to judge: {', '.join(KINDS)}, or empty for none."),
    "scene.color": ("", "Block of the task; empty takes the first colour that the scene has once."),
    "scene.side": ("", "Which of two blocks of that colour: left or right in the picture; empty for an only one."),
    "scene.other": ("", "Colour of the second block of stack and place-reach; empty otherwise."),
}
RANGES: dict[str, tuple[float, float]] = {
    "camera_target": (-2.0, 2.0), "camera_distance_m": (0.2, 5.0), "camera_pitch_deg": (1.0, 89.0),
    "camera_yaw_deg": (-180.0, 180.0), "camera_fovy_deg": (5.0, 120.0), "camera_width_px": (16, 1920),
    "camera_height_px": (16, 1080), "camera_shift_m": (0.0, 0.5), "camera_turn_deg": (0.0, 45.0),
    "light_scale": (0.0, 2.0), "light_tilt_deg": (0.0, 80.0), "light_intensity": (0.0, 1.0),
    "ambient_intensity": (0.0, 1.0),
    "block_size_m": (0.01, 0.08), "block_area": (-0.5, 0.8), "block_gap_m": (0.01, 0.5),
    "block_yaw_rad": (0.0, math.pi), "block_counts": (1, 2 * len(COLORS)), "twin_blocks": (0, len(COLORS)),
    "twin_gap_m": (0.0, 0.5), "tray_center": (-0.5, 0.8),
    "tray_jitter_m": (0.0, 0.2), "tray_half_size_m": (0.02, 0.3), "start_area": (-0.5, 0.8),
}
# Random places are drawn until all gaps are kept, which takes for ever on an area that is nearly full.
_FULLEST_RATIO = 0.45


def check_time(*, simulated: bool, wait_s: float, factor: float) -> None:
    """Refuse ways of bending time that cannot be.

    :raises ConfigError: when the parameters contradict each other
    """
    if wait_s < 0.0 or factor < 0.0:
        raise ConfigError(f"wait_for_command_s is {wait_s} and real_time_factor {factor}; both must be 0 or more")
    if not simulated and (wait_s > 0.0 or factor != 1.0):
        raise ConfigError("wait_for_command_s and real_time_factor bend time, which the wall clock does not; "
                          "set publish_clock to true as well, and use_sim_time in the other nodes")


def build_layout(values: Mapping[str, Any]) -> Layout:
    """A layout with some fields replaced.

    :param values: field name to value; lists become tuples
    :raises ConfigError: for an unknown field, a value of another kind or length, or one out of range
    """
    defaults = {entry.name: entry.default for entry in fields(Layout)}
    chosen = {}
    for name, value in values.items():
        if name not in defaults:
            raise ConfigError(f"unknown layout field '{name}'; known are {', '.join(defaults)}")
        chosen[name] = _checked(name, value, defaults[name])
    layout = Layout(**chosen)
    _check_areas(layout)
    return layout


def build_tabletop(layout: Layout) -> Tabletop:
    """The tabletop of a layout.

    :raises ConfigError: when the simulator refuses it
    """
    try:
        return Tabletop(layout)
    except ValueError as error:
        raise ConfigError(f"the simulator refuses this layout: {error}") from error


def _checked(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        items = tuple(value) if hasattr(value, "__iter__") and not isinstance(value, str) else ()
        if len(items) != len(default):
            raise ConfigError(f"layout.{name} takes {len(default)} numbers, got {value!r}")
        return tuple(_checked(name, item, first) for item, first in zip(items, default, strict=True))
    low, high = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"layout.{name} takes numbers from {low:g} to {high:g}, got {value!r}")
    return type(default)(value)


def _check_areas(layout: Layout) -> None:
    for name in ("block_area", "start_area"):
        bounds = getattr(layout, name)
        if any(low > high for low, high in zip(bounds[::2], bounds[1::2], strict=True)):
            raise ConfigError(f"layout.{name} is {bounds}; each 'from' must not exceed its 'to'")
    for name in ("camera_shift_m", "camera_turn_deg", "light_scale", "light_tilt_deg"):
        low, high = getattr(layout, name)
        if low > high:
            raise ConfigError(f"layout.{name} is {(low, high)}; 'from' must not exceed 'to'")
    fewest, most = layout.block_counts
    if fewest > most:
        raise ConfigError(f"layout.block_counts is {layout.block_counts}; the fewest must not exceed the most")
    if not most - len(COLORS) <= layout.twin_blocks <= fewest // 2:
        raise ConfigError(f"layout.twin_blocks is {layout.twin_blocks} among {fewest} to {most} blocks of "
                          f"{len(COLORS)} colors; every twin needs another block of its color, none comes thrice")
    x0, x1, y0, y1 = layout.block_area
    gap = layout.block_gap_m
    room = (x1 - x0 + gap) * (y1 - y0 + gap)
    filled = most * gap**2 * math.sqrt(3) / 2 / room
    if filled > _FULLEST_RATIO:
        raise ConfigError(f"{most} blocks {gap:g} m apart do not fit on layout.block_area {layout.block_area}; "
                          "take fewer blocks, a smaller gap or a larger area")
