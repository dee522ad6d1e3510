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

"""The soak itself: the rig's robot and the node as two processes, and the operator in this one."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.processes import NodeProcess, isolate_ros
from sqap_vla_ros.cli.progress import TimedProgress
from sqap_vla_ros.cli.soak import CLOCKS
from sqap_vla_ros.cli.soak_report import Leg, build_soak_table, list_details, summarize
from sqap_vla_ros.config import build_config
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.ros.rig.faults import Fault, choose_faults
from sqap_vla_ros.ros.rig.soak import SoakOperator

ROBOT, ROBOT_MODULE = "rig_robot", "sqap_vla_ros.ros.rig.robot"
POLICY, POLICY_MODULE = "policy_node", "sqap_vla_ros.ros.rig.faulty_policy"
# What hangs shall be found out soon.
KNOBS: dict[str, Any] = {"control.dry_run": False, "control.enable_actuation": True, "safety.max_inference_s": 2.0}
# Shares of the time: the warm-up lasts the first at least, then until every fault has come once, at most the second.
_WARM_RATIO, _LONGEST_WARM_RATIO = 0.2, 0.5


def run_verb(args: argparse.Namespace) -> int:
    """Soak, report, print one line of JSON."""
    console = Console(stderr=True)
    logs = open_folder(args.out)
    knobs = {**args.method.knobs, "model.checkpoint": args.checkpoint, **KNOBS, **dict(args.set)}
    build_config(knobs)
    clocks = CLOCKS[args.clock]
    plans = [(simulated, choose_faults(args.faults, simulated=simulated)) for simulated in clocks]
    end_politely()  # with the nodes ended and the results written
    legs: list[Leg] = []
    interrupted = False
    with TimedProgress(console) as progress:
        progress.tell(f"{len(args.faults)} kinds of faults, seed {args.seed}; results go to {args.out}")
        try:
            for simulated, faults in plans:
                _soak(legs, faults, args, knobs, progress, logs, simulated=simulated)
        except KeyboardInterrupt:
            interrupted = True
            progress.tell("ended by Ctrl-C; writing what was finished")
    summary = summarize(legs)
    settings = {"minutes": args.minutes, "seed": args.seed, "clock": args.clock, "faults": args.faults,
                "knobs": knobs, "interrupted": interrupted}
    file = args.out / "summary.json"
    file.write_text(json.dumps({**summary, "settings": settings, "legs": list_details(legs)}, indent=1) + "\n",
                    encoding="utf-8")
    if summary["faults"]:
        console.print(build_soak_table(summary))
    if summary["failure"]:
        console.print(f"sqap soak: {summary['failure']}", style="red", markup=False, highlight=False, soft_wrap=True)
    print(json.dumps({**summary, "summary": str(file)}))
    if interrupted:
        return INTERRUPTED
    return 0 if summary["worked"] else 1


def open_folder(out: Path) -> Path:
    """Make the folder of the results, and put ROS on a domain of its own with its logs in it.

    :return: the folder of the logs
    :raises ConfigError: when it cannot be written
    """
    logs = out / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; take another folder") from error
    isolate_ros(logs)
    return logs


def _soak(legs: list[Leg], faults: list[Fault], args: argparse.Namespace, knobs: dict[str, Any],
          progress: TimedProgress, logs: Path, *, simulated: bool) -> None:
    leg = Leg("simulated" if simulated else "system")
    legs.append(leg)
    generator = random.Random(args.seed)
    both = {"use_sim_time": simulated}
    robot = NodeProcess(ROBOT, ROBOT_MODULE, {"seed": args.seed, **both}, logs, leg.clock)
    policy = NodeProcess(POLICY, POLICY_MODULE, {**knobs, **both}, logs, leg.clock)

    def check() -> None:
        try:
            robot.check()
            policy.check()
        except SqapError:
            leg.crashed = True
            raise

    operator = SoakOperator(POLICY, check, build_config(knobs), args.instruction, generator, robot.freeze,
                            simulated=simulated)
    leg.judge = operator.judge
    total_s = 60.0 * args.minutes / len(CLOCKS[args.clock])
    try:
        progress.on_stage(f"{leg.clock} time", total_s)
        operator.start_policy()
        operator.await_motion()
        _let_loose(leg, operator, faults, generator, policy.memory_bytes, total_s, progress.on_time)
    except SqapError as error:
        leg.failure = str(error) if leg.crashed else f"{error}. {policy.tell_log()}"
    finally:
        operator.close()
        if not leg.crashed:
            robot.freeze(False)
        policy.stop()
        robot.stop()


def _let_loose(leg: Leg, operator: SoakOperator, faults: list[Fault], generator: random.Random,
               read_memory: Callable[[], int], total_s: float, on_time: Callable[[float, str], None]) -> None:
    first_round = generator.sample(faults, len(faults))
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < total_s:
        warming = not leg.trials or passed_s < _WARM_RATIO * total_s or (
            bool(first_round) and passed_s < _LONGEST_WARM_RATIO * total_s)
        fault = first_round.pop() if first_round else generator.choice(faults)
        on_time(passed_s, fault.name)
        leg.trials.append(operator.run(fault))
        leg.memory_bytes.append(read_memory())
        leg.warm += warming
    on_time(total_s, "")
