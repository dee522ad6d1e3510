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

"""The page of one evaluation: what stands on it, and that it is told where something was not played."""

import json

import pytest

from sqap_vla_ros.evaluation.results import EpisodeRecord, summarize_methods
from sqap_vla_ros.report.evaluation_page import build_evaluation_page, describe_values
from sqap_vla_ros.report.page import Plot, Table

SETTINGS = {"episodes": 30, "first_seed": 100, "suite": "hard", "scene": ["dim-light"], "trials_sha256": "c0ffee",
            "checkpoint": "demo", "checkpoint_sha256": {"model.safetensors": "ab" * 32}, "recipes": {},
            "execute_steps": 2, "knobs": {"prune.layer": 2}, "blind": "", "language": "scene",
            "versions": {"torch": "2.13"}}
OUTCOMES = {"float": 27, "w4a4": 26, "w4a4+sqap@0.4": 25, "w4a4+sqap@0.7": 6}


def play(name, successes, episodes=30):
    """Episodes of two groups in turn, of which the first so many succeed."""
    return [EpisodeRecord(name, 100 + index, ("small", "stack")[index % 2], "pick", "red", "pick up the red block",
                          index < successes, 12 if index < successes else 60, 2.0 + 0.1 * (name != "float"), 0.4, "red",
                          "red") for index in range(episodes)]


def summarize(outcomes, **others):
    """A summary as `sqap evaluate` writes one."""
    records = [record for name, successes in outcomes.items() for record in play(name, successes)]
    return json.loads(json.dumps({
        "kind": "evaluation", **summarize_methods(records, list(outcomes)), "complete": True,
        "settings": {**SETTINGS, "methods": list(outcomes)}, "run": {"workers": 2, "failure": None},
        "machine": {"cores": 2}, "versions": {"torch": "2.13"}, **others}))


def find(page, title):
    """Plots and tables of a section."""
    parts = next(section for section in page.sections if section.title == title).parts
    return ([part.figure for part in parts if isinstance(part, Plot)],
            [part for part in parts if isinstance(part, Table)])


def test_page_tells_success_changes_and_conditions():
    page = build_evaluation_page(summarize(OUTCOMES))
    assert page.title == "Closed loop: hard suite, dim-light, prune.layer=2"
    assert "30 episodes per method on scenes 100 to 129, checkpoint demo" in page.subtitle
    assert [(tile.name, tile.value) for tile in page.tiles][:2] == [("success of float", "90.0%"),
                                                                    ("success of w4a4", "86.7%")]
    assert page.tiles[1].note.endswith("against float: no difference shown")
    assert page.tiles[3].note.endswith("against float: less") and page.warnings == []
    assert [section.title for section in page.sections] == [
        "Success", "Success against kept tokens", "Success in pairs, scene by scene", "Motion in pairs, scene by scene",
        "Each method by itself", "Conditions"]
    rows = dict(find(page, "Conditions")[1][0].rows)
    assert [rows[name] for name in ("checkpoint_sha256.model.safetensors", "knobs.prune.layer", "blind",
                                    "versions.torch", "machine.cores")] == ["ab" * 6, "2", "-", "2.13", "2"]


def test_bars_bear_the_figures_and_wilson_s_intervals():
    page = build_evaluation_page(summarize(OUTCOMES))
    bars = find(page, "Success")[0][0]["data"]
    assert [trace["name"] for trace in bars] == list(OUTCOMES)
    assert bars[0]["x"] == ["small", "stack", "all"] and bars[0]["y"] == [14 / 15, 13 / 15, 0.9]
    # Wilson's interval of 27 in 30 is 0.7438 to 0.9654.
    assert bars[0]["error_y"]["array"][2] == pytest.approx(0.0654, abs=1e-4)
    assert bars[0]["error_y"]["arrayminus"][2] == pytest.approx(0.1562, abs=1e-4)


