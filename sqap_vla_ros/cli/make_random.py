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

"""`sqap make-random`: a checkpoint with random weights in a published model's own layout."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from sqap_vla_ros.cli.arguments import read_number

# As models.random_checkpoint has them; a test compares.
FAMILIES = ("openvla", "openvla-oft", "cogact-small", "cogact-base", "cogact-large")
SIZES = ("7b", "tiny")
_EPILOG = """What loading, compressing and running cost depends on sizes, not on what the weights are. So this shows
what a published checkpoint will need on your machine, without a download. The actions mean nothing.

  openvla       a folder as transformers saves it: shards, index, config.json, 15.1 GB
  openvla-oft   the same with an action head and a proprio projector for LIBERO, 15.4 GB
  cogact-...    a run as Prismatic saves it: one .pt, config.json, statistics; Small 15.1, Base 15.3, Large 15.7 GB

examples:
  sqap make-random cogact-base out/random-cogact
  sqap compress out/random-cogact out/random-cogact-w4a4 --recipe w4a4-rtn
  sqap make-random openvla out/tiny --size tiny                  sizes as in tests: a few MB, done in a second

OUT appears whole or not at all. Exit codes: 0 done, 1 failed, 2 wrong use, 130 ended by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("family", choices=FAMILIES, metavar="FAMILY", help=f"one of {', '.join(FAMILIES)}")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--size", choices=SIZES, default=SIZES[0], help=f"of the language model (default: {SIZES[0]})")
    parser.add_argument("--seed", type=read_number(int, 0, 10**6), default=0, metavar="N",
                        help="of the weights (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Write, report, print one line of JSON."""
    from rich.console import Console

    from sqap_vla_ros.cli.main import end_politely
    from sqap_vla_ros.cli.progress import StepProgress
    from sqap_vla_ros.models.random_checkpoint import make_random

    end_politely()
    began = time.monotonic()
    with StepProgress(Console(stderr=True)) as steps:
        make_random(args.family, args.out, args.size, seed=args.seed, listener=steps.on_step)
    print(json.dumps({
        "checkpoint": str(args.out), "family": args.family, "size": args.size,
        "bytes": sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()),
        "seconds": round(time.monotonic() - began, 2)}))
    return 0
