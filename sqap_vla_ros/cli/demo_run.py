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
from pathlib import Path

from rich.console import Console

from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.progress import DemoProgress, build_table
from sqap_vla_ros.cli.staging import choose_episodes, open_logs, open_stage
from sqap_vla_ros.data import Episode
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.evaluation.demo import MethodRun, run_demo
from sqap_vla_ros.evaluation.report import write_report
from sqap_vla_ros.evaluation.summary import label_runs


def run_verb(args: argparse.Namespace) -> int:
    """Play, report, print one line of JSON."""
    console = Console(stderr=True)
    logs = args.out / "logs"
    open_logs(logs, f"--out {args.out}")
    end_politely()  # with the nodes ended and the results written
    episodes = choose_episodes(args.episodes, args.seed)
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
    with open_stage(logs, speed=args.speed, watch=not args.no_video) as stage:
        run_demo(runs, args.methods, episodes, lambda method: stage.open_player(method, args.checkpoint), progress,
                 record=not args.no_video)
