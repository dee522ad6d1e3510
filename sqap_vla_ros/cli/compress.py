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

"""`sqap compress`: a float checkpoint in, a compressed one out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.cli.arguments import add_knob_flags, read_number
from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.knobs import ModelKnobs

if TYPE_CHECKING:
    from rich.table import Table

    from sqap_vla_ros.policy.compression import Compression

_CHOICES = {name: knob.choices for name, knob, _ in iterate_knobs(Config())}
# As config.py has them: what they are is known without torch, which takes seconds to import.
_RECIPES = tuple(name for name in _CHOICES["model.recipe"] if name not in ("float", "stored"))
_DTYPES = ("source", "bfloat16", "float16", "float32")
_SETTINGS = ("dataset", "pictures", "robot")
_EPILOG = """recipes:
  w4a4               4-bit weights and activations behind a rotation, each layer making up for what rounding cost: the
                     one to take where 4 bits are wanted
  w4a8               the same with 8-bit activations: nearly as small, closer to the float model
  w4a4-rtn, w4a8-rtn, w8a8   plain rounding; w4a16 leaves activations float. These need no observations
  qvla-4bit, qvla-w4a4                 0 to 16 bits for each output channel, 4 on average, where the actions need them
  w4a4-rtn-plain, smoothquant-...      baselines, to see what rotation and compensation are good for
  w4a4-qk4, w4a4-qk4-plain             w4a4 with 4-bit queries and keys, rotated and not: slower, to see what that does

observations (w4a4, w4a8, qvla-..., smoothquant-... must see some):
  A folder with PNG pictures of the robot's camera and a file observations.jsonl, a line for each:
    {"image": "0000.png", "instruction": "pick up the red block"}
  A few dozen from many scenes and stages of a task are enough; 'demo' brings its own. A model of several cameras has
  "images": ["a.png", "b.png"] in a line, one that reads the robot's state "state": [...]. --pictures, --dataset and
  --robot say how the model is to read them, as they do when it runs.

Where there are observations and memory for the float model, what it does on the first of them is stored, too: a policy
node compares itself with that before it moves anything.

Most recipes have one block of the model in memory at a time. smoothquant-... and qvla-... look at all of it at once, in
float32: 30 GB for 7 billion weights.

examples:
  sqap compress demo out/demo-w4a4 --recipe w4a4
  sqap compress ~/my-policy out/my-policy-w4a8 --recipe w4a8 --calibration ~/my-observations
  sqap info out/demo-w4a4                                                      what came out
  sqap evaluate --checkpoint out/demo-w4a4 --methods stored,stored+sqap@0.4    what it can do
A policy node runs it with model.checkpoint:=OUT and model.recipe:=stored; the float checkpoint is not needed any more.

OUT holds config.json, model.safetensors in compressed-tensors' layout, and a tokenizer where there is one. It appears
whole or not at all, also when this is killed. Exit codes: 0 done, 1 failed, 2 wrong use, 130 ended by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT",
                        help="folder of a float checkpoint, or 'demo' for the one in the package")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--recipe", required=True, choices=_RECIPES, metavar="NAME",
                        help=f"how: {', '.join(_RECIPES)}")
    parser.add_argument("--calibration", type=Path, metavar="DIR",
                        help="observations, for recipes that must see some (default: those that come with 'demo')")
    add_knob_flags(parser, **{name: f"model.{name}" for name in _SETTINGS})
    parser.add_argument("--engine", choices=_CHOICES["model.engine"], default=Config().model.engine,
                        help="what multiplies integers meanwhile; the result is the same (default: "
                             f"{Config().model.engine})")
    parser.add_argument("--seed", type=read_number(int, 0, 10**6), metavar="N",
                        help="of the rotations' signs (default: the recipe's, 0)")
    parser.add_argument("--dtype", choices=_DTYPES, default=_DTYPES[0],
                        help="how what stays float is stored; 'source' is each tensor as in CHECKPOINT. What is "
                             "computed in float32 in any case, as CogACT's action model is, is so (default: source)")
    parser.add_argument("--threads", type=read_number(int, 1, 256), metavar="N",
                        help="CPU threads (default: torch's, usually one per core)")
    parser.add_argument("--replace", action="store_true",
                        help="put it in the place of a compressed checkpoint at OUT; nothing else is ever replaced")


def run(args: argparse.Namespace) -> int:
    """Compress, report, print one line of JSON."""
    # torch takes seconds to import, which nobody who asks for help should wait.
    import torch
    from rich.console import Console

    from sqap_vla_ros.cli.checkpoint_table import build_parts_table, describe_facts, list_parts
    from sqap_vla_ros.cli.main import end_politely
    from sqap_vla_ros.cli.progress import StepProgress
    from sqap_vla_ros.models.vla import ModelSettings
    from sqap_vla_ros.policy.compression import compress_checkpoint
    from sqap_vla_ros.policy.policy import take_reference

    end_politely()
    if args.threads:
        torch.set_num_threads(args.threads)
    console, knobs = Console(stderr=True), {name: getattr(args, f"model.{name}") for name in _SETTINGS}
    with StepProgress(console) as steps:
        done = compress_checkpoint(
            args.checkpoint, args.out, args.recipe, observations=args.calibration, engine=args.engine, seed=args.seed,
            dtype=None if args.dtype == "source" else args.dtype, replace_old=args.replace, listener=steps.on_step,
            settings=ModelSettings(**knobs),
            refer=lambda seen: take_reference(ModelKnobs(checkpoint=args.checkpoint, **knobs), seen))
    parts = list_parts(done.facts)
    console.print(build_parts_table(done.facts, parts))
    console.print(_build_summary(done, args.recipe))
    values = describe_facts(done.facts, parts)
    print(json.dumps({
        "checkpoint": str(args.out), "recipe": args.recipe, "ratio": round(done.report.ratio, 6),
        "bits_per_weight": round(done.report.bits_per_weight, 4), "weight_bytes": done.report.weight_bytes,
        "float32_bytes": done.report.float32_bytes, "bytes": done.file_bytes, "source_bytes": done.source_bytes,
        "seconds": round(done.seconds, 2), "origin": values["origin"]}))
    return 0


def _build_summary(done: Compression, recipe: str) -> Table:
    from rich.table import Table

    report = done.report
    table = Table(title="What it saved", title_justify="left", show_header=False)
    table.add_row("recipe", recipe)
    table.add_row("quantized linears", f"{report.weight_bytes / 1e6:.2f} MB of {report.float32_bytes / 1e6:.2f} in "
                                       f"float32, {report.ratio:.3f} x, {report.bits_per_weight:.2f} bits / weight")
    rows: dict[int, int] = {}
    for linear in report.linears.values():
        for bits, count in (linear.rows_by_bits or {}).items():
            rows[bits] = rows.get(bits, 0) + count
    if rows:
        table.add_row("output channels by bits", ", ".join(f"{bits}: {count}" for bits, count in rows.items()))
    table.add_row("checkpoint", f"{done.file_bytes / 1e6:.2f} MB of {done.source_bytes / 1e6:.2f}")
    table.add_row("time", f"{done.seconds:.1f} s")
    return table
