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

"""`sqap train-demo`: its flags; what it does is in :mod:`sqap_vla_ros.training`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sqap_vla_ros.cli.arguments import count_cores, read_number

_EPILOG = """examples:
  sqap train-demo                                        hours on a few cores; kill it and run it again as you like
  sqap train-demo --scale 0.002 --work out/tiny          in minutes: shows that all of it runs, learns nothing
  sqap train-demo --config mine.yaml --work out/mine     another recipe, in a folder of its own

In --work: frames, resumable state, log.jsonl, training.png, and run.json with the recipe, which the folder is held to.
Exit codes: 0 done, 1 it failed, 2 wrong use, 130 ended by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("--config", type=Path, default=None, metavar="FILE",
                        help="the recipe (default: sqap_vla_ros/assets/train_demo.yaml, which comes with the package)")
    parser.add_argument("--work", type=Path, default=Path("out/train"), metavar="DIR",
                        help="frames, resumable state and log (default: out/train); run again to go on after a kill")
    parser.add_argument("--out", type=Path, default=Path("out/train/checkpoint"), metavar="DIR",
                        help="where the finished checkpoint goes (default: out/train/checkpoint)")
    parser.add_argument("--scale", type=read_number(float, 1e-4, 100.0), default=1.0, metavar="X",
                        help="multiply frames, samples and validation by this factor (default: 1)")
    parser.add_argument("--workers", type=read_number(int, 1, 1024), default=count_cores(), metavar="N",
                        help="processes that collect and validate (default: one per core)")
    parser.add_argument("--device", default="auto", metavar="NAME",
                        help="what learns: cpu, cuda, or auto for cuda where there is one (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Train, export, print one line of JSON."""
    # torch and the simulator take a second to import, which nobody who asks for help should wait.
    from sqap_vla_ros.training.settings import RECIPE, load_settings, scale_settings
    from sqap_vla_ros.training.train import Trainer, find_device

    settings = scale_settings(load_settings(args.config or RECIPE), args.scale)
    result = Trainer(settings, args.work, args.workers, find_device(args.device)).train(args.out)
    print(json.dumps({"checkpoint": str(args.out), **result}))
    return 0
