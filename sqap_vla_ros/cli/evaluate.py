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

"""`sqap evaluate`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.evaluate_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sqap_vla_ros.cli.arguments import add_set_flag, count_cores, read_methods, read_names, read_number
from sqap_vla_ros.config import Config
from sqap_vla_ros.evaluation.plan import BLINDS, LANGUAGES
from sqap_vla_ros.simulation.suite import SEED_RANGES, SUITES, VARIATIONS

DEFAULT_METHODS = "float"
_LAST_SEED = 10**9
_EPILOG = f"""examples:
  sqap evaluate                                          300 episodes, 100 per task, on scenes nothing was tuned on
  sqap evaluate --methods float,w4a4,w4a4+sqap@0.4       what compression costs: the same scenes, compared one by one
  sqap evaluate --methods float,w4a4,w4a4+sqap@0.4,w4a4+sqap@0.7,w4a4+fastv@0.4,w4a4+fastv@0.7 --fidelity 32
                                                         many in one run: success against kept tokens, a line per rule
  sqap evaluate --suite hard --scene moved-camera        harder tasks, seen from a camera that was knocked
  sqap evaluate --language other --episodes 100          does it listen? another block of the same scene is named
  sqap evaluate --blind gripper --out out/blind          does it look? the gripper's tokens say nothing any more
  sqap evaluate --methods float,w4a4+sqap@0.6 --set prune.layer=2 --seeds validation
                                                         a knob of all methods, here where tokens leave
  sqap evaluate --seeds validation --episodes 30         while trying things out, so that test stays untouched

seeds:  {', '.join(f'{name} = {seeds.start}:{seeds.stop}' for name, seeds in SEED_RANGES.items())}
suites: {'; '.join(f'{name} = {", ".join(groups)}' for name, groups in SUITES.items())}
scenes: {', '.join(VARIATIONS)}

Each recipe is carried out once, before anything is played, and stored in DIR/compressed/RECIPE, which `sqap info` and
a policy node read as well. Those that must see observations take the ones that come with 'demo', or --calibration.
Other files in DIR: episodes.jsonl (a line as each episode ends), run.json (what was asked for), and at the end
report.html (everything on one page for a browser, which needs no network), summary.json, table.md, chart.png, and
kept_tokens.png if a method prunes. Run the same again after an interruption and only what is missing is done. Two
evaluations of the same scenes are compared by `sqap report DIR DIR`.
Exit codes: 0 all was played, 1 it failed, 2 wrong use, 130 ended by Ctrl-C; what was finished is written in any case.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("--methods", type=read_methods, default=DEFAULT_METHODS, metavar="LIST",
                        help="what plays, comma-separated: RECIPE or RECIPE+RULE@SHARE_PRUNED; the others are compared "
                             f"with the first (default: {DEFAULT_METHODS})")
    parser.add_argument("--episodes", type=read_number(int, 1, 100_000), default=300, metavar="N",
                        help="episodes per method, the suite's groups in turn (default: 300)")
    parser.add_argument("--seeds", type=_read_seeds, default="test", metavar="RANGE",
                        help=f"scenes to take the first N of: {', '.join(SEED_RANGES)}, or A:B for A to B-1 "
                             "(default: test)")
    parser.add_argument("--suite", choices=tuple(SUITES), default="base", help="which tasks (default: base)")
    parser.add_argument("--scene", type=read_names("a variation", VARIATIONS, " of scenes"), default=(),
                        metavar="LIST",
                        help=f"how scenes are changed, comma-separated, all at once: {', '.join(VARIATIONS)}; training "
                             "varies camera and light as far as these do (default: not at all)")
    parser.add_argument("--checkpoint", default="demo", metavar="PATH",
                        help="folder of a checkpoint, or 'demo' for the one in the package (default: demo)")
    parser.add_argument("--calibration", type=Path, metavar="PATH",
                        help="folder of observations for recipes that must see some, as for `sqap compress` (default: "
                             "those that come with 'demo')")
    parser.add_argument("--fidelity", type=read_number(int, 0, 100_000), default=0, metavar="N",
                        help="before the episodes, compare each method's actions and attention scores with the float "
                             "model's on N pictures of validation scenes (default: 0, not at all)")
    parser.add_argument("--workers", type=read_number(int, 1, 1024), default=count_cores(), metavar="N",
                        help="processes, each with a policy on one thread (default: one per core)")
    parser.add_argument("--execute-steps", type=read_number(int, 1, 64), default=Config().control.execute_steps,
                        metavar="N", help="steps of a chunk carried out before the next look (default: "
                                          f"{Config().control.execute_steps}, as the node)")
    parser.add_argument("--blind", choices=BLINDS, default="",
                        help="blank visual tokens before the decoder: the gripper's, those that see the target, or as "
                             "many others as the gripper has")
    add_set_flag(parser, "prune", "footprint", "control.ensemble_horizon", "control.ensemble_alpha")
    parser.add_argument("--language", choices=LANGUAGES, default=LANGUAGES[0],
                        help="'other' names another block that is there; success is then to do it with that one "
                             f"(default: {LANGUAGES[0]})")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate"), metavar="DIR",
                        help="where results go (default: out/evaluate)")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has left in DIR")


def run(args: argparse.Namespace) -> int:
    """Play, report, print one line of JSON."""
    if len(args.seeds) < args.episodes:
        args.refuse(f"argument --seeds: {args.seeds.start}:{args.seeds.stop} holds {len(args.seeds)} scenes for "
                    f"{args.episodes} episodes; take a larger range or fewer --episodes")
    # torch, the simulator and the plots take a second to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.evaluate_run import run_verb

    return run_verb(args)


def _read_seeds(text: str) -> range:
    if text in SEED_RANGES:
        return SEED_RANGES[text]
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end) <= _LAST_SEED):
        raise argparse.ArgumentTypeError(f"'{text}' is no range of scenes; take {', '.join(SEED_RANGES)}, or A:B with "
                                         f"0 <= A < B <= {_LAST_SEED}")
    return range(int(first), int(end))
