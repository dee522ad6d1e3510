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

"""`sqap info`: what a checkpoint is; without one, what is installed, and what each knob is."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from sqap_vla_ros.config import Config, iterate_knobs

_EPILOG = """examples:
  sqap info                       machine and versions
  sqap info --knobs               and every knob with its value and meaning
  sqap info demo                  the float checkpoint in the package
  sqap info out/demo-w4a4         a compressed one: recipe, rotation, bits by layer, what it was made from
  sqap info out/demo-w4a4 --linears

Nothing of a checkpoint is loaded; its configuration and the header of its tensor file say it all.
Exit codes: 0 done, 1 it cannot be used, 2 wrong use.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT",
                        help="folder of a float or compressed checkpoint, or 'demo' for the one in the package")
    parser.add_argument("--linears", action="store_true", help="a row for each quantized linear of a checkpoint")
    parser.add_argument("--knobs", action="store_true", help="list every knob with its value and meaning")


def run(args: argparse.Namespace) -> int:
    """Tell, and print one line of JSON."""
    if args.checkpoint and args.knobs:
        args.refuse("argument --knobs: not allowed with CHECKPOINT, which says nothing of knobs")
    if args.linears and not args.checkpoint:
        args.refuse("argument --linears: name the CHECKPOINT whose linears are to be listed")
    print(json.dumps(_tell_checkpoint(args.checkpoint, linears=args.linears) if args.checkpoint
                     else _tell_installation(knobs=args.knobs)))
    return 0


def _tell_installation(*, knobs: bool) -> dict[str, Any]:
    from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions

    machine, versions = describe_machine(), describe_versions()
    for name, value in {**machine, **versions}.items():
        print(f"{name:14}{value if value is not None else 'not installed'}", file=sys.stderr)
    if knobs:
        for name, knob, value in iterate_knobs(Config()):
            print(f"{name:32}{value!s:24}{knob.description}", file=sys.stderr)
    return {"machine": machine, "versions": versions, "knobs": {name: value for name, _, value
                                                                in iterate_knobs(Config())}}


def _tell_checkpoint(checkpoint: str, *, linears: bool) -> dict[str, Any]:
    # torch takes seconds to import, which nobody who asks for help should wait.
    from rich.console import Console

    from sqap_vla_ros.cli.checkpoint_table import build_parts_table, describe_facts, list_facts, list_parts
    from sqap_vla_ros.models.registry import describe_checkpoint, hash_checkpoint

    facts = describe_checkpoint(checkpoint)
    parts, hashes = list_parts(facts, linears=linears), hash_checkpoint(checkpoint)
    console = Console(stderr=True)
    told = list_facts(facts) | {name: f"sha256 {value}" for name, value in hashes.items()}
    for name, value in told.items():
        console.print(f"{name:36} {value}", highlight=False, markup=False, soft_wrap=True)
    console.print(build_parts_table(facts, parts))
    return {**describe_facts(facts, parts), "sha256": hashes}
