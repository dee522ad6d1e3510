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

"""The page of one evaluation in closed loop: success, what each method changes, motion, fidelity, conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqap_vla_ros.evaluation.table import build_sections, describe_conditions
from sqap_vla_ros.report.changes import EpisodePair, judge_change, show_episodes
from sqap_vla_ros.report.charts import plot_kept_tokens, plot_success
from sqap_vla_ros.report.page import Page, Section, Table, Tile

_MOST_TILES = 6
_HASH_DIGITS, _HASH_SHOWN = 64, 12
_Row = Mapping[str, Any]


def build_evaluation_page(summary: Mapping[str, Any]) -> Page:
    """What `sqap evaluate` has measured.

    :param summary: as its ``summary.json`` has it
    """
    settings = summary["settings"]
    rows = {name: row for name, row in summary["methods"].items() if row["episodes"]}
    last = settings["first_seed"] + settings["episodes"] - 1
    return Page(
        title=f"Closed loop: {describe_conditions(settings)}",
        subtitle=f"{settings['episodes']} episodes per method on scenes {settings['first_seed']} to {last}, checkpoint "
                 f"{settings['checkpoint']}",
        tiles=[*_list_tiles(summary, rows)][:_MOST_TILES],
        sections=[*_list_sections(summary, rows)],
        warnings=list_warnings(summary))


def list_warnings(summary: Mapping[str, Any]) -> list[str]:
    """What one must know of an evaluation before one reads its numbers."""
    methods, wanted = summary["methods"], summary["settings"]["episodes"]
    missing = [f"{row['episodes']} of {wanted} with {name}" for name, row in methods.items()
               if row["episodes"] < wanted]
    failure = summary.get("run", {}).get("failure")
    return [*([f"It ended early and has played {', '.join(missing)}; groups of tasks may be represented unevenly. Run "
               "the same again to go on."] if missing else []),
            *([f"It failed: {failure}."] if failure else [])]


def describe_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as pairs of a dotted name and a text, hashes cut to what tells them apart."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from describe_values(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "-"
        else:
            text = "-" if value is None or value in ("", {}) else str(value)
            yield f"{prefix}{name}", text[:_HASH_SHOWN] if len(text) == _HASH_DIGITS else text


def _list_tiles(summary: Mapping[str, Any], rows: Mapping[str, _Row]) -> Iterator[Tile]:
    for name, row in rows.items():
        low, high = (100.0 * bound for bound in row["interval"])
        note = f"{row['successes']}/{row['episodes']}, 95 %: {low:.1f} to {high:.1f}"
        change = summary["compared"].get(name)
        if change and change["episodes"]:
            note += f"; against {change['with']}: " + judge_change(change["interval"], "more", "less")
        yield Tile(f"success of {name}", f"{row['success']:.1%}", note)


def tabulate(methods: Mapping[str, _Row]) -> list[Table]:
    """Success, motion and what else was counted of each method, as it is told in the terminal.

    :param methods: by name, as ``summary.json`` has them
    """
    sections = build_sections({"methods": methods, "compared": {}})
    # Methods of several runs may have played other scenes than the first one's title says.
    titles = ["Success", *(section.title for section in sections[1:])]
    return [Table(["method", *section.headings],
                  [[name, *cells] for name, cells in zip(methods, section.cells, strict=True)], title)
            for title, section in zip(titles, sections, strict=True)]


def _list_sections(summary: Mapping[str, Any], rows: Mapping[str, _Row]) -> Iterator[Section]:
    if rows:
        yield Section("Success", "Whiskers are Wilson's 95 % interval: what other scenes of the same kind leave open.",
                      [plot_success(rows)])
        curve = plot_kept_tokens([(name, "", row) for name, row in rows.items()])
        if curve is not None:
            yield Section("Success against kept tokens", "A line for each recipe and rule; the recipe alone is its "
                          "point at 100 %.", [curve])
    yield from show_episodes([EpisodePair(name, change["with"], change)
                              for name, change in summary["compared"].items() if change["episodes"]])
    yield Section("Each method by itself", "", tabulate(summary["methods"]))
    conditions = {**{name: value for name, value in summary["settings"].items() if name != "versions"},
                  **{name: summary.get(name, {}) for name in ("machine", "versions", "run")}}
    yield Section("Conditions", "What decides the outcome, and what it was measured on.",
                  [Table(["what", "value"], [list(pair) for pair in describe_values(conditions)])])
