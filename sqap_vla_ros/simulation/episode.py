"""One closed-loop episode without ROS: look, think, carry out some steps, look again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.simulation.tabletop import Tabletop
from sqap_vla_ros.simulation.tasks import MAX_STEPS, Task


@dataclass(frozen=True)
class Outcome:
    """How an episode ended.

    :param success: whether the goal was reached
    :param steps: control steps until then, or all of them
    """

    success: bool
    steps: int


def run_episode(tabletop: Tabletop, task: Task, infer: Callable[[np.ndarray, str], np.ndarray], *, execute_steps: int,
                observe: Callable[[np.ndarray], None] | None = None) -> Outcome:
    """Drive ``tabletop`` from its present state until the task is done or the steps run out.

    :param infer: (H, W, 3) uint8 picture and instruction to (T, 7) steps in m, rad and gripper 0..1
    :param execute_steps: steps of a chunk carried out before the next look
    :param observe: called with the picture before each step of the world; pictures between looks are rendered for it
    """
    chunk, due = np.zeros((0, 7)), 0
    for step in range(1, MAX_STEPS + 1):
        looking = due >= min(execute_steps, len(chunk))
        if looking or observe is not None:
            picture = tabletop.render()
            if observe is not None:
                observe(picture)
        if looking:
            chunk, due = infer(picture, task.instruction), 0
        tabletop.step(chunk[due])
        due += 1
        if tabletop.succeeded(task):
            return Outcome(True, step)
    return Outcome(False, MAX_STEPS)
