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

"""`sqap sweep`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.sweep_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import count_cores, read_number

_EPILOG = """examples:
  sqap record-demo out/bags/demo && cp config/sweep.yaml out/ && sqap sweep out/sweep.yaml
                                                         a bag of the simulated robot, and what compression costs on it
  sqap sweep sweep.yaml --resume                         go on after an interruption, or with more methods, bags, seeds
  sqap sweep sweep.yaml --workers 1                      one cell at a time, where latency shall be compared
  RAY_AUTH_MODE=token sqap sweep sweep.yaml --address 10.0.0.5:6379
                                                         on a Ray cluster that has this package and sees the same files

what a sweep.yaml holds; relative paths begin at its folder:
  methods: [float, w4a4]      recipes, or methods in full like w4a4+fastv@0.6; float is the model as it is
  rules: [sqap]               token rules that a recipe is tried with (default: [sqap])
  ratios: [0, 0.4]            shares of the visual tokens they drop; 0 prunes nothing (default: [0])
  bags: [bags/*, day2.mcap]   paths and globs
  seeds: [0, 1]               of prune.seed (default: [0])
  against: float              what cells are compared with, besides what was recorded; '' for nothing (default: float)
  checkpoint, calibration     folder of a checkpoint, or demo (default: that of params_file, else demo), and of
                              observations for its recipes
  params_file, knobs          a node's parameter file, and single knobs by dotted name, for all cells; recipe, rule,
                              ratio and seed are the sweep's own
  instruction, namespace, remap, limit
                              as for `sqap replay`; limit is pictures per bag
A cell is a method on a bag with a seed; what comes out as the same cell twice is run once. Of a cell no overlays and no
bag of results are written; `sqap replay` makes them of one that is worth a look.

Each recipe is carried out once, before the cells, and stored in DIR/compressed/RECIPE. Files in DIR: cells/NAME (what
`sqap replay` writes of one), results.jsonl (a line as each cell ends), sweep.json (what was asked for), ray.log, and at
the end summary.json and table.md. A cell whose process is killed is run again, up to three times; one that fails, as
with a broken bag, is told and the others go on; --resume runs it again.
Latency that is measured while other cells run beside is not comparable; take --workers 1 for it.
Exit codes: 0 all cells are finished, 1 some failed, 2 wrong use, 130 ended by Ctrl-C; what was finished is kept.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("sweep", type=Path, metavar="SWEEP.YAML", help="what to run; see below")
    parser.add_argument("--out", type=Path, default=Path("out/sweep"), metavar="DIR",
                        help="where results go; a cluster must see it under the same path (default: out/sweep)")
    parser.add_argument("--resume", action="store_true", help="go on in DIR: run what is missing or failed there")
    parser.add_argument("--workers", type=read_number(int, 1, 1024), metavar="N",
                        help="cells at a time on this machine (default: as many as its cores have threads for)")
    parser.add_argument("--address", default="", metavar="ADDR",
                        help="an existing Ray cluster, HOST:PORT or auto (default: none, Ray is started for this run)")


def run(args: argparse.Namespace) -> int:
    """Run the cells, report, print one line of JSON."""
    if args.address and args.workers:
        args.refuse("argument --workers: a cluster decides itself how many cells run at a time; leave it out with "
                    "--address")
    # Ray and torch take seconds to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.sweep_run import run_verb

    return run_verb(args, count_cores())
