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

"""The page of several runs: what each measured side by side, what was found in pairs, and how their settings differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqap_vla_ros.report.changes import (
    NO_DIFFERENCE,
    ROUGHER,
    Bar,
    EpisodePair,
    judge_change,
    plot_changes,
    say_change,
    show_episodes,
    tile_episodes,
)
from sqap_vla_ros.report.charts import plot_kept_tokens, plot_success
from sqap_vla_ros.report.comparison import Comparison
from sqap_vla_ros.report.evaluation_page import describe_values, list_warnings, tabulate
from sqap_vla_ros.report.numbers import DASH, format_number, format_share
from sqap_vla_ros.report.page import Page, Section, Table, Tile
from sqap_vla_ros.report.pairing import DISTANCE, LEAST_BLOCK_LOOKS, LEAST_UNITS, MEASURES
from sqap_vla_ros.report.replays import RECORDED, LookComparison
from sqap_vla_ros.report.runs import EVALUATION, REPLAY, Run

_MOST_TILES, _MOST_NAMES = 6, 8
_QUANTITIES = {"jerk_m_s3": "jerk", "path_m": "path"}
_MEGABYTE = 1e6
_NEVER_TOLD = ("versions", "methods")


def build_comparison_page(comparison: Comparison) -> Page:
    """Several runs on one page.

    :param comparison: as :func:`~sqap_vla_ros.report.comparison.compare_runs` finds it
    """
    runs = comparison.runs
    pairs = [EpisodePair(_name_pair(pair.other, pair.other_run), _name_pair(pair.first, pair.first_run), pair.change)
             for pair in comparison.episodes if pair.change["episodes"]]
    evaluations = [run for run in runs if run.kind == EVALUATION]
    replays = [run for run in runs if run.kind == REPLAY]
    warnings = [f"{run.name}: {sentence}" for run in evaluations for sentence in list_warnings(run.summary)]
    warnings += [f"{run.name}: {sentence}" for run in replays
                 for sentence in run.summary["bag"].get("complaints") or ()]
    return Page(
        title=f"{len(runs)} runs compared", subtitle=_list_names([run.name for run in runs]),
        tiles=[*tile_episodes(pairs), *_list_look_tiles(comparison)][:_MOST_TILES],
        sections=[*show_episodes(pairs), *_show_evaluations(evaluations), *_show_look_pairs(comparison),
                  *_show_motions(comparison), *_show_replays(replays), *_show_settings(runs)],
        warnings=[*comparison.remarks, *warnings])


def _list_names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _name_pair(method: str, run: str) -> str:
    return f"{method} of {run}"


def _list_look_tiles(comparison: Comparison) -> Iterator[Tile]:
    for pair in comparison.looks:
        if pair.measure == DISTANCE:
            yield Tile(f"{pair.other} against {pair.first}", f"{pair.result.difference:+.3g} mm",
                       f"of distance from {_name_yardstick(pair.yardstick)}; "
                       + judge_change(pair.result.interval, "farther", "nearer"))


def _name_yardstick(name: str) -> str:
    return "what was recorded" if name == RECORDED else name


def _show_evaluations(runs: Sequence[Run]) -> Iterator[Section]:
    played = [(run, name, row) for run in runs for name, row in run.summary["methods"].items() if row["episodes"]]
    if not played:
        return
    rows = {_name_pair(name, run.name): row for run, name, row in played}
    parts = [plot_success(rows), plot_kept_tokens([(name, f" of {run.name}", row) for run, name, row in played])]
    yield Section("Success of each run", "Side by side, each with Wilson's 95 % interval. Runs of different trials "
                  "differ by their trials too.", [part for part in parts if part is not None])
    pictures = {row["fidelity"]["observations"] for row in rows.values() if "fidelity" in row}
    told = {name: {**{key: value for key, value in row.items() if key != "fidelity" or len(pictures) == 1},
                   "method": name} for name, row in rows.items()}
    yield Section("Each method by itself", "", tabulate(told))


def _show_look_pairs(comparison: Comparison) -> Iterator[Section]:
    note = ""
    for yardstick in dict.fromkeys(pair.yardstick for pair in comparison.looks):
        pairs = [pair for pair in comparison.looks if pair.yardstick == yardstick]
        first, what = pairs[0].first, _name_yardstick(yardstick)
        by_measure = {measure: [pair for pair in pairs if pair.measure == measure] for measure in MEASURES}
        several = max(pair.result.bags for pair in pairs) > 1
        note = "Drawn and read as above." if note else _explain_units(several=several)
        bars = {measure: [_bar_share(pair) for pair in found if pair.result.first > 0.0]
                for measure, found in by_measure.items()}
        parts: list[Any] = [plot_changes(
            {measure: found for measure, found in bars.items() if found}, f"change (% of {first}'s own)",
            f"Change of the distance from {what} against that of {first} on the same looks, with the 95 % interval of "
            "a paired bootstrap.")]
        parts += [_tabulate_looks(measure, found) for measure, found in by_measure.items()]
        if several:
            parts.append(_tabulate_bags(by_measure[DISTANCE]))
        yield Section(f"Distance from {what}, look by look", note, parts)


def _explain_units(*, several: bool) -> str:
    how = ("Whole bags are drawn again, since looks of one bag are not independent, so an interval tells what other "
           f"bags of this kind leave open; it takes {LEAST_UNITS}." if several else
           "Contiguous blocks of the bag's looks are drawn again, since looks next to each other are not independent; "
           "an interval tells of motion as in this one bag, not of other bags, and takes "
           f"{LEAST_UNITS * LEAST_BLOCK_LOOKS} looks.")
    return (f"The first action of each answer, over the looks that both answered. {how} {NO_DIFFERENCE} A small "
            "distance is not success: look at jerk, path and the least cosine too, and let the policy act.")


def _bar_share(pair: LookComparison) -> Bar:
    result = pair.result
    return Bar(pair.other, 100.0 * result.difference / result.first,
               result.interval and [100.0 * bound / result.first for bound in result.interval])


def _tabulate_looks(measure: str, pairs: Sequence[LookComparison]) -> Table:
    first = pairs[0].first
    return Table(
        ["policy", "change, 95 %", "that is", f"of {first}", "its own", "looks", "bags"],
        [[pair.other, say_change(pair.result.difference, pair.result.interval, "{:+.3g}"),
          judge_change(pair.result.interval, f"farther than {first}", f"nearer than {first}"),
          format_number(pair.result.first), format_number(pair.result.other), str(pair.result.looks),
          str(pair.result.bags)] for pair in pairs],
        measure)


def _tabulate_bags(pairs: Sequence[LookComparison]) -> Table:
    bags = list(dict.fromkeys(bag for pair in pairs for bag in pair.result.by_bag))
    return Table(["bag", *(pair.other for pair in pairs)],
                 [[bag, *(format_number(pair.result.by_bag.get(bag)) for pair in pairs)] for bag in bags],
                 f"Change of {pairs[0].measure} against {pairs[0].first}, bag by bag")


def _show_motions(comparison: Comparison) -> Iterator[Section]:
    rows = [[f"{pair.other}, {_QUANTITIES[pair.quantity]}", pair.first, str(pair.bags),
             say_change(pair.ratio, pair.interval, "{:.2f}"), judge_change(pair.interval, "more", "less", 1.0)]
            for pair in comparison.motions]
    if rows:
        yield Section("Motion in pairs, bag by bag", "Mean over bags, divided by that of the other policy; 1 is no "
                      f"difference. {ROUGHER}", [Table(["policy", "against", "bags", "ratio, 95 %", "that is"], rows)])


def _show_replays(runs: Sequence[Run]) -> Iterator[Section]:
    distances, policies = [], []
    for run in runs:
        bag = str(run.summary["bag"].get("name") or DASH)
        for row in run.summary["compared"]:
            cosine = row.get("cosine") or {}
            distances.append([_name_pair(row["policy"], run.name), row["with"], bag, format_number(row.get("looks")),
                              *(format_number(row.get(name)) for name in ("mse", "mae")),
                              *(format_number(cosine.get(name), digits=4) for name in ("mean", "min")),
                              format_share(row.get("gripper_agreement"))])
        policies += [[_name_pair(label, run.name), bag, *_tell_policy(run.summary, label)]
                     for label in run.summary["policies"]]
    if distances:
        yield Section("Distances as each run measured them", "Over all looks of each run; the pairs above are over "
                      "those that both answered.", [Table(
                          ["policy", "from", "bag", "looks", "MSE", "MAE", "cosine, mean", "cosine, least",
                           "gripper agreement"], distances)])
    if policies:
        yield Section("Policies", "Weights are the decoder's linears as they are held: what is called compressed must "
                      "be smaller. Latency is of the machine that replayed, and never paired: see in Settings whether "
                      "that was the same.", [Table(
                          ["policy", "bag", "weights (MB)", "tokens kept", "gripper's kept", "jerk (m/s³)", "path (m)",
                           "p50 (ms)", "p99 (ms)", "deadline missed"], policies)])


def _tell_policy(summary: Mapping[str, Any], label: str) -> list[str]:
    policy, tokens, motion, timing = (summary[part].get(label) or {} for part in
                                      ("policies", "tokens", "motion", "timing"))
    total = (timing.get("latency_ms") or {}).get("total") or {}
    held = policy.get("weight_bytes")
    return [format_number(None if held is None else held / _MEGABYTE),
            f"{format_number(tokens.get('kept_mean'))}/{format_number(tokens.get('total'))}",
            format_share(tokens.get("gripper_kept_mean")), format_number(motion.get("jerk_m_s3")),
            format_number(motion.get("path_m")), format_number(total.get("p50")), format_number(total.get("p99")),
            format_number(timing.get("deadline_misses"))]


def _show_settings(runs: Sequence[Run]) -> Iterator[Section]:
    told = [dict(describe_values({
        **{name: value for name, value in run.summary["settings"].items() if name not in _NEVER_TOLD},
        **{name: run.summary.get(name) or {} for name in ("machine", "versions")}})) for run in runs]
    names = list(dict.fromkeys(name for values in told for name in values))
    differing = [name for name in names if len({values.get(name) for values in told}) > 1]
    note = "" if differing else "All runs have the same settings, machine and versions."
    yield Section("Settings that differ", note, [Table(
        ["run", *differing], [[run.name, *(values.get(name, DASH) for name in differing)]
                              for run, values in zip(runs, told, strict=True)])] if differing else [])
