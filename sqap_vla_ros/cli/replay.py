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

"""`sqap replay`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.replay_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import add_set_flag, read_number
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.methods import Method, parse_method

_EPILOG = """examples:
  sqap replay bag --list                                 what the bag holds, what the policy would need, what is missing
  sqap replay bag                                        the packaged policy, compressed, on every picture of the bag
  sqap replay bag --against float                        and what compression changed, look by look
  sqap replay bag --checkpoint out/w4a4 --against ~/openvla-7b --config config/openvla_bridge.yaml
  sqap replay bag --remap camera/image_raw:=/wrist/color/image_raw --instruction "pick up the red block"
  sqap replay run.mcap --set input.transport=compressed --limit 200

BAG is a folder as `ros2 bag record` makes it, or a single .mcap or .db3 file; ROS need not be installed. Its pictures,
TF, calibrations and joint states go through the node's own parts, every complete set of pictures in order, none
dropped: the results do not depend on how fast this machine is. They are compared with the velocities recorded on
delta_twist_cmds, and with those of --against on the same looks.

In DIR: report.html (open it in a browser), summary.json, looks.jsonl (a line per look), overlays/ (what the policy
saw), and replay/, a bag of what it would have commanded, with the original stamps, for Foxglove and `ros2 bag play`.
The same command goes on after an interruption. Exit codes: 0 done, 1 it cannot be done, 2 wrong use, 130 ended by
Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("bag", type=Path, metavar="BAG", help="folder or file of the bag")
    parser.add_argument("--list", action="store_true", help="only tell what the bag holds and what is missing")
    parser.add_argument("--checkpoint", metavar="PATH",
                        help="folder of a float or compressed checkpoint, or 'demo' for the one in the package "
                             "(default: model.checkpoint of --config, else demo)")
    parser.add_argument("--method", type=_read_method, metavar="METHOD",
                        help="what looks at the bag: RECIPE or RECIPE+RULE@SHARE_PRUNED; a compressed checkpoint takes "
                             "the recipe 'stored' (default: the knobs of --config, else w4a4+sqap@0.4)")
    parser.add_argument("--against", action="append", default=[], metavar="METHOD|PATH",
                        help="what it is compared with: another method of the same checkpoint, such as float, or the "
                             "folder of another checkpoint as it is; may be given several times (default: nothing)")
    parser.add_argument("--config", type=Path, metavar="FILE",
                        help="the node's parameter file: topics, frames, caps and all other knobs (default: the "
                             "defaults, as the node)")
    add_set_flag(parser, "model", "prune", "input", "footprint", "control", "safety")
    parser.add_argument("--instruction", default="", metavar="TEXT",
                        help="what to do, in words, instead of what the bag says (default: the bag's topic)")
    parser.add_argument("--limit", type=read_number(int, 1, 10**9), default=0, metavar="N",
                        help="only the first N looks (default: all)")
    parser.add_argument("--namespace", default="", metavar="NAME",
                        help="namespace that the node had, put before its topics (default: none)")
    parser.add_argument("--remap", action="append", default=[], metavar="FROM:=TO",
                        help="a topic's name in the bag, as ROS remaps; may be given several times")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: BAG-replay, beside BAG)")
    parser.add_argument("--no-overlays", action="store_true", help="draw no pictures, which takes time and disk")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has left in DIR")


def run(args: argparse.Namespace) -> int:
    """Replay, report, print one line of JSON."""
    # torch and ROS take seconds to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.replay_run import run_verb

    return run_verb(args)


def _read_method(text: str) -> Method:
    try:
        return parse_method(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
