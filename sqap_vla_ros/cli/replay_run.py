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

"""The replay itself: policies chosen, the bag looked at, results written as files, a bag and a page."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sqap_vla_ros.bags.answering import ANSWERS, OVERLAYS
from sqap_vla_ros.bags.contract import Names, find_missing, list_wanted, parse_remap
from sqap_vla_ros.bags.reading import open_bag
from sqap_vla_ros.bags.replaying import (
    LOOKS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    ReplayRequest,
    is_replay,
    read_looks,
    replay,
)
from sqap_vla_ros.bags.results import RESULT_BAG, write_result_bag
from sqap_vla_ros.bags.writing import check_labels
from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.cli.progress import StepProgress
from sqap_vla_ros.config import Config, build_config
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.methods import FLOAT, STORED, Method, parse_method
from sqap_vla_ros.models.registry import describe_checkpoint
from sqap_vla_ros.parameter_file import read_parameter_file
from sqap_vla_ros.policy.wiring import choose_settings
from sqap_vla_ros.report.html import write_page
from sqap_vla_ros.report.replay_page import build_replay_page

PAGE = "report.html"


def run_verb(args: argparse.Namespace) -> int:
    """Replay, report, print one line of JSON."""
    console = Console(stderr=True)
    end_politely()
    knobs = {**({} if args.config is None else read_parameter_file(args.config, args.namespace)), **dict(args.set)}
    config, names = build_config(knobs), Names(args.namespace, parse_remap(args.remap))
    if args.list:
        return _list(args, config, names, console)
    bag = args.bag.resolve()
    request = ReplayRequest(bag, args.out or bag.with_name(f"{bag.name}-replay"),
                            _choose_policies(args, knobs, config), knobs, args.instruction.strip(), args.limit,
                            args.namespace, names.remap, overlays=not args.no_overlays)
    if args.fresh:
        _forget(request.out)
    try:
        with StepProgress(console) as steps:
            summary = replay(request, steps.on_step)
            looks = read_looks(request.out)
            write_page(build_replay_page(summary, [asdict(look) for look in looks], request.out), request.out / PAGE)
            write_result_bag(request.out, looks, build_config(request.policies[0][1], config), steps.on_step)
    except KeyboardInterrupt:
        console.print("ended by Ctrl-C; run the same again to go on", highlight=False, markup=False, soft_wrap=True)
        return INTERRUPTED
    for table in _build_tables(summary):
        console.print(table)
    for sentence, count in summary["bag"]["refused"].items():
        console.print(f"{count} looks were not answered: {sentence}", highlight=False, markup=False, soft_wrap=True)
    for sentence in summary["bag"]["complaints"]:
        console.print(f"about the bag: {sentence}", highlight=False, markup=False, soft_wrap=True)
    print(json.dumps({"looks": summary["bag"]["looks"], "answered": summary["answered"],
                      "compared": summary["compared"], "tf": summary["tf"], "tokens": summary["tokens"],
                      "summary": str(request.out / SUMMARY_FILE), "report": str(request.out / PAGE),
                      "bag": str(request.out / RESULT_BAG) if summary["answered"] else None}), flush=True)
    return 0


def _choose_policies(args: argparse.Namespace, knobs: Mapping[str, Any],
                     config: Config) -> tuple[tuple[str, dict[str, Any]], ...]:
    # The one that is asked about, then those that it is compared with, each by a label of its own.
    checkpoint = args.checkpoint or config.model.checkpoint
    method = args.method
    if method is None:
        recipe = config.model.recipe
        if "model.recipe" not in knobs and _is_compressed(checkpoint, config):
            recipe = STORED
        method = Method(recipe, config.prune.rule, config.prune.pruned_ratio if config.prune.rule != "none" else 0.0)
    policies = {method.name: {"model.checkpoint": checkpoint, **method.knobs}}
    for text in args.against:
        label, chosen = _read_other(text, checkpoint, config)
        if label in policies:
            raise ConfigError(f"--against {text} is '{label}', which is there already; name another, or leave it out")
        policies[label] = chosen
    check_labels(policies)
    return tuple(policies.items())


def _read_other(text: str, checkpoint: str, config: Config) -> tuple[str, dict[str, Any]]:
    try:
        method = parse_method(text)
    except ConfigError as error:
        if not Path(text).exists():
            raise ConfigError(f"--against '{text}' is neither a folder nor a method: {error}") from error
        recipe = STORED if _is_compressed(text, config) else FLOAT
        return Path(text).resolve().name, {"model.checkpoint": text, **Method(recipe).knobs}
    return method.name, {"model.checkpoint": checkpoint, **method.knobs}


def _is_compressed(checkpoint: str, config: Config) -> bool:
    return describe_checkpoint(checkpoint, settings=choose_settings(config.model)).artifact is not None


def _forget(folder: Path) -> None:
    # Only what a replay has made.
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_replay(folder):
        raise ConfigError(f"{folder} holds no replay, so --fresh does not empty it; take another folder")
    for name in (ANSWERS, OVERLAYS, RESULT_BAG, LOOKS_FILE, SUMMARY_FILE, PAGE, RUN_FILE):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _list(args: argparse.Namespace, config: Config, names: Names, console: Console) -> int:
    with open_bag(args.bag) as bag:
        wanted = list_wanted(config, names, args.instruction)
        missing = find_missing(wanted, bag.topics)
        uses = {item.name for item in wanted}
        table = Table(title=f"{args.bag}: {(bag.end_ns - bag.start_ns) * 1e-9:.1f} s", title_justify="left")
        for heading in ("topic", "type", "messages", "read"):
            table.add_column(heading, justify="right" if heading == "messages" else "left", overflow="fold")
        for name, facts in sorted(bag.topics.items()):
            table.add_row(name, facts.type_name, str(facts.count), "yes" if name in uses else "")
        console.print(table)
        lacking = [(item, sentence) for item, sentence in missing if item.without]
        for item, sentence in lacking:
            console.print(f"{'missing' if item.required else 'without'}: {sentence}; {item.without}", highlight=False,
                          markup=False, soft_wrap=True)
        for sentence in bag.complaints:
            console.print(f"damaged: {sentence}", highlight=False, markup=False, soft_wrap=True)
        print(json.dumps({"bag": str(args.bag), "topics": {name: {"type": facts.type_name, "count": facts.count}
                                                           for name, facts in sorted(bag.topics.items())},
                          "missing": {item.name: sentence for item, sentence in lacking},
                          "can_be_replayed": not any(item.required for item, _ in missing),
                          "complaints": list(bag.complaints)}), flush=True)
    return 0


def _build_tables(summary: Mapping[str, Any]) -> list[Table]:
    compared = Table(title=f"{summary['answered']} looks", title_justify="left")
    for heading in ("policy", "with", "MSE", "MAE", "cosine, mean", "least", "gripper agrees"):
        compared.add_column(heading, justify="left" if heading in ("policy", "with") else "right")
    for row in summary["compared"]:
        cosine = row["cosine"] or {"mean": None, "min": None}
        compared.add_row(row["policy"], row["with"], *(_say(value) for value in (
            row["mse"], row["mae"], cosine["mean"], cosine["min"], row["gripper_agreement"])))
    times = Table(title="times in ms, on this machine now", title_justify="left")
    for heading in ("policy", "p50", "p95", "p99", "most", "late", "tokens kept", "gripper's"):
        times.add_column(heading, justify="left" if heading == "policy" else "right")
    for label, tokens in summary["tokens"].items():
        timing = summary["timing"][label]
        total = timing["latency_ms"].get("total", {})
        times.add_row(label, *(_say(total.get(name)) for name in ("p50", "p95", "p99", "max")),
                      str(timing["deadline_misses"]), f"{_say(tokens['kept_mean'])} of {_say(tokens['total'])}",
                      _say(tokens["gripper_kept_mean"]))
    return [compared, times] if summary["compared"] else [times]


def _say(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
