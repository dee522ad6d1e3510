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

"""Where everything stands, and whether a task is done: what the expert and the judge go by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.tasks import Task

REACH_HEIGHT_M = 0.075


@dataclass(frozen=True)
class State:
    """The world at one moment.

    :param tcp: (3,) tool centre point, m
    :param tcp_speed: m/s
    :param yaw: rotation of the gripper about the vertical, rad
    :param opening: distance between the fingers, m
    :param blocks: (3,) centre of every block in the scene, by name, m
    :param yaws: rotation of every block about the vertical, by name, rad
    :param tray: (3,) middle of the tray's floor, m
    """

    tcp: np.ndarray
    tcp_speed: float
    yaw: float
    opening: float
    blocks: dict[str, np.ndarray]
    yaws: dict[str, float]
    tray: np.ndarray


def goal_reached(state: State, task: Task, target: str, layout: Layout) -> bool:
    """Whether ``task`` is done in ``state``.

    reach: the tool hovers over the block, almost still; pick: the block is in the air between the fingers;
    place: the block lies in the tray and the gripper has let go; stack: it lies on the other block, let go.
    Of two steps, the last counts: it cannot be done without the first.

    :param target: name of the block the task is about
    """
    if target not in state.blocks or any(color not in state.blocks for color in task.colors[1:]):
        return False
    block, size = state.blocks[target], layout.block_size_m
    if task.kind == "reach":
        return is_reached(state, target)
    held = np.linalg.norm(state.tcp - block) < 0.03 and state.opening < size + 0.012
    if task.kind == "pick":
        return bool(held and block[2] > size / 2 + 0.06)
    free = not held and np.linalg.norm(state.tcp - block) > 0.03
    if task.kind == "stack":
        return bool(free and is_stacked(block, state.blocks[task.other], layout))
    inside = np.abs(block[:2] - state.tray[:2]).max() < layout.tray_half_size_m - 0.01 and block[2] < size / 2 + 0.03
    if task.kind == "place-reach":
        return bool(inside and not held and is_reached(state, task.other))
    return bool(inside and free)


def is_reached(state: State, name: str) -> bool:
    """Whether the tool hovers over a block, almost still."""
    goal = state.blocks[name] + [0.0, 0.0, REACH_HEIGHT_M]
    return bool(np.linalg.norm(state.tcp - goal) < 0.025 and state.tcp_speed < 0.15)


def is_stacked(upper: np.ndarray, lower: np.ndarray, layout: Layout) -> bool:
    """Whether one block lies on another, by their centres."""
    aside = float(np.linalg.norm(upper[:2] - lower[:2]))
    return aside < 0.6 * layout.block_size_m and abs(upper[2] - lower[2] - layout.block_size_m) < 0.012
