"""`sqap demo`: the simulated robot and the policy as two processes on real ROS 2, and the operator in this one."""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from sqap_vla_ros.cli.main import INTERRUPTED
from sqap_vla_ros.cli.processes import NodeProcess, isolate_ros
from sqap_vla_ros.cli.progress import DemoProgress, build_table
from sqap_vla_ros.data import Episode
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.evaluation.demo import MethodRun, run_demo
from sqap_vla_ros.evaluation.methods import Method, parse_methods
from sqap_vla_ros.evaluation.report import write_report
from sqap_vla_ros.evaluation.summary import label_runs
from sqap_vla_ros.ros.operator import Operator
from sqap_vla_ros.simulation.suite import choose_tasks

ROBOT, ROBOT_MODULE = "sim_robot", "sqap_vla_ros.simulation.robot_node"
POLICY, POLICY_MODULE = "policy_node", "sqap_vla_ros.ros.policy_node"
# What config/demo.yaml says too; a test holds them together.
ROBOT_PARAMETERS: dict[str, Any] = {"publish_clock": True, "real_time_factor": 0.0, "wait_for_command_s": 2.0}
POLICY_PARAMETERS: dict[str, Any] = {"use_sim_time": True, "control.gripper_open_m": 0.09}
DEFAULT_METHODS = "float,w4a4+sqap@0.4"
# Scenes that neither training nor the choice of a checkpoint has seen.
DEFAULT_SEED = 3_000_000
_EPILOG = """examples:
  sqap demo                                        a dozen instructions, float and compressed, with video
  sqap demo --episodes 3 --no-video                a quick look
  sqap demo --methods float,w4a4,w4a4+sqap@0.7     other methods: RECIPE or RECIPE+RULE@SHARE_PRUNED
  sqap demo --speed 1                              at real time, to watch it in RViz or Foxglove

In DIR: summary.json, chart.png, demo.mp4, overlay.png, and logs/ with what the nodes said.
Exit codes: 0 it worked (success >= 80 % over all methods, compressed decoder weights <= 0.16 x float32),
1 it fell short or failed, 2 wrong use, 130 ended by Ctrl-C; what was finished by then is written all the same.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("--episodes", type=_count, default=12, metavar="N",
                        help="scenes per method, tasks in turn: reach, pick, place (default: 12)")
    parser.add_argument("--seed", type=_seed, default=DEFAULT_SEED, metavar="N",
                        help=f"first scene; each has the next number (default: {DEFAULT_SEED})")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR",
                        help="where results go (default: out/demo)")
    parser.add_argument("--methods", type=_methods, default=DEFAULT_METHODS, metavar="LIST",
                        help=f"what plays the scenes, comma-separated (default: {DEFAULT_METHODS})")
    parser.add_argument("--checkpoint", default="demo", metavar="PATH",
                        help="folder of a checkpoint, or 'demo' for the one in the package (default: demo)")
    parser.add_argument("--speed", type=_speed, default=0.0, metavar="X",
                        help="simulated seconds per second at most; 0 is as fast as the policy answers (default: 0)")
    parser.add_argument("--no-video", action="store_true", help="draw no overlays: faster, and latencies undisturbed")


def run(args: argparse.Namespace) -> int:
    """Play, report, print one line of JSON."""
    console = Console(stderr=True)
    logs = args.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    isolate_ros(logs)
    # A polite kill ends the demo as Ctrl-C does, with the nodes ended and the results written; a shell that starts
    # this in the background would have Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    episodes = [Episode(seed, task.kind, task.color, task.instruction)
                for seed, task in choose_tasks(args.episodes, args.seed)]
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


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{value} is out of range; allowed are 1 to 1000")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{value} is out of range; allowed are 0 to {2**31 - 1}")
    return value


def _speed(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 100.0:
        raise argparse.ArgumentTypeError(f"{text} is out of range; allowed are 0 to 100")
    return value


def _methods(text: str) -> tuple[Method, ...]:
    try:
        return parse_methods(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
