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

"""From finished episodes to a summary, a chart and a folder that can be gone on with."""

import json
from dataclasses import replace

import cv2
import pytest
from matplotlib.figure import Figure

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.evaluation.chart import draw_kept_tokens, draw_success
from sqap_vla_ros.evaluation.journal import Journal
from sqap_vla_ros.evaluation.results import EpisodeRecord, compare_records, summarize_methods

SETTINGS = {"suite": "base", "first_seed": 5, "scene": ("dim-light",)}


def record(method, seed, success, *, task="reach", color="red", steps=10, jerk=2.0, path=0.5, **others):
    return EpisodeRecord(method, seed, task, task, color, f"{task} the {color} block", success,
                         steps if success else 60, jerk, path, color, color, **others)


RECORDS = [
    record("a", 1, True, steps=8, jerk=1.0), record("a", 2, True, task="pick", steps=12, jerk=3.0, path=0.2),
    record("a", 3, False, color="blue", jerk=None), record("a", 4, True, task="pick", color="blue", steps=40, jerk=2.0),
    record("b", 4, False, task="pick", color="blue"), record("b", 1, True), record("b", 2, False, task="pick"),
    record("b", 3, True, color="blue"),
]


def test_success_is_told_by_task_color_and_both():
    row = summarize_methods(RECORDS, ["a", "b"])["methods"]["a"]
    assert (row["method"], row["successes"], row["episodes"], row["success"]) == ("a", 3, 4, 0.75)
    # Wilson: (0.75 + z^2/8 +- z sqrt(0.75 * 0.25 / 4 + z^2/64)) / (1 + z^2/4) with z^2 = 3.8415.
    assert row["interval"] == [0.3006, 0.9544]
    assert row["steps_to_success"] == {"median": 12.0, "p90": 34.4}
    assert (row["jerk_m_s3"], row["path_to_success_m"]) == (2.0, 0.4)
    assert {name: (part["successes"], part["episodes"]) for name, part in row["tasks"].items()} == {
        "reach": (1, 2), "pick": (2, 2)}
    assert {name: (part["successes"], part["episodes"]) for name, part in row["colors"].items()} == {
        "red": (2, 2), "blue": (1, 2)}
    blue = row["kinds"]["reach"]["colors"]["blue"]
    assert (blue["successes"], blue["episodes"], blue["steps_to_success"], blue["jerk_m_s3"]) == (0, 1, None, None)
    assert blue["interval"] == [0.0, 0.7935]
    assert "went_to" not in row


def test_methods_are_compared_scene_by_scene():
    summary = summarize_methods(RECORDS, ["a", "b"])
    assert list(summary["methods"]) == ["a", "b"] and list(summary["compared"]) == ["b"]
    change = summary["compared"]["b"]
    assert (change["with"], change["difference"], change["episodes"]) == ("a", -0.25, 4)
    assert [change[name] for name in ("both", "only_first", "only_this", "neither")] == [1, 2, 1, 0]
    assert -1.0 <= change["interval"][0] < -0.25 < change["interval"][1] <= 1.0
    assert json.loads(json.dumps(summary)) == summary


def test_only_scenes_that_both_finished_are_compared():
    change = compare_records(RECORDS[:4], RECORDS[4:5])
    assert (change["episodes"], change["only_first"], change["difference"]) == (1, 1, -1.0)
    assert compare_records(RECORDS[:4], [])["interval"] == [-1.0, 1.0]


def test_exchanged_instructions_tell_where_the_arm_went():
    blocks = [("blue", "red"), ("blue", "red"), ("red", "blue"), ("green", "blue")]
    records = [EpisodeRecord("a", seed, "reach", "reach", target, "", True, 5, 1.0, 0.5, "blue", target, replaced)
               for seed, (target, replaced) in enumerate(blocks)]
    row = summarize_methods(records, ["a"])["methods"]["a"]
    assert row["went_to"] == {"named": 2, "replaced": 2, "elsewhere": 0}
    assert row["tasks"]["reach"]["went_to"] == row["went_to"]


def test_motion_is_compared_on_the_scenes_that_both_have():
    first = [record("a", seed, seed != 4, steps=10 * seed, jerk=float(seed), path=0.1 * seed) for seed in range(1, 7)]
    other = [record("b", seed, seed != 5, steps=12 * seed, jerk=1.1 * seed, path=0.09 * seed) for seed in range(1, 6)]
    change = compare_records(first, other)
    # Scenes 1 to 5 were played by both, and 1 to 3 solved by both; each ratio is the same in all.
    assert change["jerk"] == {"ratio": 1.1, "interval": [1.1, 1.1], "episodes": 5}
    assert change["path"] == {"ratio": 0.9, "interval": [0.9, 0.9], "episodes": 3}
    assert change["steps"] == {"ratio": 1.2, "interval": [1.2, 1.2], "episodes": 3}
    uneven = compare_records(first, [replace(entry, jerk=2.0) for entry in other])["jerk"]
    assert uneven["ratio"] == round(2.0 / 3.0, 4) and uneven["interval"][0] < 0.6 < 0.8 < uneven["interval"][1]
    unknown = compare_records(first, [replace(entry, jerk=None, success=False) for entry in other])
    assert (unknown["jerk"], unknown["path"], unknown["steps"]) == (None, None, None)


