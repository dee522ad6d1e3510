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

"""The measurement of `sqap overhead`: camera and node as two processes, and a subscriber in this one."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sqap_vla_ros.cli.main import end_politely
from sqap_vla_ros.cli.processes import NodeProcess
from sqap_vla_ros.cli.progress import TimedProgress
from sqap_vla_ros.cli.soak_run import POLICY, ROBOT, ROBOT_MODULE, open_folder
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.ros.rig.overhead import OverheadOperator, measure_delays, read_sent
from sqap_vla_ros.ros.rig.timed_policy import read_trace

TRANSPORT = Path(__file__).parents[1] / "assets" / "fastdds.xml"
POLICY_MODULE = "sqap_vla_ros.ros.rig.timed_policy"
CAMERA: dict[str, Any] = {"width_px": 640, "height_px": 480, "rate_hz": 30.0}
# A step is shorter than the time between two pictures, so that every picture is due.
KNOBS: dict[str, Any] = {"control.dry_run": False, "control.enable_actuation": True, "control.step_period_s": 0.03,
                         "control.execute_steps": 1}
# 95th percentile in ms, and share of a core.
TARGETS = {"picture_to_inference_ms": 5.0, "inference_to_command_ms": 3.0, "cpu_without_camera": 0.05}
_WARM_S, _QUIET_S = 3.0, 2.0
_NAMES = {"picture_to_inference_ms": "picture to inference, ms", "inference_to_command_ms": "inference to command, ms",
          "cpu_without_camera": "CPU without camera", "cpu_with_camera": "CPU with camera"}


def run_verb(args: argparse.Namespace) -> int:
    """Measure, report, print one line of JSON."""
    console = Console(stderr=True)
    logs = open_folder(args.out)
    # The second name is that of Fast DDS 3, in Kilted.
    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        os.environ.setdefault(variable, str(TRANSPORT))
    end_politely()
    with TimedProgress(console) as progress:
        measured = _measure(args.seconds, logs, args.out, progress)
    within = all(_value(measured[name]) < limit for name, limit in TARGETS.items())
    summary = {"worked": within, **measured, "targets": TARGETS}
    file = args.out / "summary.json"
    conditions = {"camera": CAMERA, "knobs": KNOBS, "transport": os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"]}
    file.write_text(json.dumps({**summary, **conditions}, indent=1) + "\n", encoding="utf-8")
    console.print(_build_table(measured))
    print(json.dumps({**summary, "summary": str(file)}))
    return 0 if within else 1


def _measure(seconds: float, logs: Path, folder: Path, progress: TimedProgress) -> dict[str, Any]:
    sent, trace = (folder.resolve() / name for name in ("sent.json", "trace.json"))
    robot = NodeProcess(ROBOT, ROBOT_MODULE, {**CAMERA, "trace": str(sent)}, logs)
    policy = NodeProcess(POLICY, POLICY_MODULE, {**KNOBS, "trace": str(trace)}, logs)

    def check() -> None:
        robot.check()
        policy.check()

    operator = OverheadOperator(POLICY, check)
    try:
        operator.start()
        progress.on_stage("with camera", _WARM_S + seconds)
        operator.watch(_WARM_S, lambda passed_s: progress.on_time(passed_s, "warming up"))
        since_ns = time.time_ns()
        busy = _measure_cpu(policy, operator, seconds, lambda passed_s: progress.on_time(_WARM_S + passed_s, ""))
        robot.stop()
        with operator.watching(policy.check):
            progress.on_stage("without camera", _QUIET_S + seconds / 3.0)
            operator.watch(_QUIET_S, lambda passed_s: progress.on_time(passed_s, "coming to rest"))
            idle = _measure_cpu(policy, operator, seconds / 3.0,
                                lambda passed_s: progress.on_time(_QUIET_S + passed_s, ""))
    finally:
        operator.close()
        policy.stop()
        robot.stop()
    before, behind = measure_delays(read_trace(trace), read_sent(sent), operator.first_arrivals, since_ns)
    if not len(before) or not len(behind):
        raise SqapError(f"no inference was followed by a command. {policy.tell_log()}")
    return {"pictures": len(before), "picture_to_inference_ms": _summarize(before),
            "inference_to_command_ms": _summarize(behind), "cpu_without_camera": round(idle, 4),
            "cpu_with_camera": round(busy, 4)}


def _measure_cpu(policy: NodeProcess, operator: OverheadOperator, duration_s: float,
                 on_time: Callable[[float], None]) -> float:
    began_s, used_s = time.monotonic(), policy.cpu_s()
    operator.watch(duration_s, on_time)
    return (policy.cpu_s() - used_s) / (time.monotonic() - began_s)


def _summarize(delays_ms: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in zip(
        ("p50", "p95", "p99"), np.percentile(delays_ms, (50, 95, 99)), strict=True)}


def _value(measured: dict[str, float] | float) -> float:
    return measured["p95"] if isinstance(measured, dict) else measured


def _build_table(measured: dict[str, Any]) -> Table:
    table = Table(title=f"What ROS 2 adds, over {measured['pictures']} pictures", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("p50", "p95", "p99", "target"):
        table.add_column(heading, justify="right")
    for name, title in _NAMES.items():
        value, target = measured[name], TARGETS.get(name)
        if isinstance(value, dict):
            table.add_row(title, *(f"{value[key]:.2f}" for key in ("p50", "p95", "p99")), f"p95 < {target:g}")
        else:
            table.add_row(title, f"{value:.1%}", "", "", "" if target is None else f"< {target:.0%}")
    return table
