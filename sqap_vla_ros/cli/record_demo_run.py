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

"""The recording itself: robot and policy as two processes on real ROS 2, the operator and the recorder in this one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console

from sqap_vla_ros.bags.recorded_steps import RecordedSteps
from sqap_vla_ros.bags.recording import Recorder, of_node
from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.progress import DemoProgress
from sqap_vla_ros.cli.staging import POLICY, ROBOT, choose_episodes, open_logs, open_stage
from sqap_vla_ros.data import Episode
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.evaluation.demo import MethodRun, run_demo
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.interface import Endpoint
from sqap_vla_ros.ros.operator import Operator

OUTCOME = of_node(interface.OUTCOME, ROBOT)
COMMANDS = of_node(interface.TWIST, ROBOT)
FIXED_FRAMES = of_node(interface.TF_STATIC, ROBOT)
# Besides the pictures: what the robot sends at the beginning of each step.
STEADY = tuple(of_node(endpoint, ROBOT) for endpoint in (
    interface.CAMERA_INFO, interface.TF, interface.JOINT_STATES))
STREAM = (of_node(interface.CLOCK, ROBOT), of_node(interface.LATENCY, POLICY))
# Few, and needed in the episode that follows.
RARE = (FIXED_FRAMES, OUTCOME, of_node(interface.INSTRUCTION, ROBOT), of_node(interface.ACTIVE_INSTRUCTION, POLICY))


def run_verb(args: argparse.Namespace) -> int:
    """Play, record, print one line of JSON."""
    console = Console(stderr=True)
    if args.out.exists():
        raise ConfigError(f"{args.out} exists already, and a bag is never overwritten; name another folder, or remove "
                          "that one")
    logs = args.out.with_name(f"{args.out.name}-logs")
    open_logs(logs, str(args.out))
    end_politely()  # with the nodes ended and the bag closed
    episodes = choose_episodes(args.episodes, args.seed)
    picture = of_node(interface.IMAGE_COMPRESSED if args.compressed else interface.IMAGE, ROBOT)
    steady = (picture, *STEADY)
    steps = RecordedSteps(OUTCOME, steady, COMMANDS, STREAM)
    recorder = Recorder(args.out, (*steady, COMMANDS, *STREAM, *RARE), args.storage, steps.select)
    runs: list[MethodRun] = []
    failure, interrupted = None, False
    with DemoProgress(console) as progress:
        progress.tell(f"{args.episodes} instructions for {args.method.name}; the bag is {args.out}, logs go to {logs}")
        try:
            with closing(recorder):
                _play(args, runs, episodes, progress, logs, recorder, steady)
            recorder.check()
        except SqapError as error:
            failure = str(error)
        except KeyboardInterrupt:
            interrupted = True
            progress.tell("ended by Ctrl-C; what was recorded is kept")
    missing = steps.count_missing()
    for topic, count in missing.items():
        console.print(f"{count} of {steps.steps} steps have no message on {topic}; the recorder could not keep up, or "
                      "the policy did not answer in time", style="red", highlight=False, soft_wrap=True)
    if failure is not None:
        console.print(f"sqap record-demo: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
    results = [result for run in runs for result in run.results]
    print(json.dumps({"path": str(args.out) if args.out.exists() else None, "method": args.method.name,
                      "episodes": len(results), "successes": sum(result.success for result in results),
                      "steps": steps.steps, "missing": missing, "messages": recorder.counts, "left_out": steps.left_out,
                      "duration_s": round(recorder.duration_ns / 1e9, 3), "size_bytes": _measure(args.out),
                      "complete": len(results) == len(episodes) and not missing and failure is None}), flush=True)
    if interrupted:
        return INTERRUPTED
    return 1 if failure is not None or missing else 0


def _play(args: argparse.Namespace, runs: list[MethodRun], episodes: list[Episode], progress: DemoProgress,
          logs: Path, recorder: Recorder, steady: tuple[Endpoint, ...]) -> None:
    with open_stage(logs, speed=0.0, watch=False) as stage:

        @contextmanager
        def open_player(method: Method) -> Iterator[Operator]:
            with stage.open_player(method, args.checkpoint, recorder.check) as operator:
                recorder.start((*steady, FIXED_FRAMES), stage.check)
                yield operator

        run_demo(runs, [args.method], episodes, open_player, progress, record=False)


def _measure(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
