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

"""What a seed puts on the table, without any physics: the same layout and seed give the same scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.layout import COLORS, Layout
from sqap_vla_ros.simulation.tasks import Task

_PLACING_ATTEMPTS = 2_000
_TRIES_PER_BLOCK = 20


@dataclass(frozen=True)
class BlockPlace:
    """One block at the start.

    :param name: its colour; the second block of a colour has '_2' behind it
    :param color: its colour
    :param position: x, y, m
    :param yaw: rad
    """

    name: str
    color: str
    position: tuple[float, float]
    yaw: float


@dataclass(frozen=True)
class Scene:
    """Everything that the seed decides; angles in rad, lengths in m, in the frame of the robot's base.

    :param seed: the seed
    :param blocks: in no order
    :param rightward: x, y of the direction that points right in the picture
    :param tray: x, y of the tray
    :param start: (3,) where the gripper starts
    :param camera_shift: (3,) by which the camera stands off its place
    :param camera_turn: (3,) rotation vector by which it is turned
    :param light_scale: brightness, 1 is the layout's
    :param light_direction: (3,) unit vector of the overhead light
    """

    seed: int
    blocks: tuple[BlockPlace, ...]
    rightward: tuple[float, float]
    tray: tuple[float, float]
    start: tuple[float, ...]
    camera_shift: tuple[float, ...]
    camera_turn: tuple[float, ...]
    light_scale: float
    light_direction: tuple[float, ...]

    @property
    def colors(self) -> tuple[str, ...]:
        """The colours on the table, each once."""
        return tuple(dict.fromkeys(block.color for block in self.blocks))

    @property
    def singles(self) -> tuple[str, ...]:
        """Colours that only one block has."""
        named = [block.color for block in self.blocks]
        return tuple(color for color in self.colors if named.count(color) == 1)

    @property
    def twins(self) -> tuple[str, ...]:
        """Colours that two blocks have."""
        return tuple(color for color in self.colors if color not in self.singles)

    def check(self, task: Task) -> None:
        """Refuse a task that this scene does not allow.

        :raises ConfigError: when a block is not there, or which one is meant is not clear
        """
        for color in task.colors:
            if color not in self.colors:
                raise ConfigError(f"scene {self.seed} has no {color} block; it has {', '.join(self.colors)}")
        if (task.side != "") != (task.color in self.twins) or task.other in self.twins:
            raise ConfigError(f"'{task.instruction}' is not clear in scene {self.seed}: two blocks are "
                              f"{' or '.join(self.twins) or 'alike in no case'}; give a side to the first block named "
                              "if, and only if, its color is there twice, and an only one as the second")

    def target(self, task: Task) -> str:
        """Name of the block that ``task`` is about, by where the blocks stood at the start."""
        meant = [block for block in self.blocks if block.color == task.color]
        meant.sort(key=lambda block: float(np.dot(block.position, self.rightward)))
        return meant[-1 if task.side == "right" else 0].name


def draw_scene(layout: Layout, seed: int) -> Scene:
    """The scene of a seed.

    :raises ConfigError: when the blocks do not fit
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(layout.block_counts[0], layout.block_counts[1] + 1))
    colors = [str(color) for color in rng.permutation(list(COLORS))]
    singles = colors[:count - layout.twin_blocks]
    named = [*singles, *singles[:layout.twin_blocks]]
    names = [*singles, *(f"{color}_2" for color in singles[:layout.twin_blocks])]
    places = _draw_places(rng, layout, named)
    yaws = rng.uniform(-1, 1, count) * layout.block_yaw_rad
    tray = np.array(layout.tray_center) + rng.uniform(-1, 1, 2) * layout.tray_jitter_m
    area = np.array(layout.start_area).reshape(3, 2)
    start = rng.uniform(area[:, 0], area[:, 1])
    shift = _draw_direction(rng) * rng.uniform(*layout.camera_shift_m)
    turn = _draw_direction(rng) * np.radians(rng.uniform(*layout.camera_turn_deg))
    scale = float(rng.uniform(*layout.light_scale))
    tilt, heading = np.radians(rng.uniform(*layout.light_tilt_deg)), rng.uniform(0, 2 * np.pi)
    light = (np.sin(tilt) * np.cos(heading), np.sin(tilt) * np.sin(heading), -np.cos(tilt))
    blocks = tuple(BlockPlace(name, color, (float(x), float(y)), float(yaw))
                   for name, color, (x, y), yaw in zip(names, named, places, yaws, strict=True))
    return Scene(seed, blocks, layout.rightward, (float(tray[0]), float(tray[1])), _floats(start), _floats(shift),
                 _floats(turn), scale, _floats(light))


def _draw_places(rng: np.random.Generator, layout: Layout, colors: list[str]) -> np.ndarray:
    # One block after the other; where the next finds no room, all over again.
    x0, x1, y0, y1 = layout.block_area
    for _ in range(_PLACING_ATTEMPTS):
        places: list[np.ndarray] = []
        for color in colors:
            for place in rng.uniform((x0, y0), (x1, y1), (_TRIES_PER_BLOCK, 2)):
                if all(_apart(place, there, color == its, layout) for there, its in zip(places, colors, strict=False)):
                    places.append(place)
                    break
            else:
                break
        if len(places) == len(colors):
            return np.array(places)
    raise ConfigError(f"{len(colors)} blocks do not fit {layout.block_gap_m} m apart into the area x {x0} to {x1}, "
                      f"y {y0} to {y1}; take a smaller block_gap_m or twin_gap_m, or a larger block_area")


def _apart(one: np.ndarray, another: np.ndarray, alike: bool, layout: Layout) -> bool:
    gap = one - another
    return bool(np.linalg.norm(gap) >= layout.block_gap_m
                and (not alike or abs(np.dot(gap, layout.rightward)) >= layout.twin_gap_m))


def _draw_direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.normal(size=3)
    return np.asarray(vector / np.linalg.norm(vector))


def _floats(values: np.ndarray | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