def test_curve_runs_from_few_tokens_to_all():
    page = build_evaluation_page(summarize(OUTCOMES))
    curve, level = find(page, "Success against kept tokens")[0][0]["data"]
    assert (curve["name"], curve["x"], curve["y"]) == ("w4a4+sqap", [30.0, 60.0, 100.0], [0.2, 25 / 30, 26 / 30])
    assert (level["name"], level["x"], level["y"]) == ("float, every token", [30.0, 100.0], [0.9, 0.9])


def test_changes_are_bars_from_zero_with_paired_intervals():
    summary = summarize(OUTCOMES)
    plots, tables = find(build_evaluation_page(summary), "Success in pairs, scene by scene")
    change = summary["compared"]["w4a4+sqap@0.7"]
    bar = plots[0]["data"][0]
    assert bar["x"] == list(OUTCOMES)[1:] and bar["y"][2] == pytest.approx(-70.0)
    assert bar["error_y"]["array"][2] == pytest.approx(100 * (change["interval"][1] - change["difference"]))
    row = tables[0].rows[2]
    assert [row[0], *row[2:]] == ["w4a4+sqap@0.7", "less", "float", "30", "6", "21", "0", "3"]
    motion, ratios = find(build_evaluation_page(summary), "Motion in pairs, scene by scene")
    assert [trace["name"] for trace in motion[0]["data"]] == ["jerk", "path", "steps"]
    assert motion[0]["data"][0]["y"] == pytest.approx([5.0] * 3)
    assert ratios[0].rows[0][2].split()[0] == "1.05"


def test_one_method_has_no_changes_and_no_curve():
    page = build_evaluation_page(summarize({"float": 30}))
    assert [section.title for section in page.sections] == ["Success", "Each method by itself", "Conditions"]


def test_many_methods_have_one_bar_each():
    page = build_evaluation_page(summarize({"float": 30, **{f"w4a4+sqap@0.{share}": share for share in range(1, 8)}}))
    bars = find(page, "Success")[0][0]["data"]
    assert len(bars) == 1 and len(bars[0]["x"]) == 8 and bars[0]["y"][:2] == [1.0, 1 / 30]
    assert len(page.tiles) == 6


def test_evaluation_that_ended_early_says_so():
    records = play("float", 10, 12)
    summary = summarize({"float": 1}, **summarize_methods(records, ["float", "w4a4"]), complete=False,
                        run={"failure": "a worker was killed by SIGKILL"})
    page = build_evaluation_page(summary)
    assert page.warnings == ["It ended early and has played 12 of 30 with float, 0 of 30 with w4a4; groups of tasks "
                             "may be represented unevenly. Run the same again to go on.",
                             "It failed: a worker was killed by SIGKILL."]
    assert [tile.name for tile in page.tiles] == ["success of float"]
    assert [row[:2] for row in find(page, "Each method by itself")[1][0].rows] == [["float", "10/12  83.3%"],
                                                                                  ["w4a4", "-"]]


def test_evaluation_without_an_episode_is_a_page_still():
    summary = summarize({"float": 1}, **summarize_methods([], ["float", "w4a4"]), complete=False)
    page = build_evaluation_page(summary)
    assert page.tiles == [] and [section.title for section in page.sections] == ["Each method by itself", "Conditions"]


def test_fidelity_stands_among_the_tables():
    summary = summarize({"float": 30, "w4a4": 30})
    for row in summary["methods"].values():
        row["fidelity"] = {"action_mse": 1.5e-4, "action_cosine": 0.9989, "observations": 32}
    tables = find(build_evaluation_page(summary), "Each method by itself")[1]
    fidelity = next(table for table in tables if "same 32 pictures" in table.caption)
    assert fidelity.rows[1] == ["w4a4", "1.50e-04", "0.9989"]


def test_settings_are_told_flat():
    assert dict(describe_values({"a": {"b": [1, 2]}, "c": None, "d": {}, "e": "", "f": 0, "g": "ab" * 32})) == {
        "a.b": "1, 2", "c": "-", "d": "-", "e": "-", "f": "0", "g": "ab" * 6}
