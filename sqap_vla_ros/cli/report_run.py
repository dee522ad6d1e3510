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

"""Pages from results on disk: a run's own, or one of several runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.report.comparison import compare_runs
from sqap_vla_ros.report.comparison_page import build_comparison_page
from sqap_vla_ros.report.evaluation_page import build_evaluation_page
from sqap_vla_ros.report.html import write_page
from sqap_vla_ros.report.page import Page
from sqap_vla_ros.report.replay_page import build_replay_page
from sqap_vla_ros.report.runs import EVALUATION, Run, read_looks, read_runs

PAGE_FILE = "report.html"
_OUT_OF_SEVERAL = Path("out") / PAGE_FILE


def run_verb(args: argparse.Namespace) -> int:
    """Read, compare, write the page, print one line of JSON."""
    console = Console(stderr=True)
    runs = read_runs(args.folders)
    told: dict[str, Any] = {}
    if len(runs) == 1:
        page, out = build_page(runs[0]), args.out or args.folders[0] / PAGE_FILE
    else:
        comparison = compare_runs(runs)
        page, out, told = build_comparison_page(comparison), args.out or _OUT_OF_SEVERAL, comparison.describe()
    _open_folder(out)
    write_page(page, out)
    for sentence in page.warnings:
        console.print(f"take care: {sentence}", highlight=False, markup=False, soft_wrap=True)
    for tile in page.tiles:
        console.print(f"{tile.name}: {tile.value}  ({tile.note})", highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote {out}; open it in a browser", highlight=False, markup=False, soft_wrap=True)
    print(json.dumps({"report": str(out), **told}), flush=True)
    return 0


def build_page(run: Run) -> Page:
    """The page of one run.

    :raises InputError: when its looks cannot be read
    """
    if run.kind == EVALUATION:
        return build_evaluation_page(run.summary)
    return build_replay_page(run.summary, list(read_looks(run)), run.folder)


def _open_folder(out: Path) -> None:
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it, as {out / PAGE_FILE}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; take another folder") from error
