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

"""The measurement itself: engines in turn, a table for people, files and a line of JSON for the rest."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sqap_vla_ros.cli.main import INTERRUPTED, end_politely
from sqap_vla_ros.config import Config, build_config
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.bench import (
    BenchRounds,
    build_engine,
    describe_engine,
    describe_instructions,
    prepare_observations,
    run_rounds,
    summarize_rounds,
)
from sqap_vla_ros.evaluation.bench_chart import draw_bench
from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions, write_json
from sqap_vla_ros.policy.policy import Policy

_OBSERVATIONS = 16


def run_verb(args: argparse.Namespace) -> int:
    """Measure, report, print one line of JSON."""
    console = Console(stderr=True)
    end_politely()
    config = _build_config(args)
    observations = prepare_observations(args.checkpoint, args.observations, _OBSERVATIONS)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {args.out} cannot be written: {error.strerror}; take another folder") from error
    policies = _build_policies(args, config, console)
    rounds, interrupted, began = BenchRounds(), False, time.monotonic()
    with Progress(TextColumn("rounds"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
                  TextColumn("left"), TimeRemainingColumn(), console=console,
                  disable=not console.is_terminal) as progress:
        bar = progress.add_task("rounds", total=args.rounds)
        try:
            run_rounds(policies, observations, args.rounds, rounds, lambda: progress.advance(bar))
        except KeyboardInterrupt:
            interrupted = True
    if not rounds.milliseconds:
        raise KeyboardInterrupt
    summary = {
        **summarize_rounds(rounds, args.engines), "llm_weight_ratio": _weight_ratio(policies),
        "rounds": len(rounds.milliseconds), "complete": len(rounds.milliseconds) == args.rounds,
        "settings": _describe_settings(args, policies, len(observations)),
        "run": {"wall_s": round(time.monotonic() - began, 1), "interrupted": interrupted},
        "machine": {**describe_machine(), "instructions": describe_instructions()}, "versions": describe_versions()}
    write_json(args.out / "bench.json", {**summary, "milliseconds": rounds.milliseconds})
    quantized = next((policy for policy in policies.values() if policy.report is not None), None)
    method = "" if quantized is None else f", {_name_method(args)}"
    draw_bench(summary["engines"], args.out / "chart.png",
               f"One inference of {args.checkpoint}{method}, {args.threads} thread(s)")
    console.print(build_bench_table(summary))
    if interrupted:
        console.print(f"ended by Ctrl-C after {len(rounds.milliseconds)} of {args.rounds} rounds", highlight=False)
    told = ("engines", "ratios", "intervals", "llm_weight_ratio", "rounds", "complete")
    print(json.dumps({**{key: summary[key] for key in told}, "summary": str(args.out / "bench.json")}), flush=True)
    return INTERRUPTED if interrupted else 0


def build_bench_table(summary: Mapping[str, Any]) -> Table:
    """One column per engine.

    :param summary: as ``bench.json`` has it
    """
    rows, settings = summary["engines"], summary["settings"]
    table = Table(title=f"One inference, {settings['threads']} thread(s), {summary['rounds']} rounds: median "
                        "(p10 to p90), ms", title_justify="left")
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for stage in next(iter(rows.values()))["stages_ms"]:
        cells = ["{:.2f}  ({:.2f} to {:.2f})".format(row["stages_ms"][stage], *row["spread_ms"][stage])
                 for row in rows.values()]
        table.add_row(stage, *cells, style="bold" if stage == "llm" else None)
    keys = list(dict.fromkeys(key for ratios in summary["ratios"].values() for key in ratios))
    if keys:
        table.add_section()
    for key in keys:
        stage, _, base = key.partition("_vs_")
        table.add_row(f"{stage}: times faster than {base}", *(
            _say_ratio(summary["ratios"].get(name, {}).get(key), summary["intervals"].get(name, {}).get(key))
            for name in rows))
    table.add_section()
    about = settings["engines"]
    table.add_row("visual tokens kept", *(f"{about[name]['kept_tokens']} of {about[name]['total_tokens']}"
                                          for name in rows))
    table.add_row("decoder weights", *("{:.2f} MB  ({:.3f} x)".format(
        about[name]["weight_bytes"] / 1e6, about[name]["weight_bytes"] / about[name]["float32_bytes"])
        for name in rows))
    return table


def _build_config(args: argparse.Namespace) -> Config:
    return build_config({**dict(args.set), **args.prune.knobs, "model.recipe": args.recipe,
                         "model.checkpoint": args.checkpoint, "model.threads": args.threads})


def _build_policies(args: argparse.Namespace, config: Config, console: Console) -> dict[str, Policy]:
    policies = {}
    for name in args.engines:
        with console.status(f"preparing {name}"):
            if not console.is_terminal:
                console.print(f"preparing {name}", highlight=False)
            policies[name] = build_engine(name, config)
    return policies


def _name_method(args: argparse.Namespace) -> str:
    return str(args.prune.name.replace("w4a4", args.recipe, 1))


def _weight_ratio(policies: Mapping[str, Policy]) -> float | None:
    for policy in policies.values():
        if policy.report is not None:
            about = describe_engine(policy)
            return round(about["weight_bytes"] / about["float32_bytes"], 5)
    return None


def _describe_settings(args: argparse.Namespace, policies: Mapping[str, Policy], observations: int) -> dict[str, Any]:
    return {"checkpoint": args.checkpoint, "method": _name_method(args), "threads": torch.get_num_threads(),
            "rounds": args.rounds, "observations": observations,
            "engines": {name: describe_engine(policy) for name, policy in policies.items()}}


def _say_ratio(ratio: float | None, interval: list[float] | None) -> str:
    return "-" if ratio is None or interval is None else "{:.2f}  ({:.2f} to {:.2f})".format(ratio, *interval)
