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

"""`sqap observe`: pictures and instructions from the simulated robot, to calibrate a recipe on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sqap_vla_ros.cli.arguments import read_number

_EPILOG = """examples:
  sqap observe out/observations                          64 pictures from 64 scenes, a few seconds
  sqap compress demo out/w4a4 --recipe w4a4 --calibration out/observations

The folder holds PNG files and observations.jsonl, a line each: {"image": "0000.png", "instruction": "..."}. Pictures of
your own robot can stand in one just as well.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    parser.add_argument("--count", type=read_number(int, 1, 100_000), default=64, metavar="N",
                        help="pictures, each from a scene of its own, the suites in turn (default: 64)")


def run(args: argparse.Namespace) -> int:
    """Play, write, print one line of JSON."""
    # The simulator takes a second to import, which nobody who asks for help should wait.
    from tqdm import tqdm

    from sqap_vla_ros.policy.observations import write_observations
    from sqap_vla_ros.simulation.observing import observe_expert

    written = write_observations(args.out, tqdm(observe_expert(args.count), total=args.count, unit="picture"))
    print(json.dumps({"observations": str(args.out), "count": written}))
    return 0
