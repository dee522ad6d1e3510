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

"""The stage of the demo, for each verb that plays on it: the simulated robot and a policy as two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqap_vla_ros.cli.processes import NodeProcess, isolate_ros
from sqap_vla_ros.data import Episode
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.ros.operator import Operator
from sqap_vla_ros.simulation.suite import choose_trials

ROBOT, ROBOT_MODULE = "sim_robot", "sqap_vla_ros.simulation.robot_node"
POLICY, POLICY_MODULE = "policy_node", "sqap_vla_ros.ros.policy_node"
# What config/demo.yaml says too; a test holds them together.
ROBOT_PARAMETERS: dict[str, Any] = {"publish_clock": True, "real_time_factor": 0.0, "wait_for_command_s": 2.0}
POLICY_PARAMETERS: dict[str, Any] = {"use_sim_time": True, "control.gripper_open_m": 0.09, "control.dry_run": False,
                                     "control.enable_actuation": True}


def open_logs(logs: Path, argument: str) -> None:
    """Make the folder of the nodes' logs, and put ROS on a domain of its own with its logs in it.

    :param argument: what was asked for, in words
    :raises ConfigError: when it cannot be written
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{argument} cannot be written: {error.strerror}; take another folder") from error
    isolate_ros(logs)


def choose_episodes(count: int, first_seed: int) -> list[Episode]:
    """Scenes from a seed on, their tasks in turn: reach, pick, place."""
    return [Episode(trial.seed, trial.task.kind, trial.task.color, trial.task.instruction)
            for trial in choose_trials("base", count, first_seed)]


class Stage:
    """A robot that plays, and the operator who watches it; see :func:`open_stage`.

    :param robot: process of the robot
    :param operator: who gives the instructions
    :param logs: folder of parameters and logs
    """

    def __init__(self, robot: NodeProcess, operator: Operator, logs: Path) -> None:
        self._robot, self._operator, self._logs = robot, operator, logs
        self._policy: NodeProcess | None = None

    def check(self) -> None:
        """Raise when a process has ended.

        :raises SqapError: with the end of its log
        """
        for process in (self._robot, self._policy):
            if process is not None:
                process.check()

    @contextmanager
    def open_player(self, method: Method, checkpoint: str, *checks: Callable[[], None]) -> Iterator[Operator]:
        """Start a policy, and end it with the context.

        :param checks: called while waiting, besides those of the two processes
        :raises SqapError: when it does not start
        """
        knobs = {"model.checkpoint": checkpoint, **method.knobs, **POLICY_PARAMETERS}
        self._policy = policy = NodeProcess(POLICY, POLICY_MODULE, knobs, self._logs, method.name)
        try:
            with self._operator.watching(self.check, *checks):
                _start_policy(self._operator, policy, method)
                yield self._operator
        finally:
            self._policy = None
            policy.stop()


@contextmanager
def open_stage(logs: Path, *, speed: float, watch: bool) -> Iterator[Stage]:
    """Start the robot, and end it with the context.

    :param speed: simulated seconds per second at most; 0 is as fast as the policy answers
    :param watch: whether overlays are wanted
    :raises SqapError: when it does not start
    """
    robot = NodeProcess(ROBOT, ROBOT_MODULE, ROBOT_PARAMETERS | {"real_time_factor": speed}, logs)
    try:
        operator = Operator(ROBOT, POLICY, robot.check, watch=watch)
        try:
            operator.start_robot()
            yield Stage(robot, operator, logs)
        finally:
            operator.close()
    finally:
        robot.stop()


def _start_policy(operator: Operator, policy: NodeProcess, method: Method) -> None:
    try:
        operator.start_policy()
    except SqapError as error:
        # A dead process has told its log already.
        policy.check()
        raise SqapError(f"{error}. {policy.tell_log()}") from error
    running = operator.description.get("recipe")
    if running != method.recipe:
        raise SqapError(f"{POLICY} runs recipe '{running}' instead of '{method.recipe}'")
