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

"""The evaluation itself: recipes carried out once, then closed loops without ROS on all cores, kept as they end."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.progress import EvaluationProgress, StepProgress, build_evaluation_tables
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.evaluation.chart import draw_kept_tokens, draw_success
from sqap_vla_ros.evaluation.closed_loop import check_setup
from sqap_vla_ros.evaluation.compressed import (
    FOLDER,
    Source,
    compress_missing,
    describe_recipes,
    find_source,
    forget_compressed,
    list_folders,
)
from sqap_vla_ros.evaluation.fidelity_file import FILE, measure_methods, read_fidelity
from sqap_vla_ros.evaluation.journal import Journal
from sqap_vla_ros.evaluation.methods import STORED
from sqap_vla_ros.evaluation.plan import LANGUAGES, Job, Setup, plan_jobs
from sqap_vla_ros.evaluation.results import summarize_methods
from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions, write_json
from sqap_vla_ros.evaluation.table import describe_conditions, write_markdown
from sqap_vla_ros.evaluation.workers import play_jobs
from sqap_vla_ros.report.evaluation_page import build_evaluation_page
from sqap_vla_ros.report.html import write_page
from sqap_vla_ros.simulation.suite import Trial, choose_trials

_TOLD = ("success", "interval", "successes", "episodes")
_TOLD_OF_METHOD = (*_TOLD, "steps_to_success", "path_to_success_m", "jerk_m_s3", "went_to")


def run_verb(args: argparse.Namespace) -> int:
    """Play, report, print one line of JSON."""
    console = Console(stderr=True)
    end_politely()
    source = find_source(args.checkpoint, args.methods, args.calibration)
    if args.fidelity and any(method.recipe == STORED for method in args.methods):
        raise ConfigError(f"--fidelity compares with the float model, and '{args.checkpoint}' is compressed; give the "
                          "float checkpoint and recipes, or leave --fidelity out")
    setup = Setup(args.checkpoint, args.execute_steps, args.blind, list_folders(args.out, args.methods),
                  dict(args.set))
    trials = choose_trials(args.suite, args.episodes, args.seeds.start, args.scene)
    jobs = plan_jobs(args.methods, trials, exchange=args.language != LANGUAGES[0])
    check_setup(setup, jobs)
    settings = describe_settings(args, source, trials)
    failure: SqapError | None = None
    interrupted, began = False, time.monotonic()
    with Journal(args.out, settings, fresh=args.fresh) as journal:
        fidelity = {} if args.fresh else read_fidelity(args.out, settings, args.fidelity)
        try:
            _prepare(args, source, setup, settings, journal, jobs, fidelity, console)
            _play(journal, jobs, setup, args.workers, console, args.out)
        except SqapError as error:
            failure = error
        except KeyboardInterrupt:
            interrupted = True
            console.print(f"ended by Ctrl-C after {len(journal.records)} of {len(jobs)} episodes; run the same again "
                          "to go on", highlight=False, markup=False, soft_wrap=True)
        results = summarize_methods(journal.records, settings["methods"])
        complete = len(journal.records) == len(jobs)
    for name, row in results["methods"].items():
        row |= {"fidelity": fidelity[name]} if name in fidelity else {}
    summary = {"kind": "evaluation", **results, "complete": complete, "settings": settings,
               "run": {"workers": args.workers, "wall_s": round(time.monotonic() - began, 1),
                       "interrupted": interrupted, "failure": None if failure is None else str(failure)},
               "machine": describe_machine(), "versions": describe_versions()}
    _write(args.out, summary, console)
    told = {name: {**{key: row[key] for key in _TOLD_OF_METHOD if key in row},
                   "tasks": {group: {key: part[key] for key in (*_TOLD, "went_to") if key in part}
                             for group, part in row["tasks"].items()}}
            for name, row in results["methods"].items()}
    print(json.dumps({"methods": told, "compared": results["compared"], "complete": complete,
                      "summary": str(args.out / "summary.json")}), flush=True)
    if failure is not None:
        raise failure
    return INTERRUPTED if interrupted else 0


def describe_settings(args: argparse.Namespace, source: Source, trials: Sequence[Trial]) -> dict[str, Any]:
    """Everything that decides what comes out; a folder holds results of one such only."""
    # The same name of a suite may have meant other scenes and tasks when a run was begun.
    drawn = hashlib.sha256(repr(tuple(trials)).encode()).hexdigest()[:16]
    return {"methods": [method.name for method in args.methods], "episodes": args.episodes,
            "first_seed": args.seeds.start, "suite": args.suite, "scene": list(args.scene), "trials_sha256": drawn,
            "checkpoint": args.checkpoint, "checkpoint_sha256": source.sha256,
            "recipes": describe_recipes(args.methods), "observations_sha256": source.observations_sha256,
            "execute_steps": args.execute_steps, "knobs": dict(args.set), "blind": args.blind,
            "language": args.language, "versions": describe_versions()}


def _prepare(args: argparse.Namespace, source: Source, setup: Setup, settings: Mapping[str, Any], journal: Journal,
             jobs: list[Job], fidelity: dict[str, dict[str, Any]], console: Console) -> None:
    if args.fresh:
        (args.out / FILE).unlink(missing_ok=True)
        forget_compressed(setup.compressed)
    # Whatever is still to be played or measured must be there; what has been may go.
    needed = {job.method.recipe for job in _list_missing(jobs, journal)}
    if args.fidelity:
        needed |= {method.recipe for method in args.methods if method.name not in fidelity}
    with StepProgress(console) as steps:
        made = compress_missing(source, {name: folder for name, folder in setup.compressed.items() if name in needed},
                                steps.on_step)
        if made:
            steps.tell(f"carried out {', '.join(made)}; the results are in {args.out / FOLDER}")
        if args.fidelity:
            measure_methods(args.out, settings, args.methods, setup, args.fidelity, fidelity, steps.on_step)


def _list_missing(jobs: list[Job], journal: Journal) -> list[Job]:
    finished = {(record.method, record.seed) for record in journal.records}
    return [job for job in jobs if job.key not in finished]


def _play(journal: Journal, jobs: list[Job], setup: Setup, workers: int, console: Console, out: Path) -> None:
    missing = _list_missing(jobs, journal)
    finished = len(jobs) - len(missing)
    with EvaluationProgress(console, len(jobs), finished) as progress:
        before = f"; {finished} are finished already" if finished else ""
        progress.tell(f"{len(jobs)} episodes on {min(workers, len(missing))} processes{before}; results go to {out}")
        with closing(play_jobs(missing, setup, workers)) as records:
            for record in records:
                journal.add(record)
                progress.on_record(record)


def _write(out: Path, summary: dict[str, Any], console: Console) -> None:
    rows = {name: row for name, row in summary["methods"].items() if row["episodes"]}
    write_json(out / "summary.json", summary)
    if not rows:
        return
    conditions = describe_conditions(summary["settings"])
    draw_success(rows, out / "chart.png", conditions)
    draw_kept_tokens(rows, out / "kept_tokens.png", conditions)
    (out / "table.md").write_text(write_markdown(summary), encoding="utf-8")
    write_page(build_evaluation_page(summary), out / "report.html")
    for table in build_evaluation_tables(summary):
        console.print(table)