def test_chart_shows_a_bar_of_each_method(tmp_path):
    draw_success(summarize_methods(RECORDS, ["a", "b"])["methods"], tmp_path / "chart.png", "base suite")
    chart = cv2.imread(str(tmp_path / "chart.png"))[..., ::-1].reshape(-1, 3)
    for color in ((0x5b, 0x7f, 0xa6), (0xe0, 0x8a, 0x3c)):
        assert (chart == color).all(axis=1).sum() > 1000


def test_chart_of_nothing_but_failures_is_drawn(tmp_path):
    failures = [record("a", seed, False, task=task) for seed, task in enumerate(("reach", "pick", "place") * 4)]
    draw_success(summarize_methods(failures, ["a"])["methods"], tmp_path / "chart.png", "")
    assert (tmp_path / "chart.png").exists()


def test_bars_of_an_interrupted_method_stand_under_their_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))
    picks = [entry for entry in RECORDS if entry.method == "a" or entry.task == "pick"]
    draw_success(summarize_methods(picks, ["a", "b"])["methods"], tmp_path / "chart.png", "")
    axes = drawn[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["reach", "pick", "all"]
    middles = [round(bar.get_x() + bar.get_width() / 2, 6) for bar in axes.patches]
    assert middles == [-0.2, 0.8, 1.8, 1.2, 2.2]


def count_methods(**successes):
    """Rows of a summary: successes of 50 by method."""
    return {name: {"method": name, "successes": count, "episodes": 50, "tasks": {}}
            for name, count in successes.items()}


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure.axes[0]))
    return figures


def test_many_methods_have_a_bar_each_in_the_order_given(drawn, tmp_path):
    rows = count_methods(**{"float": 48, "w4a4": 45, "w4a8": 46, "w8a8": 47, "w4a4+sqap@0.4": 44, "float+fastv@0.7": 20,
                            "w4a4+sqap@0.7": 40})
    draw_success(rows, tmp_path / "chart.png", "hard suite")
    axes = drawn[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows) and axes.yaxis_inverted()
    lengths = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axes.patches}
    assert [lengths[place] for place in range(7)] == [row["successes"] / 50 for row in rows.values()]
    assert axes.get_legend_handles_labels()[1] == ["every token", "sqap", "fastv"]


def test_success_is_drawn_against_kept_tokens(drawn, tmp_path):
    rows = count_methods(**{"float": 48, "w4a4": 45, "w4a4+sqap@0.7": 40, "w4a4+sqap@0.4": 44, "float+fastv@0.6": 20,
                            "w8a8": 47, "w4a8+sqap@0.4": 42})
    assert draw_kept_tokens(rows, tmp_path / "kept_tokens.png", "hard suite")
    axes = drawn[0]
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert {name: list(line.get_ydata()) for name, line in lines.items()} == {
        "w4a4+sqap": [0.8, 0.88, 0.9], "float+fastv": [0.4, 0.96], "w4a8+sqap": [0.84]}
    assert {name: [round(place / 10) for place in line.get_xdata()] for name, line in lines.items()} == {
        "w4a4+sqap": [3, 6, 10], "float+fastv": [4, 10], "w4a8+sqap": [6]}
    across = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in across] == [[0.96, 0.96]]
    # The lowest whisker, of 20 in 50, ends at 0.276.
    assert 0.2 < axes.get_ylim()[0] < 0.276


def test_nothing_is_drawn_where_nothing_is_pruned(drawn, tmp_path):
    assert not draw_kept_tokens(count_methods(float=48, w4a4=45), tmp_path / "kept_tokens.png", "") and drawn == []


def test_journal_goes_on_after_a_line_that_was_cut(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        for entry in RECORDS[:3]:
            journal.add(entry)
    path = tmp_path / "episodes.jsonl"
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {
        "method": "a", "seed": 1, "group": "reach", "task": "reach", "color": "red",
        "instruction": "reach the red block", "success": True, "steps": 8, "jerk": 1.0, "path_m": 0.5, "nearest": "red",
        "target": "red", "replaced": ""}
    path.write_text("\n".join(lines)[:-5])
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.records == RECORDS[:2]
        journal.add(RECORDS[3])
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.records == [*RECORDS[:2], RECORDS[3]]


def test_journal_of_other_settings_is_not_touched_unless_told(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(RECORDS[0])
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match='holds episodes with suite "base", not "hard"; start anew with --fresh'):
        Journal(tmp_path, SETTINGS | {"suite": "hard"})
    assert (tmp_path / "summary.json").exists()
    with Journal(tmp_path, SETTINGS | {"suite": "hard"}, fresh=True) as journal:
        assert journal.records == []
    assert not (tmp_path / "summary.json").exists()
    assert json.loads((tmp_path / "run.json").read_text())["suite"] == "hard"


def test_journal_that_cannot_be_read_or_had_is_a_sentence(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        with pytest.raises(ConfigError, match="another evaluation writes to"):
            Journal(tmp_path, SETTINGS)
        journal.add(RECORDS[0])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json that says of what cannot be read"):
        Journal(tmp_path, SETTINGS)
    (tmp_path / "episodes.jsonl").write_text('{"seed": 1}\n')
    with pytest.raises(InputError, match=r"line 1 of .* is no finished episode"):
        Journal(tmp_path, SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: File exists; take another"):
        Journal(tmp_path / "file", SETTINGS)
