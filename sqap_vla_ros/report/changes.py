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

"""What changes from one thing to another, with what its interval tells: in words, as bars, and of paired episodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqap_vla_ros.report.figures import Series, choose_tone, plot_bars
from sqap_vla_ros.report.numbers import DASH
from sqap_vla_ros.report.page import Plot, Section, Table, Tile

NO_DIFFERENCE = (
    "An interval that includes 0 means that these data show no difference. That is not to say that there is none: it "
    "may be smaller than so little data can tell. And of twenty such intervals of things that do not differ at all, "
    "one lies beside 0 by chance, so in a long list some do.")
ROUGHER = "4-bit weights and dropped tokens have been found to make motion rougher (arXiv 2603.19131)."
_MOTION_NOTE = (f"How smoothly a policy moves may suffer before its success does: {ROUGHER} Jerk is over all scenes "
                "that both played, path and steps over those that both solved; 1 is no difference.")
_RATIOS = ("jerk", "path", "steps")
_SPACE = "\u00a0"


@dataclass(frozen=True)
class Bar:
    """A change.

    :param name: of what is compared
    :param value: the change
    :param interval: low and high, 95 %; None where there is too little to tell
    """

    name: str
    value: float
    interval: Sequence[float] | None


@dataclass(frozen=True)
class EpisodePair:
    """Two methods on the same scenes.

    :param name: of the one compared, with its run where there are several
    :param first: of the one that it is compared with
    :param change: as :func:`~sqap_vla_ros.evaluation.results.compare_records` gives it
    """

    name: str
    first: str
    change: Mapping[str, Any]

    @property
    def bar(self) -> Bar:
        """The change of success, in points."""
        return Bar(self.name, 100.0 * self.change["difference"], [100.0 * bound for bound in self.change["interval"]])


def plot_changes(bars: Mapping[str, Sequence[Bar]], axis: str, description: str) -> Plot:
    """Changes as bars from 0, with whiskers for their intervals; one that crosses 0 has shown no difference.

    :param bars: by what changes
    :param axis: its title, with the unit
    :param description: in a sentence
    """
    names = list(dict.fromkeys(bar.name for group in bars.values() for bar in group))
    series = []
    for index, (what, group) in enumerate(bars.items()):
        found = {bar.name: bar for bar in group}
        series.append(Series(what, [found[name].value if name in found else None for name in names],
                             choose_tone(index),
                             intervals=[found[name].interval if name in found else None for name in names]))
    return plot_bars(names, series, description, y_title=axis)


def say_change(value: float, interval: Sequence[float] | None, form: str) -> str:
    """A change with its interval in one line, as '+1.2 (-0.4 to +2.8)'.

    :param form: of one number, as '{:+.1f}'
    """
    if interval is None:
        return form.format(value)
    return f"{form.format(value)} ({form.format(interval[0])} to {form.format(interval[1])})".replace(" ", _SPACE)


def judge_change(interval: Sequence[float] | None, more: str, less: str, middle: float = 0.0) -> str:
    """What an interval tells, in words.

    :param more: where it lies above ``middle``
    :param less: where it lies below
    """
    if interval is None:
        return "too little data to tell"
    low, high = interval
    if low <= middle <= high:
        return "no difference shown"
    return more if low > middle else less


def tile_episodes(pairs: Sequence[EpisodePair]) -> Iterator[Tile]:
    """A figure for each pair."""
    for pair in pairs:
        low, high = pair.bar.interval or ()
        yield Tile(f"{pair.name} against {pair.first}", f"{pair.bar.value:+.1f} points",
                   f"of success, 95 %: {low:+.1f} to {high:+.1f}; {judge_change(pair.bar.interval, 'more', 'less')}")


def show_episodes(pairs: Sequence[EpisodePair]) -> Iterator[Section]:
    """What is known of methods that played the same scenes: their success, then their motion.

    :param pairs: each with at least one scene
    """
    if not pairs:
        return
    rows = [[pair.name, say_change(pair.bar.value, pair.bar.interval, "{:+.1f}"),
             judge_change(pair.bar.interval, "more", "less"), pair.first, str(pair.change["episodes"]),
             *(str(pair.change[count]) for count in ("both", "only_first", "only_this", "neither"))] for pair in pairs]
    yield Section("Success in pairs, scene by scene", NO_DIFFERENCE, [
        plot_changes({"change of success": [pair.bar for pair in pairs]}, "change of success (points)",
                     "Change of success on the same scenes, with the 95 % interval of a paired bootstrap."),
        Table(["method", "change (points)", "that is", "against", "scenes", "both solved", "only the other",
               "only this", "neither"], rows)])
    bars = {ratio: [_bar_ratio(pair, ratio) for pair in pairs if pair.change.get(ratio)] for ratio in _RATIOS}
    bars = {ratio: found for ratio, found in bars.items() if found}
    if bars:
        yield Section("Motion in pairs, scene by scene", _MOTION_NOTE, [
            plot_changes(bars, "change (%)", "Change of jerk, path and steps on the same scenes, with the 95 % "
                                             "interval of a paired bootstrap."),
            Table(["method", "against", *(f"{ratio}, ratio" for ratio in _RATIOS)],
                  [[pair.name, pair.first, *(_say_ratio(pair.change.get(ratio)) for ratio in _RATIOS)]
                   for pair in pairs])])


def _bar_ratio(pair: EpisodePair, ratio: str) -> Bar:
    found = pair.change[ratio]
    return Bar(pair.name, 100.0 * (found["ratio"] - 1.0), [100.0 * (bound - 1.0) for bound in found["interval"]])


def _say_ratio(found: Mapping[str, Any] | None) -> str:
    return DASH if found is None else say_change(found["ratio"], found["interval"], "{:.2f}")
