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

"""`sqap infer`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.infer_run`."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from sqap_vla_ros.cli.arguments import add_knob_flags, add_set_flag, read_prune
from sqap_vla_ros.config import Config, iterate_knobs

_KNOBS = {"engine": "model.engine", "device": "model.device", "threads": "model.threads", "dtype": "model.dtype",
          "dataset": "model.dataset", "pictures": "model.pictures", "robot": "model.robot",
          "steps": "model.sampler_steps", "guidance": "model.guidance"}
_CHOICES = {name: knob.choices for name, knob, _ in iterate_knobs(Config())}
_PRUNE = f"{Config().prune.rule}@{Config().prune.pruned_ratio:g}"
_EPILOG = """examples:
  sqap infer demo --image a.png --instruction "pick up the red block"
  sqap infer demo --image a.png --instruction "pick up the red block" --tf-pixel 112,96,24 --out out/look
  sqap infer demo --image a.png --instruction "reach the blue block" --recipe w4a4-rtn --prune none
  sqap infer out/demo-w4a4 --image a.png --instruction "pick up the red block" --set prune.layer=2
  sqap infer ~/openvla-7b --image a.png --instruction "pick up the spoon" --dataset bridge_orig --dtype bfloat16
  sqap infer ~/openvla-oft --image main.png --image wrist.png --instruction "open the drawer" --robot libero
     --pictures libero --state=-0.05,0.03,1.17,3.13,0.01,-0.09,0.04,-0.04 --tf-pixel main:128,140,30

Pictures are the cameras', as they come: --pictures does to them what the model's authors did. --tf-pixel stands for
what a robot's TF would tell, where the gripper is; without it the rules protect nothing and do the rest. Write
--state=-0.1,... with the equals sign where the first number is negative.

The model sees the observation twice, and times are those of the second look, which has nothing to prepare any more.

In DIR: overlay_CAMERA.png for each picture, with dropped tokens dark and kept ones framed by rule. The table says what
to do in m and rad of one step; the last line on stdout is JSON, with every number in full and the indices of the kept
tokens by rule. Exit codes: 0 done, 1 it cannot be done, 2 wrong use, 130 ended by Ctrl-C.
"""


@dataclass(frozen=True)
class Disc:
    """A part of a picture to protect.

    :param camera: whose picture; empty where there is one camera
    :param center_px: pixel (u, v) of the camera's picture
    :param radius_px: above 0
    """

    camera: str
    center_px: tuple[float, float]
    radius_px: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT",
                        help="folder of a float or compressed checkpoint, or 'demo' for the one in the package")
    parser.add_argument("--image", type=Path, action="append", required=True, metavar="FILE",
                        help="a camera's picture, PNG or JPEG; once for each camera, in the model's order")
    parser.add_argument("--instruction", required=True, metavar="TEXT", help="what to do, in words")
    parser.add_argument("--tf-pixel", type=_read_disc, action="append", default=[], metavar="[CAMERA:]U,V,RADIUS",
                        help="a disc to protect as the robot's gripper would be, in px of the camera's picture; may be "
                             "given several times (default: none)")
    parser.add_argument("--state", type=_read_state, metavar="X,Y,...",
                        help="the robot's own state, m and rad, for a model that reads one")
    parser.add_argument("--recipe", choices=_CHOICES["model.recipe"], metavar="NAME",
                        help=f"how a float checkpoint is quantized first: {', '.join(_CHOICES['model.recipe'])} "
                             "(default: as it is, which is 'float', or 'stored' for a compressed one)")
    parser.add_argument("--prune", type=read_prune, default=_PRUNE, metavar="RULE@SHARE",
                        help="which visual tokens leave and how many of them: a rule of "
                             f"{', '.join(_CHOICES['prune.rule'])} (default: {_PRUNE})")
    add_set_flag(parser, "prune")
    add_knob_flags(parser, **_KNOBS)
    parser.set_defaults(knobs=tuple(_KNOBS.values()))
    parser.add_argument("--out", type=Path, default=Path("out/infer"), metavar="DIR",
                        help="where overlays go (default: out/infer)")


def run(args: argparse.Namespace) -> int:
    """Look, tell, print one line of JSON."""
    # torch takes seconds to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.infer_run import run_verb

    return run_verb(args)


def _read_disc(text: str) -> Disc:
    camera, colon, numbers = text.rpartition(":")
    values = _read_numbers(numbers)
    if len(values) != 3 or not values[2] > 0.0 or (colon and not camera):
        raise argparse.ArgumentTypeError(f"'{text}' is no disc; write U,V,RADIUS in px with a radius above 0, such as "
                                         "112,96,24, or CAMERA:U,V,RADIUS where there are several cameras")
    return Disc(camera, (values[0], values[1]), values[2])


def _read_state(text: str) -> tuple[float, ...]:
    values = _read_numbers(text)
    if not values:
        raise argparse.ArgumentTypeError(f"'{text}' is no state; write finite numbers with commas between, such as "
                                         "0.1,0.2,0.3")
    return values


def _read_numbers(text: str) -> tuple[float, ...]:
    # None at all where one of them is none.
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return values if all(map(math.isfinite, values)) else ()
