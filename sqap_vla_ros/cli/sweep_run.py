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

"""The sweep itself: recipes carried out once, then cells on Ray, kept as they end."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sqap_vla_ros.bags.sweep_file import read_sweep
from sqap_vla_ros.bags.sweep_folder import CELLS, RESULT_FILES, SweepFolder
from sqap_vla_ros.bags.sweep_plan import Cell, Made, Sweep, count_threads, needs_gpu, plan_cells
from sqap_vla_ros.bags.sweep_results import HEADINGS, build_row, say_latency, say_row, write_markdown
from sqap_vla_ros.bags.sweeping import Crew, replay_cell, run_cells
from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.progress import StepProgress, SweepProgress
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.evaluation.compressed import (
    Source,
    compress_missing,
    describe_recipes,
    find_source,
    list_folders,
)
from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions, write_json
from sqap_vla_ros.policy.compression import get_recipe

_LOG = "ray.log"
# How actions compare, and what they cost; the cell's name stands for method, bag and seed.
_COLUMNS = [[HEADINGS.index(name) for name in names] for names in (
    ("compared with", "MSE", "MAE", "cosine, mean / min", "gripper agrees"),
    ("looks", "tokens kept", "gripper tokens kept", "latency ms, p50 / p95"))]


def run_verb(args: argparse.Namespace, cores: int) -> int:
    """Run the cells, report, print one line of JSON.

    :param cores: of this machine
    """
    console = Console(stderr=True)
    end_politely()
    out = args.out.resolve()
    sweep = read_sweep(args.sweep)
    source = find_source(sweep.checkpoint, sweep.all_methods, sweep.calibration)
    made = _describe_made(out, sweep, source)
    cells = plan_cells(sweep, out / CELLS, made, {"checkpoint_sha256": source.sha256, "versions": describe_versions()})
    threads = count_threads(sweep)
    crew = Crew(args.workers or max(1, cores // threads), threads, needs_gpu(sweep), args.address, out / _LOG)
    failure: SqapError | None = None
    interrupted, began = False, time.monotonic()
    with SweepFolder(out, sweep, cells, resume=args.resume) as folder:
        try:
            _prepare(folder, cells, source, made, console)
            _run(folder, cells, crew, console, out)
        except SqapError as error:
            failure = error
        except KeyboardInterrupt:
            interrupted = True
            console.print(f"ended by Ctrl-C after {len(folder.landed)} of {len(cells)} cells; say --resume to go on",
                          highlight=False, markup=False, soft_wrap=True)
        rows = {landed.cell.name: build_row(landed) for landed in folder.landed}
    counts = Counter(row["state"] for row in rows.values())
    complete = counts["finished"] == len(cells)
    summary = {"kind": "sweep", "complete": complete, "cells": [rows[cell.name] for cell in cells if cell.name in rows],
               "settings": sweep.describe(),
               "run": {"workers": None if args.address else crew.workers, "address": args.address,
                       "wall_s": round(time.monotonic() - began, 1), "interrupted": interrupted,
                       "failure": None if failure is None else str(failure)},
               "machine": describe_machine(), "versions": describe_versions()}
    _write(out, summary, len(cells), console)
    failed = [name for name, row in rows.items() if row["state"] == "failed"]
    print(json.dumps({"cells": len(cells), "finished": counts["finished"], "failed": failed, "complete": complete,
                      **{Path(name).stem: str(args.out / name) for name in RESULT_FILES}}), flush=True)
    if failure is not None:
        raise failure
    return INTERRUPTED if interrupted else int(not complete)


def _describe_made(out: Path, sweep: Sweep, source: Source) -> dict[str, Made]:
    digests = describe_recipes(sweep.all_methods)
    return {name: Made(folder, {
        "sha256": digests[name],
        "observations_sha256": source.observations_sha256 if get_recipe(name).needs_calibration else None})
        for name, folder in list_folders(out, sweep.all_methods).items()}


def _list_missing(folder: SweepFolder, cells: Sequence[Cell]) -> list[Cell]:
    finished = {landed.cell.name for landed in folder.landed}
    return [cell for cell in cells if cell.name not in finished]


def _prepare(folder: SweepFolder, cells: Sequence[Cell], source: Source, made: dict[str, Made],
             console: Console) -> None:
    # Whatever is still to be run must be there; what has been may go.
    needed = {name for cell in _list_missing(folder, cells) for name in cell.settings["recipes"]}
    with StepProgress(console) as steps:
        carried_out = compress_missing(source, {name: one.folder for name, one in made.items() if name in needed},
                                       steps.on_step)
        if carried_out:
            steps.tell(f"carried out {', '.join(carried_out)}")


def _run(folder: SweepFolder, cells: Sequence[Cell], crew: Crew, console: Console, out: Path) -> None:
    missing = _list_missing(folder, cells)
    finished = len(cells) - len(missing)
    with SweepProgress(console, len(cells), finished) as progress:
        before = f"; {finished} are finished already" if finished else ""
        progress.tell(f"{len(cells)} cells{before}; results go to {out}")
        with closing(run_cells(missing, replay_cell, crew, progress.on_slots)) as landings:
            for landed in landings:
                folder.add(landed)
                progress.on_landed(landed.cell.name, landed.failure)


def _write(out: Path, summary: dict[str, Any], planned: int, console: Console) -> None:
    rows = summary["cells"]
    write_json(out / "summary.json", summary)
    finished = [row for row in rows if row["state"] == "finished"]
    title = f"{len(finished)} of {planned} cells, checkpoint {summary['settings']['checkpoint']}"
    (out / "table.md").write_text(write_markdown(rows, title), encoding="utf-8")
    for table in _build_tables(finished, title):
        console.print(table)
    if finished:
        console.print(say_latency(finished), highlight=False, markup=False, soft_wrap=True)


def _build_tables(rows: Sequence[dict[str, Any]], title: str) -> list[Table]:
    # Two that fit a terminal, where one would not.
    tables = []
    for columns in _COLUMNS if rows else ():
        table = Table(title=title, title_justify="left")
        table.add_column("", overflow="fold")
        said = [say_row(row) for row in rows]
        for index in columns:
            table.add_column(HEADINGS[index], justify="right", min_width=max(len(cells[index]) for cells in said))
        for row, cells in zip(rows, said, strict=True):
            table.add_row(row["cell"], *(cells[index] for index in columns))
        tables.append(table)
    return tables
