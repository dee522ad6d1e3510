"""The evaluation itself: closed loops without ROS on all cores, kept as they end."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.progress import EvaluationProgress, build_evaluation_table
from sqap_vla_ros.errors import SqapError
from sqap_vla_ros.evaluation.chart import draw_success
from sqap_vla_ros.evaluation.closed_loop import check_setup
from sqap_vla_ros.evaluation.journal import Journal
from sqap_vla_ros.evaluation.plan import LANGUAGES, Job, Setup, plan_jobs
from sqap_vla_ros.evaluation.results import summarize_methods
from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions, write_json
from sqap_vla_ros.evaluation.workers import play_jobs
from sqap_vla_ros.models.registry import checkpoint_folder
from sqap_vla_ros.simulation.suite import choose_trials

_TOLD = ("success", "interval", "successes", "episodes")
_TOLD_OF_METHOD = (*_TOLD, "steps_to_success", "jerk_m_s3", "went_to")


def run_verb(args: argparse.Namespace) -> int:
    """Play, report, print one line of JSON."""
    console = Console(stderr=True)
    end_politely()
    setup = Setup(args.checkpoint, args.execute_steps, args.blind)
    trials = choose_trials(args.suite, args.episodes, args.seeds.start, args.scene)
    jobs = plan_jobs(args.methods, trials, exchange=args.language != LANGUAGES[0])
    check_setup(setup, jobs)
    settings = describe_settings(args)
    failure: SqapError | None = None
    interrupted, began = False, time.monotonic()
    with Journal(args.out, settings, fresh=args.fresh) as journal:
        try:
            _play(journal, jobs, setup, args.workers, console, args.out)
        except SqapError as error:
            failure = error
        except KeyboardInterrupt:
            interrupted = True
        results = summarize_methods(journal.records, settings["methods"])
        complete = len(journal.records) == len(jobs)
    summary = {**results, "complete": complete, "settings": settings,
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


def describe_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides what comes out; a folder holds results of one such only."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint_folder(args.checkpoint).glob("*.*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.read_bytes())
    return {"methods": [method.name for method in args.methods], "episodes": args.episodes,
            "first_seed": args.seeds.start, "suite": args.suite, "scene": list(args.scene),
            "checkpoint": args.checkpoint, "checkpoint_sha256": digest.hexdigest(),
            "execute_steps": args.execute_steps, "blind": args.blind, "language": args.language,
            "versions": describe_versions()}


def _play(journal: Journal, jobs: list[Job], setup: Setup, workers: int, console: Console, out: Path) -> None:
    finished = {(record.method, record.seed) for record in journal.records}
    missing = [job for job in jobs if job.key not in finished]
    with EvaluationProgress(console, len(jobs), len(finished)) as progress:
        before = f"; {len(finished)} are finished already" if finished else ""
        progress.tell(f"{len(jobs)} episodes on {min(workers, len(missing))} processes{before}; results go to {out}")
        try:
            with closing(play_jobs(missing, setup, workers)) as records:
                for record in records:
                    journal.add(record)
                    progress.on_record(record)
        except KeyboardInterrupt:
            progress.tell(f"ended by Ctrl-C after {len(journal.records)} of {len(jobs)} episodes; run the same again "
                          "to go on")
            raise


def _write(out: Path, summary: dict[str, Any], console: Console) -> None:
    rows = {name: row for name, row in summary["methods"].items() if row["episodes"]}
    write_json(out / "summary.json", summary)
    if rows:
        settings = summary["settings"]
        title = ", ".join([f"{settings['suite']} suite", *settings["scene"],
                           *([f"{settings['blind']} tokens blanked"] if settings["blind"] else []),
                           *(["another block named"] if settings["language"] != LANGUAGES[0] else [])])
        draw_success(rows, out / "chart.png", title)
        console.print(build_evaluation_table(summary))
