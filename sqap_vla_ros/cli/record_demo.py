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

"""`sqap record-demo`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.record_demo_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import read_method, read_number
from sqap_vla_ros.cli.demo import DEFAULT_SEED

DEFAULT_METHOD = "float"
STORAGES = ("mcap", "sqlite3")
_EPILOG = """examples:
  sqap record-demo out/bag                           20 episodes of the float policy, pictures raw, MCAP
  sqap record-demo out/bag --compressed              pictures as JPEG: a much smaller bag
  sqap record-demo out/bag --storage sqlite3         for a Humble that has not rosbag2_storage_mcap
  sqap record-demo out/bag --method w4a4+sqap@0.4    what plays: RECIPE or RECIPE+RULE@SHARE_PRUNED
  ros2 bag play out/bag                              plays it, /clock too, with fixed frames for those who come late
  sqap replay out/bag --checkpoint demo              looks at each picture again

OUT is a rosbag2 folder that Humble and all after it read: pictures, camera_info, /tf, /tf_static, joint states, the
instruction, the commands, /clock, the robot's outcome, the policy's latency and the instruction it follows. Its times
are those of /clock. What passes between two episodes, while the next scene is laid out, is left out and counted, and
so are pictures that the robot sends again while it waits for a command. OUT-logs holds what the nodes said.
Exit codes: 0 all was played and recorded, 1 something is missing or it failed, 2 wrong use, 130 ended by Ctrl-C; what
was recorded by then can be read all the same.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the bag, which must not exist")
    parser.add_argument("--episodes", type=read_number(int, 1, 100_000), default=20, metavar="N",
                        help="scenes, tasks in turn: reach, pick, place (default: 20)")
    parser.add_argument("--seed", type=read_number(int, 0, 10**9), default=DEFAULT_SEED, metavar="N",
                        help=f"first scene; each has the next number (default: {DEFAULT_SEED})")
    parser.add_argument("--method", type=read_method, default=DEFAULT_METHOD, metavar="NAME",
                        help=f"what plays (default: {DEFAULT_METHOD})")
    parser.add_argument("--checkpoint", default="demo", metavar="PATH",
                        help="folder of a checkpoint, or 'demo' for the one in the package (default: demo)")
    parser.add_argument("--compressed", action="store_true",
                        help="record camera/image_raw/compressed, JPEG, instead of camera/image_raw")
    parser.add_argument("--storage", choices=STORAGES, default=STORAGES[0],
                        help=f"how the bag is stored (default: {STORAGES[0]})")


def run(args: argparse.Namespace) -> int:
    """Play, record, print one line of JSON."""
    # ROS and the simulator take a second to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.record_demo_run import run_verb

    return run_verb(args)
