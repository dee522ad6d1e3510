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

"""What an evaluation plays: every method the same trials, with or without the instruction exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.methods import STORED, Method
from sqap_vla_ros.simulation.scene import Scene, draw_scene
from sqap_vla_ros.simulation.suite import Trial
from sqap_vla_ros.simulation.tasks import Task

BLINDS = ("gripper", "target", "random")
LANGUAGES = ("scene", "other")


@dataclass(frozen=True)
class Setup:
    """How every episode is played.

    :param checkpoint: folder of a checkpoint, or a name of one in the package
    :param execute_steps: steps of a chunk carried out before the next look
    :param blind: which tokens are blanked, one of ``BLINDS``, or '' for none
    :param compressed: folders of what recipes made of the checkpoint, by recipe; any other is carried out anew wherever
        its policy is built
    :param settings: other knobs, by dotted name
    """

    checkpoint: str
    execute_steps: int
    blind: str = ""
    compressed: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shared_knobs(self) -> dict[str, Any]:
        """The knobs of all methods, by dotted name."""
        return {**self.settings, "model.checkpoint": self.checkpoint, "control.execute_steps": self.execute_steps}

    def knobs(self, method: Method) -> dict[str, Any]:
        """The knobs of the method's policy, by dotted name; what the method says goes before ``settings``."""
        knobs: dict[str, Any] = {**self.shared_knobs, "model.threads": 1, **method.knobs}
        if method.recipe in self.compressed:
            knobs |= {"model.checkpoint": self.compressed[method.recipe], "model.recipe": STORED}
        return knobs


@dataclass(frozen=True)
class Job:
    """One episode to play.

    :param method: what plays
    :param trial: scene and task
    :param replaced: the task that the scene had before its instruction was exchanged; None when it was not
    """

    method: Method
    trial: Trial
    replaced: Task | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others: method and scene."""
        return self.method.name, self.trial.seed


def plan_jobs(methods: Sequence[Method], trials: Sequence[Trial], *, exchange: bool = False) -> list[Job]:
    """All episodes, one method after the other.

    :param exchange: name another block that is there
    :raises ConfigError: when a scene has no other block to name
    """
    if not exchange:
        return [Job(method, trial) for method in methods for trial in trials]
    exchanged = [replace(trial, task=exchange_task(trial.task, draw_scene(trial.layout, trial.seed)))
                 for trial in trials]
    return [Job(method, new, old.task) for method in methods for old, new in zip(trials, exchanged, strict=True)]


def exchange_task(task: Task, scene: Scene) -> Task:
    """The same kind of task on a block that ``task`` does not name; which one follows from the scene's seed.

    :raises ConfigError: when every block is named or has a twin
    """
    others = [color for color in scene.singles if color not in task.colors]
    if not others:
        raise ConfigError(f"scene {scene.seed} has no other block to name than those of '{task.instruction}'; its "
                          f"colors are {', '.join(scene.colors)}; take another suite for --language other")
    return replace(task, color=others[scene.seed % len(others)], side="")
