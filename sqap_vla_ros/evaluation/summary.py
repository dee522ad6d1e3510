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

"""`summary.json`: everything that was measured, and whether the demo worked."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sqap_vla_ros.data import Episode
from sqap_vla_ros.evaluation.demo import MethodRun
from sqap_vla_ros.evaluation.methods import FLOAT
from sqap_vla_ros.evaluation.statistics import summarize_times, wilson_interval

SUCCESS_WANTED = 0.8
WEIGHT_RATIO_WANTED = 0.16
COMPRESSED = "compressed"
_PACKAGES = ("torch", "numpy", "mujoco", "rclpy", "safetensors")


def label_runs(runs: Sequence[MethodRun]) -> dict[str, MethodRun]:
    """Runs by their name in the summary: 'float', 'compressed' for the first other, then the method's own."""
    labels: dict[str, MethodRun] = {}
    for run in runs:
        name = run.method.name
        labels[COMPRESSED if name != FLOAT and COMPRESSED not in labels else name] = run
    return labels


def summarize_run(run: MethodRun) -> dict[str, Any]:
    """Success per task with its interval, latency per stage, tokens and bytes of one method."""
    tasks: dict[str, dict[str, int]] = {}
    for result in run.results:
        task = tasks.setdefault(result.episode.task, {"successes": 0, "episodes": 0})
        task["successes"] += result.success
        task["episodes"] += 1
    successes, episodes = sum(result.success for result in run.results), len(run.results)
    kept = [count for result in run.results for count in result.kept_tokens]
    steps = [result.steps for result in run.results if result.success]
    return {
        "method": run.method.name,
        "success": round(successes / episodes, 4) if episodes else 0.0,
        "successes": successes,
        "episodes": episodes,
        "interval": [round(bound, 4) for bound in wilson_interval(successes, episodes)],
        "tasks": tasks,
        "mean_steps_to_success": round(statistics.mean(steps), 2) if steps else None,
        "inferences": sum(len(result.times) for result in run.results),
        "latency_ms": summarize_times(entry for result in run.results for entry in result.times),
        "kept_tokens": round(statistics.median(kept)) if kept else None,
        **{name: int(run.description[name]) if name in run.description else None
           for name in ("total_tokens", "weight_bytes", "float32_bytes")},
        **{name: run.description.get(name) for name in ("family", "engine")},
    }


def summarize_demo(runs: Sequence[MethodRun], episodes: Sequence[Episode], settings: dict[str, Any]) -> dict[str, Any]:
    """The whole demo.

    :param runs: what was played
    :param episodes: what was to be played
    :param settings: flags worth keeping: seed, checkpoint, simulation speed
    """
    labels = label_runs(runs)
    rows = {label: summarize_run(run) for label, run in labels.items()}
    played = sum(row["episodes"] for row in rows.values())
    share = sum(row["successes"] for row in rows.values()) / played if played else 0.0
    complete = bool(rows) and all(row["episodes"] == len(episodes) for row in rows.values())
    ratio = _weight_ratio(rows)
    light = COMPRESSED not in rows or (ratio is not None and ratio <= WEIGHT_RATIO_WANTED)
    return {
        **rows,
        "success": round(share, 4),
        "weight_ratio": None if ratio is None else round(ratio, 4),
        "complete": complete,
        "worked": complete and share >= SUCCESS_WANTED and light,
        "wanted": {"success": SUCCESS_WANTED, "weight_ratio": WEIGHT_RATIO_WANTED},
        "scenes": [_describe_scene(index, episode, labels) for index, episode in enumerate(episodes)],
        "settings": settings,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {"system": platform.system(), "architecture": platform.machine(), "processor": _read_processor(),
            "cores": os.cpu_count()}


def describe_versions() -> dict[str, str | None]:
    """Versions of what the numbers depend on; None for what has no record of its version."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _weight_ratio(rows: dict[str, dict[str, Any]]) -> float | None:
    row = rows.get(COMPRESSED)
    if row is None or not row["weight_bytes"] or not row["float32_bytes"]:
        return None
    return float(row["weight_bytes"] / row["float32_bytes"])


def _describe_scene(index: int, episode: Episode, labels: dict[str, MethodRun]) -> dict[str, Any]:
    outcomes = {label: {"success": run.results[index].success, "steps": run.results[index].steps}
                for label, run in labels.items() if index < len(run.results)}
    return {"seed": episode.seed, "task": episode.task, "color": episode.color, "instruction": episode.instruction,
            **outcomes}


def _read_processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
