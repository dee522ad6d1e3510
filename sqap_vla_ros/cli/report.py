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

"""`sqap report`: its flags and their help; what it does is in :mod:`sqap_vla_ros.cli.report_run`."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """examples:
  sqap report out/replay                              the page of that run once more, out/replay/report.html
  sqap report out/float out/w4a4                      two replays of one bag: is w4a4 farther from what was recorded?
  sqap report out/episode-*                           many bags, each replayed with the same policies
  sqap report out/evaluate out/blind --out blind.html
                                                      two evaluations of the same scenes, compared one by one

DIR is what --out of `sqap replay` or `sqap evaluate` was. Of several, everything is shown side by side, and what can be
paired is: episodes of the same scenes and tasks, looks of the same bag. Of a paired difference the page tells a 95 %
interval. One that includes 0 means that these data show no difference, not that there is none. Of one bag, blocks of
its looks are drawn again; of several bags, whole bags, of which it takes six.

The page is one file that needs no network. The last line on stdout is JSON with all paired figures.
Exit codes: 0 done, 1 a folder cannot be used, 2 wrong use, 130 ended by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR",
                        help="folder with the results of `sqap replay` or `sqap evaluate`; those after the first are "
                             "compared with the first that they can be paired with")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="the page (default: report.html in DIR, or out/report.html for several)")


def run(args: argparse.Namespace) -> int:
    """Read, compare, write the page, print one line of JSON."""
    places = [folder.resolve() for folder in args.folders]
    twice = next((folder for folder, place in zip(args.folders, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        args.refuse(f"argument DIR: {twice} is given twice; a run differs from itself in nothing, so name each once")
    # NumPy and plotly take a while to import, which nobody who asks for help should wait.
    from sqap_vla_ros.cli.report_run import run_verb

    return run_verb(args)
