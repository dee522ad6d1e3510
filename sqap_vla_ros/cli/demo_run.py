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

"""The demo itself: the simulated robot and the policy as two processes on real ROS 2, and the operator in this one."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.processes import NodeProcess, isolate_ros
from sqap_vla_ros.cli.progress import DemoProgress, build_table
from sqap_vla_ros.data import Episode
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.evaluation.demo import MethodRun, run_demo
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.evaluation.report import write_report
from sqap_vla_ros.evaluation.summary import label_runs
from sqap_vla_ros.ros.operator import Operator
from sqap_vla_ros.simulation.suite import choose_trials

ROBOT, ROBOT_MODULE = "sim_robot", "sqap_vla_ros.simulation.robot_node"
POLICY, POLICY_MODULE = "policy_node", "sqap_vla_ros.ros.policy_node"
# What config/demo.yaml says too; a test holds them together.
ROBOT_PARAMETERS: dict[str, Any] = {"publish_clock": True, "real_time_factor": 0.0, "wait_for_command_s": 2.0}
POLICY_PARAMETERS: dict[str, Any] = {"use_sim_time": True, "control.gripper_open_m": 0.09, "control.dry_run": False,
                                     "control.enable_actuation": True}


def run_verb(args: argparse.Namespace) -> int:
    """Play, report, print one line of JSON."""
    console = Console(stderr=True)
    logs = args.out / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {args.out} cannot be written: {error.strerror}; take another folder") from error
    isolate_ros(logs)
    end_politely()  # with the nodes ended and the results written
    episodes = [Episode(trial.seed, trial.task.kind, trial.task.color, trial.task.instruction)
                for trial in choose_trials("base", args.episodes, args.seed)]
    runs: list[MethodRun] = []
    failure, interrupted, began = None, False, time.monotonic()
    with DemoProgress(console) as progress:
        progress.tell(f"{args.episodes} instructions for each of {', '.join(method.name for method in args.methods)}; "
                      f"results go to {args.out}")
        try:
            _play(args, runs, episodes, progress, logs)
        except SqapError as error:
            failure = str(error)
        except KeyboardInterrupt:
            interrupted = True
            progress.tell("ended by Ctrl-C; writing what was finished")
    settings = {"methods": [method.name for method in args.methods], "checkpoint": args.checkpoint,
                "first_seed": args.seed, "speed": args.speed, "video": not args.no_video,
                "wall_s": round(time.monotonic() - began, 1), "failure": failure, "interrupted": interrupted}
    summary = write_report(args.out, runs, episodes, settings, progress.tell)
    rows = {label: summary[label] for label in label_runs(runs)}
    if any(row["episodes"] for row in rows.values()):
        console.print(build_table(rows))
    if failure is not None:
        console.print(f"sqap demo: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
    print(json.dumps({"worked": summary["worked"], "success": summary["success"],
                      "weight_ratio": summary["weight_ratio"], "complete": summary["complete"],
                      "summary": str(args.out / "summary.json"),
                      **{label: {name: row[name] for name in ("success", "successes", "episodes", "kept_tokens")}
                         for label, row in rows.items()}}))
    if interrupted:
        return INTERRUPTED
    return 0 if summary["worked"] and failure is None else 1


def _play(args: argparse.Namespace, runs: list[MethodRun], episodes: list[Episode], progress: DemoProgress,
          logs: Path) -> None:
    robot = NodeProcess(ROBOT, ROBOT_MODULE, ROBOT_PARAMETERS | {"real_time_factor": args.speed}, logs)
    try:
        operator = Operator(ROBOT, POLICY, robot.check, watch=not args.no_video)
        try:
            operator.start_robot()

            @contextmanager
            def open_player(method: Method) -> Iterator[Operator]:
                knobs = {"model.checkpoint": args.checkpoint, **method.knobs, **POLICY_PARAMETERS}
                policy = NodeProcess(POLICY, POLICY_MODULE, knobs, logs, method.name)
                try:
                    with operator.watching(robot.check, policy.check):
                        _start_policy(operator, policy, method)
                        yield operator
                finally:
                    policy.stop()

            run_demo(runs, args.methods, episodes, open_player, progress, record=not args.no_video)
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
