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

"""The simulated robot's rules, with no ROS: its clock, which commands it obeys, and how an episode ends.

Commands are treated as MoveIt Servo treats them: a velocity in a named frame that is refused without a frame, with
a stale stamp or with a value that is not finite, and that stops the arm when nothing fresh follows it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.mjcf import FINGER_TRAVEL_M
from sqap_vla_ros.simulation.parameters import build_tabletop
from sqap_vla_ros.simulation.scene import Scene, draw_scene
from sqap_vla_ros.simulation.tabletop import CONTROL_PERIOD_S, TICK_S, Tabletop
from sqap_vla_ros.simulation.tasks import Task

COMMAND_TIMEOUT_NS = 100_000_000
SCENE_JUMP_NS = 1_000_000_000
FULL_OPENING_M = 2 * FINGER_TRAVEL_M
TICK_NS = round(TICK_S * 1e9)
TICKS_PER_STEP = round(CONTROL_PERIOD_S / TICK_S)
BASE_FRAMES = ("panda_link0", "world")
TOOL_FRAMES = ("tool0", "panda_hand")
COUNTERS = ("commands", "gripper_goals", "waits_timed_out", "refused_frame", "refused_stale", "refused_future",
            "refused_non_finite", "refused_gripper")
_REACHED_M = 0.003
_STILL_M_S = 0.002


def look_ahead(layout: Layout, seed: int) -> Scene:
    """What a seed would put on the table.

    :raises ConfigError: for a negative seed, or blocks that do not fit
    """
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative; scenes have seeds from 0")
    return draw_scene(layout, seed)


def build_task(scene: Scene, kind: str, color: str, side: str, other: str) -> Task | None:
    """A task from its words, '' for what is not said.

    :param kind: '' for no task
    :param color: '' takes the first color that ``scene`` has once
    :raises ConfigError: when there is no such task
    """
    return Task(kind, color or scene.singles[0], side, other) if kind else None


class Session:
    """One robot between two scenes, and its counters.

    :param layout: what the table looks like
    :param now_ns: where the clock starts; it never runs back
    :param jump_ns: how far it jumps ahead for a new scene; 0 for a clock that others keep
    :raises ConfigError: when the layout cannot be built
    """

    def __init__(self, layout: Layout, now_ns: int, jump_ns: int = SCENE_JUMP_NS) -> None:
        self.now_ns, self._jump_ns = now_ns, jump_ns
        self.counts: Counter[str] = Counter()
        self.task: Task | None = None
        self.scene_number, self.steps, self.success = 0, 0, False
        self.scene_start_ns = now_ns
        self._tabletop = build_tabletop(layout)
        self.scene = self._tabletop.scene
        self._clear_command()

    @property
    def tabletop(self) -> Tabletop:
        """The world behind the rules."""
        return self._tabletop

    @property
    def finished(self) -> bool:
        """Whether the task at hand is done or out of steps."""
        return self.task is not None and (self.success or self.steps >= self.task.max_steps)

    def start_scene(self, seed: int, task: Task | None = None, layout: Layout | None = None) -> Scene:
        """Lay out a scene, put the arm at its start and let the clock jump ahead, so that old commands are stale.

        :param task: what to judge, or None
        :param layout: another layout from now on
        :raises ConfigError: for a seed, task or layout that does not exist; the old scene then stays
        """
        layout = layout or self._tabletop.layout
        scene = look_ahead(layout, seed)
        if task is not None:
            scene.check(task)
        if self._tabletop.layout != layout:
            following = build_tabletop(layout)
            self._tabletop.close()
            self._tabletop = following
        self.scene, self.task = self._tabletop.reset(seed), task
        self.scene_number, self.steps, self.success = self.scene_number + 1, 0, False
        self.now_ns += self._jump_ns
        self.scene_start_ns = self.now_ns
        self._clear_command()
        return self.scene

    def restart_scene(self) -> Scene:
        """The same scene and task from the start."""
        return self.start_scene(self.scene.seed, self.task)

    def command_twist(self, stamp_ns: int, frame: str, linear: np.ndarray, angular: np.ndarray) -> None:
        """Obey a velocity from now on.

        :param frame: one of ``BASE_FRAMES`` or ``TOOL_FRAMES``
        :param linear: (3,) m/s
        :param angular: (3,) rad/s
        :raises InputError: when the command is refused; it is counted, and the previous command stays in force
        """
        if not frame:
            self._refuse("refused_frame", "a velocity without frame_id was refused")
        if frame not in BASE_FRAMES + TOOL_FRAMES:
            self._refuse("refused_frame", f"a velocity in frame '{frame}' was refused; known frames are "
                                          f"{', '.join(BASE_FRAMES + TOOL_FRAMES)}")
        age_ns = self.now_ns - stamp_ns
        if age_ns >= COMMAND_TIMEOUT_NS:
            self._refuse("refused_stale", f"a velocity {age_ns / 1e9:.3f} s old was refused; the limit is "
                                          f"{COMMAND_TIMEOUT_NS / 1e9:g} s; does the sender follow /clock?")
        if age_ns <= -COMMAND_TIMEOUT_NS:
            self._refuse("refused_future", f"a velocity stamped {-age_ns / 1e9:.3f} s ahead was refused; does the "
                                           "sender follow the simulated clock (use_sim_time)?")
        if not (np.isfinite(linear).all() and np.isfinite(angular).all()):
            self._refuse("refused_non_finite", "a velocity with a value that is not finite was refused")
        self.counts["commands"] += 1
        self.command_stamp_ns = stamp_ns
        self._frame, self._linear, self._angular = frame, np.array(linear, float), np.array(angular, float)

    def command_gripper(self, opening_m: float) -> None:
        """Move the fingers to a distance from each other; more than they can open means all they can.

        :raises InputError: when the distance is negative or not finite
        """
        if not (np.isfinite(opening_m) and opening_m >= 0.0):
            self._refuse("refused_gripper", f"a gripper opening of {opening_m} m was refused; allowed is 0 to "
                                            f"{FULL_OPENING_M:g}")
        self.counts["gripper_goals"] += 1
        self._opening_m = min(opening_m, FULL_OPENING_M)
        self._gripper_since_ns = self.now_ns
        self._tabletop.set_gripper(self._opening_m / FULL_OPENING_M)

    def gripper(self) -> tuple[float, bool, bool]:
        """Distance between the fingers (m), whether it is the wanted one, whether they stopped short of it."""
        opening = self._tabletop.state().opening
        reached = abs(opening - self._opening_m) < _REACHED_M
        velocities = self._tabletop.joint_state()[2][-2:]
        settled = (self.now_ns - self._gripper_since_ns >= COMMAND_TIMEOUT_NS
                   and float(np.abs(velocities).max()) < _STILL_M_S)
        return opening, reached, settled and not reached

    def tick(self) -> None:
        """Let 20 ms pass under the command in force."""
        linear, angular = self._linear, self._angular
        if self.now_ns - self.command_stamp_ns >= COMMAND_TIMEOUT_NS:
            linear = angular = np.zeros(3)
        elif self._frame in TOOL_FRAMES:
            rotation = self._tabletop.tool_rotation()
            linear, angular = rotation @ linear, rotation @ angular
        self._tabletop.set_twist(linear, angular)
        self._tabletop.advance(TICK_S)
        self.now_ns += TICK_NS

    def end_step(self) -> None:
        """Judge the task after one control step; a finished episode stays as it ended."""
        if self.task is not None and not self.finished:
            self.steps += 1
            self.success = self._tabletop.succeeded(self.task)

    def outcome(self) -> dict[str, str]:
        """Scene, task, how it stands and what was refused, as ``~/outcome`` carries it."""
        task = self.task
        values: dict[str, str | int] = {
            "scene": self.scene_number, "start_ns": self.scene_start_ns, "seed": self.scene.seed,
            "colors": " ".join(self.scene.colors), "task": task.kind if task else "",
            "color": task.color if task else "", "side": task.side if task else "",
            "other": task.other if task else "", "instruction": task.instruction if task else "",
            "steps": self.steps, "success": str(self.success).lower(), "finished": str(self.finished).lower()}
        values |= {name: self.counts[name] for name in COUNTERS}
        return {name: str(value) for name, value in values.items()}

    def _clear_command(self) -> None:
        self.command_stamp_ns = self.now_ns - SCENE_JUMP_NS
        self._frame, self._linear, self._angular = BASE_FRAMES[0], np.zeros(3), np.zeros(3)
        self._opening_m, self._gripper_since_ns = FULL_OPENING_M, self.now_ns

    def _refuse(self, counter: str, sentence: str) -> None:
        self.counts[counter] += 1
        raise InputError(sentence)
