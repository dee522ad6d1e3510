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

"""`sqap overhead`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.overhead_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import read_number

_EPILOG = """The real node runs in a process of its own, with a policy that takes 10 ms and knows when it began and
ended, beside a camera of 640 x 480 px at 30 Hz; every picture starts an inference. Measured are

  picture to inference   from the moment in which the camera gives a picture to ROS, to publish it
  inference to command   from the end of an inference to the arrival of its first command at a subscriber
  CPU without camera     of the active node, which then only holds the robot, as a share of one core
  CPU with camera        the same while pictures come

examples:
  sqap overhead                    half a minute
  sqap overhead --seconds 120      more samples for the 99th percentile

Fast DDS reads sqap_vla_ros/assets/fastdds.xml, which has room for whole pictures in shared memory, unless
FASTRTPS_DEFAULT_PROFILES_FILE names another file; give your own nodes the same.

Let the computer do nothing else meanwhile. In DIR: summary.json, and logs/ with what the nodes said.
Exit codes: 0 within the targets of the table, 1 beyond them or failed, 2 wrong use, 130 ended by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("--seconds", type=read_number(float, 1.0, 240.0), default=30.0, metavar="S",
                        help="how long pictures come; a third of it without pictures follows (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("out/overhead"), metavar="DIR",
                        help="where results go (default: out/overhead)")


def run(args: argparse.Namespace) -> int:
    """Measure, report, print one line of JSON."""
    # ROS takes a second to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.overhead_run import run_verb

    return run_verb(args)
