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

"""Cells that have landed, as lines of results, and as a table in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqap_vla_ros.bags.sweep_plan import Cell
from sqap_vla_ros.evaluation.statistics import TOTAL

NOTHING = "-"
RECORDED = "recorded"
HEADINGS = ("method", "bag", "seed", "looks", "compared with", "MSE", "MAE", "cosine, mean / min", "gripper agrees",
            "tokens kept", "gripper tokens kept", "latency ms, p50 / p95")
BESIDE = ("Latency was measured while other cells ran beside on the same cores: compare it with nothing. `--workers 1` "
          "measures it anew in another folder, cell by cell.")
ALONE = "Latency was measured with one cell at a time."


@dataclass(frozen=True)
class Landed:
    """One cell that has ended.

    :param cell: which
    :param summary: of its replay; None when it failed
    :param failure: why, in a sentence; empty when it did not
    :param begun: how often it was begun, by all runs of the sweep; 0 where that is not known
    :param alone: whether no other cell ever ran beside it
    """

    cell: Cell
    summary: Mapping[str, Any] | None
    failure: str = ""
    begun: int = 0
    alone: bool = False


def build_row(landed: Landed) -> dict[str, Any]:
    """A cell as a line of ``results.jsonl``: plain JSON values, None for what is not known."""
    cell, summary = landed.cell, landed.summary
    row: dict[str, Any] = {"cell": cell.name, "method": cell.method.name, "recipe": cell.method.recipe,
                           "rule": cell.method.rule, "pruned_ratio": cell.method.pruned_ratio, "bag": cell.bag_name,
                           "seed": cell.seed, "begun": landed.begun, "alone": landed.alone}
    if summary is None:
        return {**row, "state": "failed", "failure": landed.failure}
    label = cell.method.name
    tokens, timing = summary["tokens"][label], summary["timing"][label]
    latency = timing["latency_ms"].get(TOTAL)
    return {**row, "state": "finished", "looks": summary["bag"]["looks"],
            "against": _find_comparison(summary, label, cell.against) if cell.against else None,
            RECORDED: _find_comparison(summary, label, RECORDED),
            "kept_mean": tokens["kept_mean"], "total": tokens["total"],
            "gripper_kept_mean": tokens["gripper_kept_mean"],
            "latency_ms": {name: latency[name] for name in ("p50", "p95")} if latency else None,
            "deadline_misses": timing["deadline_misses"]}


def say_latency(rows: Sequence[Mapping[str, Any]]) -> str:
    """What finished cells' latency is good for."""
    return ALONE if all(row["alone"] for row in rows) else BESIDE


def write_markdown(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The cells as a table, those that failed below it, and how to read it."""
    finished = [row for row in rows if row["state"] == "finished"]
    failed = [f"- `{row['cell']}`: {row['failure']}" for row in rows if row["state"] == "failed"]
    lines = [_join(HEADINGS), _join(["---"] * 2 + ["---:"] * (len(HEADINGS) - 2)), *(_join(say_row(row))
                                                                                     for row in finished)]
    return "\n".join([f"# {title}", "", *(lines if finished else ["No cell is finished."]), "",
                      *(["Failed:", "", *failed, ""] if failed else []),
                      *([say_latency(finished), ""] if finished else [])])


def say_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A finished cell in words, under :data:`HEADINGS`."""
    found = row["against"] or row[RECORDED] or {}
    latency, cosine = row["latency_ms"], found.get("cosine") or {}
    return (row["method"], row["bag"], str(row["seed"]), str(row["looks"]), found.get("with", NOTHING),
            _say("{:.2e}", found.get("mse")), _say("{:.2e}", found.get("mae")),
            _say("{:.4f} / {:.4f}", cosine.get("mean"), cosine.get("min")),
            _say("{:.1%}", found.get("gripper_agreement")), _say("{:.1f} of {}", row["kept_mean"], row["total"]),
            _say("{:.1%}", row["gripper_kept_mean"]),
            _say("{:.1f} / {:.1f}", *((latency["p50"], latency["p95"]) if latency else (None,))))


def _find_comparison(summary: Mapping[str, Any], label: str, other: str) -> dict[str, Any] | None:
    for found in summary["compared"]:
        if (found["policy"], found["with"]) == (label, other):
            return {name: found[name] for name in ("with", "looks", "mse", "mae", "cosine", "gripper_agreement")}
    return None


def _say(form: str, *values: float | None) -> str:
    return NOTHING if None in values else form.format(*values)


def _join(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
