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

"""An evaluation's numbers in words, a row for each method: for a terminal in sections, for Markdown side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqap_vla_ros.evaluation.plan import LANGUAGES

NOTHING = "-"
_FIDELITY = {"action_mse": ("action MSE", "{:.2e}"), "action_cosine": ("action cosine", "{:.4f}"),
             "score_rank_correlation": ("rank correlation of scores", "{:.3f}"),
             "top_overlap": ("overlap of the highest scores", "{:.3f}")}
_PLACES = {"named": "ended at the block named", "replaced": "at the one named before", "elsewhere": "elsewhere"}
_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """Some columns that belong together.

    :param title: what they are about
    :param headings: of the columns
    :param cells: a row for each method, in order
    """

    title: str
    headings: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def describe_conditions(settings: Mapping[str, Any]) -> str:
    """What was played, in a few words."""
    return ", ".join([f"{settings['suite']} suite", *settings["scene"],
                      *([f"{settings['blind']} tokens blanked"] if settings["blind"] else []),
                      *(f"{name}={value}" for name, value in settings.get("knobs", {}).items()),
                      *(["another block named"] if settings["language"] != LANGUAGES[0] else [])])


def build_sections(summary: Mapping[str, Any]) -> list[Section]:
    """Success, success by group, motion, and what else there is.

    :param summary: as ``summary.json`` has it
    """
    rows = list(summary["methods"].values())
    return [section for section in (
        _build_success(rows, summary["compared"]), _build_groups(rows), _build_motion(rows),
        _build_ratios(rows, summary["compared"]), _build_fidelity(rows), _build_places(rows)) if section.headings]


def write_markdown(summary: Mapping[str, Any]) -> str:
    """The same as one table in Markdown, with what it is of above and how to read it below."""
    settings, names, sections = summary["settings"], list(summary["methods"]), build_sections(summary)
    played = sum(row["episodes"] for row in summary["methods"].values())
    wanted = settings["episodes"] * len(names)
    headings = ["method", *(heading for section in sections for heading in section.headings)]
    lines = [_join(headings), _join(["---"] + ["---:"] * (len(headings) - 1))]
    lines += [_join([name, *(cell for section in sections for cell in section.cells[index])])
              for index, name in enumerate(names)]
    return "\n".join([
        f"# {describe_conditions(settings)}: {settings['episodes']} episodes per method", "",
        f"Checkpoint `{settings['checkpoint']}`, scenes {settings['first_seed']} to "
        f"{settings['first_seed'] + settings['episodes'] - 1}, {settings['execute_steps']} steps per look"
        f"{'' if played == wanted else f'; {played} of {wanted} episodes are finished'}.", "", *lines, "",
        "Success: Wilson's 95 % interval. Changes and ratios: against the first method on the same scenes, with the 95 "
        "% interval of a paired bootstrap; jerk over all scenes, path and steps over those that both solved.", ""])


def _build_success(rows: Sequence[_Row], compared: Mapping[str, _Row]) -> Section:
    def say_success(row: _Row) -> str:
        return f"{row['successes']}/{row['episodes']}  {row['success']:.1%}"

    columns: dict[str, Callable[[_Row], str]] = {
        "success": say_success,
        "95 % interval": lambda row: "{:.1f} to {:.1f}".format(*(100 * bound for bound in row["interval"]))}
    if compared:
        first = rows[0]["method"]

        def find(row: _Row) -> _Row:
            return compared.get(row["method"], {"episodes": 0})

        columns[f"change against {first}, points"] = lambda row: _say_change(find(row))
        columns["only first / only this"] = lambda row: (
            f"{find(row)['only_first']} / {find(row)['only_this']}" if find(row)["episodes"] else NOTHING)
    return _build("Same scenes, same instructions", rows, columns)


def _build_groups(rows: Sequence[_Row]) -> Section:
    groups = dict.fromkeys(name for row in rows for name in row["tasks"])
    return _build("Success by group", rows, {group: partial(_say_group, group) for group in groups})


def _build_motion(rows: Sequence[_Row]) -> Section:
    def say_steps(row: _Row) -> str:
        steps = row["steps_to_success"]
        return NOTHING if steps is None else f"{steps['median']:g} / {steps['p90']:g}"

    return _build("Motion", rows, {
        "steps to success, median / p90": say_steps,
        "path to success, m": lambda row: _say_number(row["path_to_success_m"], "{:.3f}"),
        "jerk, m/s³": lambda row: _say_number(row["jerk_m_s3"], "{:.2f}")})


def _build_ratios(rows: Sequence[_Row], compared: Mapping[str, _Row]) -> Section:
    names = ("steps", "path", "jerk") if compared else ()
    return _build(f"Motion over that of {rows[0]['method']}, 95 % interval", rows, {
        f"{name} ratio": partial(_say_ratio, compared, name) for name in names})


def _build_fidelity(rows: Sequence[_Row]) -> Section:
    measured = [row["fidelity"] for row in rows if "fidelity" in row]
    found = [name for name in _FIDELITY if any(fidelity.get(name) is not None for fidelity in measured)]
    count = measured[0]["observations"] if measured else 0
    return _build(f"Actions and scores against float on the same {count} pictures", rows, {
        _FIDELITY[name][0]: partial(_say_fidelity, name) for name in found}, played=False)


def _build_places(rows: Sequence[_Row]) -> Section:
    names = _PLACES if any("went_to" in row for row in rows) else {}
    return _build("Where the gripper ended", rows, {words: partial(_say_place, name) for name, words in names.items()})


def _build(title: str, rows: Sequence[_Row], columns: Mapping[str, Callable[[_Row], str]], *,
           played: bool = True) -> Section:
    # Of a method that has played nothing there is nothing to tell, except of what needs no episodes.
    return Section(title, tuple(columns), tuple(
        tuple(say(row) if row["episodes"] or not played else NOTHING for say in columns.values()) for row in rows))


def _say_change(change: _Row) -> str:
    if not change["episodes"]:
        return NOTHING
    low, high = (100 * bound for bound in change["interval"])
    return f"{100 * change['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def _say_group(group: str, row: _Row) -> str:
    counts = row["tasks"].get(group)
    return NOTHING if counts is None else f"{counts['successes']}/{counts['episodes']}"


def _say_number(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def _say_ratio(compared: Mapping[str, _Row], name: str, row: _Row) -> str:
    found = compared.get(row["method"], {}).get(name)
    return NOTHING if found is None else "{:.2f} ({:.2f} to {:.2f})".format(found["ratio"], *found["interval"])


def _say_fidelity(name: str, row: _Row) -> str:
    return _say_number(row.get("fidelity", {}).get(name), _FIDELITY[name][1])


def _say_place(name: str, row: _Row) -> str:
    return f"{row['went_to'][name]}/{row['episodes']}" if "went_to" in row else NOTHING


def _join(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
