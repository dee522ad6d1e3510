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

"""What a soak found, as numbers and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from sqap_vla_ros.ros.rig.faults import FAULTS
from sqap_vla_ros.ros.rig.judge import Judge
from sqap_vla_ros.ros.rig.soak import Trial

MOST_GROWTH_RATIO = 0.01
# A reading of memory is the median of so many.
_READINGS = 5


@dataclass
class Leg:
    """One start of the node, and all that was done to it.

    :param clock: system or simulated
    :param trials: one entry per fault that was let loose
    :param memory_bytes: of the node, a reading after each trial
    :param warm: how many of these readings are from the warm-up
    :param failure: why the leg ended early; empty when it did not
    :param crashed: whether a process ended by itself
    :param judge: who has seen all commands
    """

    clock: str
    trials: list[Trial] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    warm: int = 0
    failure: str = ""
    crashed: bool = False
    judge: Judge | None = None

    @property
    def growth_ratio(self) -> float | None:
        """How much the node's memory grew after the warm-up, as a share; None when nothing came after it."""
        warm, after = self.memory_bytes[:self.warm][-_READINGS:], self.memory_bytes[self.warm:][-_READINGS:]
        return statistics.median(after) / statistics.median(warm) - 1.0 if warm and after else None


def summarize(legs: Sequence[Leg]) -> dict[str, Any]:
    """All legs together.

    :return: ``worked``, ``unsafe`` by kind, ``crashes``, ``memory_growth``, ``commands``, ``failure``, and ``faults``
        by name with counts and times in ms
    """
    unsafe: dict[str, int] = {}
    for leg in legs:
        for kind, count in (leg.judge.unsafe if leg.judge else {}).items():
            unsafe[kind] = unsafe.get(kind, 0) + count
    growths = [leg.growth_ratio for leg in legs if leg.growth_ratio is not None]
    growth = max(growths, default=None)
    failure = next((leg.failure for leg in legs if leg.failure), None)
    trials = [trial for leg in legs for trial in leg.trials]
    return {
        "worked": bool(trials) and not unsafe and failure is None and growth is not None and growth < MOST_GROWTH_RATIO,
        "unsafe": unsafe, "crashes": sum(leg.crashed for leg in legs), "memory_growth": growth,
        "commands": sum(leg.judge.commands for leg in legs if leg.judge), "failure": failure,
        "faults": {name: _summarize_fault([trial for trial in trials if trial.fault == name], legs, name)
                   for name in FAULTS if any(trial.fault == name for trial in trials)}}


def list_details(legs: Sequence[Leg]) -> list[dict[str, Any]]:
    """Every trial, every reading and the last unsafe commands, for ``summary.json``."""
    return [{"clock": leg.clock, "trials": [asdict(trial) for trial in leg.trials], "memory_bytes": leg.memory_bytes,
             "memory_warm": leg.warm, "memory_growth": leg.growth_ratio, "failure": leg.failure,
             "unsafe": [asdict(item) for item in leg.judge.examples] if leg.judge else []} for leg in legs]


def build_soak_table(summary: dict[str, Any]) -> Table:
    """A row for each fault.

    :param summary: as :func:`summarize` gives it
    """
    table = Table(title="Faults, and what the robot was told", title_justify="left")
    table.add_column("fault", no_wrap=True)
    for heading in ("times", "reaction ms  p50 / max", "recovery ms  p50 / max", "unsafe"):
        table.add_column(heading, justify="right")
    for name, row in summary["faults"].items():
        table.add_row(name, str(row["times"]), _say_times(row["reaction_ms"]), _say_times(row["recovery_ms"]),
                      str(row["unsafe"]))
    table.add_section()
    growth = summary["memory_growth"]
    table.add_row("all", str(sum(row["times"] for row in summary["faults"].values())), "", "",
                  str(sum(summary["unsafe"].values())))
    table.add_row("memory growth", "-" if growth is None else f"{growth:+.2%}")
    table.add_row("crashes", str(summary["crashes"]))
    return table


def _summarize_fault(trials: list[Trial], legs: Sequence[Leg], name: str) -> dict[str, Any]:
    unsafe = sum(leg.judge.unsafe_by_fault[name] for leg in legs if leg.judge)
    return {"times": len(trials), "unsafe": unsafe,
            "reaction_ms": _summarize_times([trial.reaction_s for trial in trials if trial.reaction_s is not None]),
            "recovery_ms": _summarize_times([trial.recovery_s for trial in trials])}


def _summarize_times(seconds: list[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"p50": round(1e3 * statistics.median(seconds), 1), "max": round(1e3 * max(seconds), 1)}


def _say_times(times: dict[str, float] | None) -> str:
    return "-" if times is None else f"{times['p50']:.0f} / {times['max']:.0f}"
