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

"""`sqap demo`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.demo_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import read_methods, read_number

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
    parser.add_argument("--episodes", type=read_number(int, 1, 1000), default=12, metavar="N",
                        help="scenes per method, tasks in turn: reach, pick, place (default: 12)")
    parser.add_argument("--seed", type=read_number(int, 0, 10**9), default=DEFAULT_SEED, metavar="N",
                        help=f"first scene; each has the next number (default: {DEFAULT_SEED})")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR",
                        help="where results go (default: out/demo)")
    parser.add_argument("--methods", type=read_methods, default=DEFAULT_METHODS, metavar="LIST",
                        help=f"what plays the scenes, comma-separated (default: {DEFAULT_METHODS})")
    parser.add_argument("--checkpoint", default="demo", metavar="PATH",
                        help="folder of a checkpoint, or 'demo' for the one in the package (default: demo)")
    parser.add_argument("--speed", type=read_number(float, 0.0, 100.0), default=0.0, metavar="X",
                        help="simulated seconds per second at most; 0 is as fast as the policy answers (default: 0)")
    parser.add_argument("--no-video", action="store_true", help="draw no overlays: faster, and latencies undisturbed")


def run(args: argparse.Namespace) -> int:
    """Play, report, print one line of JSON."""
    # ROS, the simulator and the plots take a second to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.demo_run import run_verb

    return run_verb(args)
