"""How a demo shows itself while it runs: a bar in a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sqap_vla_ros.data import Episode, EpisodeResult
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.evaluation.statistics import TOTAL


class DemoProgress:
    """A listener that draws; as a context manager it cleans up the terminal.

    :param console: where to
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(TextColumn("{task.description}", table_column=None), BarColumn(bar_width=24),
                                  MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"),
                                  console=console, disable=not console.is_terminal)
        self._count = 0

    def __enter__(self) -> DemoProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, sentence: str) -> None:
        """One line of prose."""
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

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


def build_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """The demo's result: one column per method.

    :param rows: by label, as ``summary.json`` has them
    """
    table = Table(title="Same scenes, same instructions", title_justify="left")
    table.add_column("")
    for row in rows.values():
        table.add_column(row["method"], justify="right")
    columns = list(rows.values())
    table.add_row("success", *(f"{row['successes']}/{row['episodes']}  ({row['success']:.0%})" for row in columns))
    table.add_row("  95 % interval", *(f"{row['interval'][0]:.0%} to {row['interval'][1]:.0%}" for row in columns))
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
