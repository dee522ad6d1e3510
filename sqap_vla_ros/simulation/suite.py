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

"""Which tasks to try in which scenes: the base suite, the hard one, and variations of camera and light."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.scene import Scene, draw_scene
from sqap_vla_ros.simulation.tasks import BASE_KINDS, COLORS, SIDES, Task

# Neither training nor the choice of a recipe or a checkpoint ever sees the scenes of 'test'.
SEED_RANGES = {"test": range(4_000_000, 4_100_000), "validation": range(2_000_000, 2_100_000)}
# How the layout of a difficulty differs from the base one.
DIFFICULTIES: dict[str, dict[str, Any]] = {
    # Not so near to the tray that a finger beside a low block would stand on its wall.
    "small": {"block_size_m": 0.03, "block_area": (0.37, 0.56, -0.16, -0.01)},
    "medium": {"block_size_m": 0.04},
    "crowded": {"block_size_m": 0.04, "block_gap_m": 0.075, "block_counts": (6, 6), "twin_blocks": 1},
    "pair": {"twin_blocks": 1, "block_counts": (3, 4)},
    "yaw": {"block_yaw_rad": math.radians(45)},
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "moved-camera": {"camera_shift_m": (0.03, 0.03), "camera_turn_deg": (3.0, 3.0)},
    "dim-light": {"light_scale": (0.65, 0.65), "light_tilt_deg": (10.0, 10.0)},
}
# What the scenes of a group of the hard suite show, all of it at once, where training shows one difficulty at a time.
HARD_GROUPS: dict[str, tuple[str, ...]] = {
    "small": ("small", "moved-camera", "dim-light"),
    "crowded": ("crowded", "moved-camera", "dim-light"),
    "pair": ("crowded", "yaw"),
    "yaw": ("small", "yaw", "moved-camera", "dim-light"),
    "stack": ("medium",),
    "two-step": ("crowded", "yaw"),
}
SUITES: dict[str, tuple[str, ...]] = {"base": BASE_KINDS, "hard": tuple(HARD_GROUPS)}


@dataclass(frozen=True)
class Trial:
    """One task in one scene.

    :param seed: of the scene
    :param group: what it is counted under: an entry of its suite
    :param task: what to do
    :param layout: what the scene is drawn from
    """

    seed: int
    group: str
    task: Task
    layout: Layout


def choose_trials(suite: str, count: int, first_seed: int, variations: Sequence[str] = (),
                  layout: Layout | None = None) -> tuple[Trial, ...]:
    """``count`` trials in scenes from ``first_seed`` on: the suite's groups in turn, colours as evenly as scenes allow.

    :param variations: names in ``VARIATIONS``, all at once
    :param layout: what groups and variations change
    :return: the same arguments give the same trials
    :raises ConfigError: for a suite or variation that does not exist
    """
    if suite not in SUITES:
        raise ConfigError(f"suite '{suite}' does not exist; allowed are {', '.join(SUITES)}")
    for name in variations:
        if name not in VARIATIONS:
            raise ConfigError(f"scene variation '{name}' does not exist; allowed are {', '.join(VARIATIONS)}")
    layout = layout or Layout()
    used: dict[str, Counter[str]] = {group: Counter() for group in SUITES[suite]}
    trials = []
    for index in range(count):
        group = SUITES[suite][index % len(SUITES[suite])]
        changed = layout
        for name in (*HARD_GROUPS.get(group, ()), *variations):
            changed = replace(changed, **{**DIFFICULTIES, **VARIATIONS}[name])
        scene = draw_scene(changed, first_seed + index)
        task = _choose_task(group, index // len(SUITES[suite]), scene, used[group])
        trials.append(Trial(first_seed + index, group, task, changed))
    return tuple(trials)


def _choose_task(group: str, round_number: int, scene: Scene, used: Counter[str]) -> Task:
    allowed = scene.twins if group == "pair" else scene.singles
    color = min(allowed, key=lambda name: (used[name], COLORS.index(name)))
    used[color] += 1
    rng = np.random.default_rng((scene.seed, 1))
    other = str(rng.choice([name for name in scene.singles if name != color]))
    if group == "stack":
        return Task("stack", color, other=other)
    if group == "two-step":
        return Task("place-reach", color, other=other) if round_number % 2 else Task("pick-place", color)
    kind = group if group in BASE_KINDS else BASE_KINDS[round_number % len(BASE_KINDS)]
    return Task(kind, color, side=SIDES[int(rng.integers(2))] if group == "pair" else "")
