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

"""`sqap soak`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.soak_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import add_set_flag, read_method, read_names, read_number
from sqap_vla_ros.ros.rig.faults import FAULTS

CLOCKS = {"system": (False,), "simulated": (True,), "both": (False, True)}
DEFAULT_METHOD, DEFAULT_INSTRUCTION = "w4a4+sqap@0.4", "pick up the red block"
_EPILOG = """The real node runs in a process of its own, over real DDS, beside a process that is camera, TF and
gripper. One fault after another is let loose on them, each once and then by chance; the robot must move before each,
and again after it.

Every command on the wire is judged. Unsafe is: a speed above the caps, a stamp 0.1 s old or more, a value that is not
finite, no frame_id, and motion while the fault asks for rest. Where a fault was latched, ~/reset_fault is called and
the instruction is said again, because a reset moves nothing by itself. Reaction is the time from a fault to the zero
that begins the rest; recovery is from the fault's end, or from the instruction after the reset, to the next motion.

faults:
{faults}

examples:
  sqap soak --minutes 10                                   the demo policy, every fault several times
  sqap soak --minutes 480 --checkpoint out/openvla-w4a4 --method stored --set safety.max_inference_s=5
  sqap soak --minutes 2 --checkpoint stand-in              a policy without a model: the node alone
  sqap soak --minutes 1 --faults camera-stops,tf-stops     only some faults
  sqap soak --minutes 5 --seed 7                           the same order of faults as another run with seed 7

In DIR: summary.json with every fault and every unsafe command, and logs/ with what the nodes said.
Exit codes: 0 no unsafe command, no crash, memory grew by less than 1 %, 1 otherwise, 2 wrong use, 130 ended by Ctrl-C;
what was finished by then is written all the same.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG.replace("{faults}", "\n".join(f"  {fault.name:20} {fault.meaning}"
                                                          for fault in FAULTS.values()))
    parser.add_argument("--minutes", type=read_number(float, 0.05, 100_000.0), default=10.0, metavar="M",
                        help="how long faults come, start and end not counted (default: 10)")
    parser.add_argument("--seed", type=read_number(int, 0, 10**9), default=0, metavar="N",
                        help="decides which faults come when (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out/soak"), metavar="DIR",
                        help="where results go (default: out/soak)")
    parser.add_argument("--checkpoint", default="demo", metavar="PATH",
                        help="folder of a checkpoint, 'demo' for the one in the package, or 'stand-in' for a policy "
                             "that has no model and moves at once (default: demo)")
    parser.add_argument("--method", type=read_method, default=DEFAULT_METHOD, metavar="METHOD",
                        help=f"RECIPE or RECIPE+RULE@SHARE_PRUNED (default: {DEFAULT_METHOD})")
    parser.add_argument("--instruction", default=DEFAULT_INSTRUCTION, metavar="TEXT",
                        help=f"what the robot shall do (default: {DEFAULT_INSTRUCTION})")
    parser.add_argument("--faults", type=read_names("a fault", FAULTS), default=tuple(FAULTS), metavar="LIST",
                        help="only these, comma-separated (default: all)")
    parser.add_argument("--clock", choices=CLOCKS, default="both",
                        help="the robot's time: the system's, simulated, or half of the minutes each (default: both)")
    add_set_flag(parser, "model", "prune", "footprint", "control", "safety")


def run(args: argparse.Namespace) -> int:
    """Soak, report, print one line of JSON."""
    # ROS takes a second to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.soak_run import run_verb

    return run_verb(args)
