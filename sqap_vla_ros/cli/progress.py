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

"""How a verb shows itself while it runs: a bar in a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sqap_vla_ros.data import Episode, EpisodeResult
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.evaluation.results import EpisodeRecord
from sqap_vla_ros.evaluation.statistics import TOTAL
from sqap_vla_ros.evaluation.table import build_sections

_LINE_EVERY_S = 10.0
_DisplayType = TypeVar("_DisplayType", bound="_Display")


class _Display:
    # As a context manager it cleans up the terminal.
    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress

    def __enter__(self: _DisplayType) -> _DisplayType:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, sentence: str) -> None:
        """One line of prose."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)


class DemoProgress(_Display):
    """A listener that draws; as a context manager it cleans up the terminal.

    :param console: where to
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, Progress(
            TextColumn("{task.description}", table_column=None), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[now]}"), console=console, disable=not console.is_terminal))
        self._count = 0

    def on_method(self, method: Method, episodes: int) -> None:
        """A new bar."""
        self._count, self._episodes = 0, episodes
        self.tell(f"{method.name}: starting the policy")
        self._bar = self._progress.add_task(method.name, total=episodes, now="starting the policy")

    def on_episode(self, episode: Episode) -> None:
        """Say what is being tried."""
        self._progress.update(self._bar, now=episode.instruction)

    def on_result(self, result: EpisodeResult) -> None:
        """Say how it went."""
        self._count += 1
        mark, color = ("done", "green") if result.success else ("not done", "red")
        self._console.print(
            f"  {self._count:>3}/{self._episodes}  {result.episode.instruction:36} "
            f"[{color}]{mark:8}[/{color}] {result.steps:>3} steps", highlight=False, soft_wrap=True)
        self._progress.update(self._bar, advance=1, now="")


class StepProgress(_Display):
    """A bar for each stage of a longer work; where there is no terminal, a line when it begins, now and then, and last.

    :param console: where to
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, Progress(TextColumn("{task.description}"), BarColumn(bar_width=24),
                                           MofNCompleteColumn(), TimeElapsedColumn(), console=console,
                                           disable=not console.is_terminal))
        self._bars: dict[str, TaskID] = {}
        self._told_s = 0.0

    def on_step(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar."""
        is_new, now_s = stage not in self._bars, time.monotonic()
        if is_new:
            self._bars[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._bars[stage], completed=done, total=total)
        if (is_new or done == total or now_s - self._told_s >= _LINE_EVERY_S) and not self._console.is_terminal:
            self._told_s = now_s
            self.tell(f"  {done}/{total} {stage}")


class EvaluationProgress(_Display):
    """Counts episodes and says how long the rest will take; as a context manager it cleans up the terminal.

    :param console: where to
    :param total: episodes in all
    :param finished: those finished by an earlier run
    """

    def __init__(self, console: Console, total: int, finished: int) -> None:
        super().__init__(console, Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[now]}"), console=console,
            disable=not console.is_terminal))
        self._total, self._before, self._count = total, finished, finished
        self._tally: dict[str, list[int]] = {}
        self._began = self._told = time.monotonic()
        self._bar = self._progress.add_task("episodes", total=total, completed=finished, now="starting the workers")

    def on_record(self, record: EpisodeRecord) -> None:
        """Count an episode that has just ended."""
        self._count += 1
        tally = self._tally.setdefault(record.method, [0, 0])
        tally[0] += record.success
        tally[1] += 1
        now = time.monotonic()
        words = f"{record.method}: {tally[0]} of {tally[1]} done"
        self._progress.update(self._bar, advance=1, now=words)
        if not self._console.is_terminal and (now - self._told >= _LINE_EVERY_S or self._count == self._total):
            self._told = now
            left_s = (now - self._began) / (self._count - self._before) * (self._total - self._count)
            self.tell(f"  {self._count:>5}/{self._total}  {words}, about {_say_duration(left_s)} left")


class SweepProgress(_Display):
    """Counts the cells of a sweep that have ended and those that run; as a context manager it cleans up the terminal.

    :param console: where to
    :param total: cells in all
    :param finished: those finished by an earlier run
    """

    def __init__(self, console: Console, total: int, finished: int) -> None:
        super().__init__(console, Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[now]}"), console=console,
            disable=not console.is_terminal))
        self._total, self._count, self._slots = total, finished, 0
        self._bar = self._progress.add_task("cells", total=total, completed=finished, now="starting Ray")

    def on_slots(self, slots: int) -> None:
        """Say how many run at a time."""
        self._slots = slots
        self._progress.update(self._bar, now=self._say_running())

    def on_landed(self, name: str, failure: str) -> None:
        """Count a cell that has just ended."""
        self._count += 1
        self._progress.update(self._bar, advance=1, now=self._say_running())
        self.tell(f"  {self._count:>4}/{self._total}  {name}{f': failed: {failure}' if failure else ''}")

    def _say_running(self) -> str:
        return f"{min(self._slots, self._total - self._count)} running"


class TimedProgress(_Display):
    """A bar for each stage of a work that ends with the time; where there is no terminal, a line now and then.

    :param console: where to
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"), console=console, disable=not console.is_terminal))
        self._told_s = -_LINE_EVERY_S

    def on_stage(self, stage: str, total_s: float) -> None:
        """A new bar."""
        self._stage, self._total_s = stage, total_s
        self._bar = self._progress.add_task(stage, total=total_s, now="")
        self.tell(f"{stage}: {_say_duration(total_s)}")

    def on_time(self, passed_s: float, now: str) -> None:
        """Move the bar, and say what is done now."""
        passed_s = min(passed_s, self._total_s)
        self._progress.update(self._bar, completed=passed_s, now=now)
        if not self._console.is_terminal and time.monotonic() - self._told_s >= _LINE_EVERY_S:
            self._told_s = time.monotonic()
            self.tell(f"  {_say_duration(passed_s)} of {_say_duration(self._total_s)}  {now}")


def build_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """The demo's result: one column per method.

    :param rows: by label, as ``summary.json`` has them
    """
    columns = list(rows.values())
    table = Table(title="Same scenes, same instructions", title_justify="left")
    table.add_column("")
    for row in columns:
        table.add_column(row["method"], justify="right")
    table.add_row("success", *(f"{row['successes']}/{row['episodes']}  ({row['success']:.0%})" for row in columns))
    table.add_row("  95 % interval", *(_say_bounds(row["interval"]) for row in columns))
    for task in dict.fromkeys(name for row in columns for name in row["tasks"]):
        table.add_row(f"  {task}", *(_say_count(row["tasks"].get(task)) for row in columns))
    table.add_section()
    stages = list(dict.fromkeys(name for row in columns for name in row["latency_ms"] if name != TOTAL))
    for stage in [*stages, TOTAL]:
        table.add_row(f"{stage} ms  p50 / p95", *(_say_times(row["latency_ms"].get(stage)) for row in columns))
    table.add_section()
    table.add_row("visual tokens kept", *(_say_share(row["kept_tokens"], row["total_tokens"]) for row in columns))
    table.add_row("decoder weights", *(_say_bytes(row["weight_bytes"], row["float32_bytes"]) for row in columns))
    return table


def build_evaluation_tables(summary: Mapping[str, Any]) -> list[Table]:
    """An evaluation's result, a row for each method, in tables that fit a terminal.

    :param summary: as ``summary.json`` has it
    """
    tables = []
    for section in build_sections(summary):
        table = Table(title=section.title, title_justify="left")
        table.add_column("", no_wrap=True)
        for heading, cells in zip(section.headings, zip(*section.cells, strict=True), strict=True):
            # Where it is narrow, headings are broken and numbers are not.
            table.add_column(heading, justify="right", min_width=max(map(len, cells)))
        for name, cells in zip(summary["methods"], section.cells, strict=True):
            table.add_row(name, *cells)
        tables.append(table)
    return tables


def _say_bounds(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.0%} to {bounds[1]:.0%}"


def _say_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _say_count(counts: Mapping[str, int] | None) -> str:
    return "-" if counts is None else f"{counts['successes']}/{counts['episodes']}"


def _say_times(times: Mapping[str, float] | None) -> str:
    return "-" if times is None else f"{times['p50']:.1f} / {times['p95']:.1f}"


def _say_share(kept: int | None, total: int | None) -> str:
    return "-" if kept is None else f"{kept} of {total if total is not None else '?'}"


def _say_bytes(stored: int | None, full: int | None) -> str:
    if not stored or not full:
        return "-"
    return f"{stored / 1e6:.2f} MB  ({stored / full:.3f} x)"
