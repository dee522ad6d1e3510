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

"""One closed-loop episode without ROS: look, think, carry out some steps, look again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import Task


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    :param success: whether the goal was reached
    :param steps: control steps until then, or all of them
    :param actions: (steps, 7) what was carried out: m, rad and gripper 0..1
    """

    success: bool
    steps: int
    actions: np.ndarray


def run_episode(tabletop: Tabletop, task: Task, infer: Callable[[np.ndarray, str], np.ndarray], *, execute_steps: int,
                observe: Callable[[np.ndarray], None] | None = None) -> Outcome:
    """Drive ``tabletop`` from its present state until the task is done or the steps run out.

    :param infer: (H, W, 3) uint8 picture and instruction to (T, 7) steps in m, rad and gripper 0..1
    :param execute_steps: steps of a chunk carried out before the next look
    :param observe: called with the picture before each step of the world; pictures between looks are rendered for it
    """
    chunk, due = np.zeros((0, 7)), 0
    actions: list[np.ndarray] = []
    success = False
    while not success and len(actions) < task.max_steps:
        looking = due >= min(execute_steps, len(chunk))
        if looking or observe is not None:
            picture = tabletop.render()
            if observe is not None:
                observe(picture)
        if looking:
            chunk, due = infer(picture, task.instruction), 0
        actions.append(chunk[due])
        tabletop.step(chunk[due])
        due += 1
        success = tabletop.succeeded(task)
    return Outcome(success, len(actions), np.array(actions))
