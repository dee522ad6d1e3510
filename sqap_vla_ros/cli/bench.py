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

"""`sqap bench`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.bench_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import add_set_flag, read_names, read_number, read_prune
from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.evaluation.bench_engines import BENCH_ENGINES

_CHOICES = {name: knob.choices for name, knob, _ in iterate_knobs(Config())}
_RECIPES = tuple(name for name in _CHOICES["model.recipe"] if name != "float")
_DEFAULT_ENGINES = "float32,bfloat16,cpu"
_EPILOG = f"""examples:
  sqap bench                                        float32, bfloat16 and W4A4 with 60 % of the tokens dropped
  sqap bench demo --set prune.layer=0               tokens leave in the first layer already
  sqap bench demo --prune none                      what quantization brings alone
  sqap bench demo --recipe w4a4-rtn                 no calibration first: as fast when it runs, but acts worse
  sqap bench demo --engines cpu,reference --recipe w4a4-rtn --rounds 5
  sqap bench out/demo-w4a4 --recipe stored --engines cpu --observations my-pictures

engines:
{chr(10).join(f"  {name:10} {engine.purpose}" for name, engine in BENCH_ENGINES.items())}

Every round runs every engine once on the same picture, in an order drawn anew, so what slows the machine down slows
all of them down, and a ratio is taken within each round. Still, let nothing else run meanwhile. The stages are those of
one inference: preprocess, vision, llm (the decoder with pruning), head. Only llm is quantized and pruned.

In DIR: bench.json (every time of every round, medians, ratios, machine, versions) and chart.png. The last line on
stdout is JSON. Exit codes: 0 all rounds were measured, 1 it failed, 2 wrong use, 130 ended by Ctrl-C, which writes what
was measured so far.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("checkpoint", nargs="?", default="demo", metavar="CHECKPOINT",
                        help="folder of a checkpoint, or 'demo' for the one in the package (default: demo)")
    parser.add_argument("--engines", type=read_names("an engine", BENCH_ENGINES), default=_DEFAULT_ENGINES,
                        metavar="LIST",
                        help=f"what is compared, comma-separated: {', '.join(BENCH_ENGINES)} (default: "
                             f"{_DEFAULT_ENGINES})")
    parser.add_argument("--recipe", choices=_RECIPES, default="w4a4", metavar="NAME",
                        help=f"of the quantized engines: {', '.join(_RECIPES)} (default: w4a4)")
    parser.add_argument("--prune", type=read_prune, default="sqap@0.6", metavar="RULE@SHARE",
                        help="of the quantized engines: which visual tokens leave and how many of them, or 'none' "
                             "(default: sqap@0.6)")
    add_set_flag(parser, "prune")
    parser.add_argument("--threads", type=read_number(int, 1, 256), default=1, metavar="N",
                        help="CPU threads of one inference (default: 1)")
    parser.add_argument("--rounds", type=read_number(int, 1, 100_000), default=100, metavar="N",
                        help="how often each engine runs (default: 100)")
    parser.add_argument("--observations", type=Path, metavar="DIR",
                        help="pictures and instructions to run on (default: those that come with 'demo')")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR",
                        help="where results go (default: out/bench)")


def run(args: argparse.Namespace) -> int:
    """Measure, report, print one line of JSON."""
    # torch and the plots take a second to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.bench_run import run_verb

    return run_verb(args)
