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

"""What a replay's page says, and what it leaves out where nothing is known."""

import io

import numpy as np
import pytest
from PIL import Image

from sqap_vla_ros.bags.metrics import compare_actions, split_stretches, weigh_looks
from sqap_vla_ros.data import ACTION_NAMES
from sqap_vla_ros.report.html import render_page
from sqap_vla_ros.report.page import Plot, Scrubber, Table
from sqap_vla_ros.report.replay_page import MAX_PICTURES, PICTURE_PX, build_replay_page
from sqap_vla_ros.report.replay_plots import (
    plot_actions,
    plot_deviation,
    plot_gripper_tokens,
    plot_kept_tokens,
    plot_latency,
)

FIRST, SECOND = "w4a4+sqap@0.4", "float"


def find(page, title):
    """The section of this title."""
    section, = (section for section in page.sections if section.title == title)
    return section


def list_tiles(page):
    """Values and notes by name."""
    return {tile.name: (tile.value.replace("\u00a0", " "), tile.note.replace("\u00a0", " ")) for tile in page.tiles}


def list_lines(plot):
    """Names and values of a plot's lines, by the title of their cell."""
    cells = {title: [] for title in plot.figure["layout"]["meta"]["cells"]}
    for trace in plot.figure["data"]:
        place = int(trace["yaxis"][1:] or 1) - 1
        list(cells.values())[place].append((trace["meta"]["name"], trace["y"]))
    return cells


def make_look(index, instruction="go", recorded=None, gap_ns=10**8, **steps):
    """A look a tenth of a second after the one before; policies move along x by this much."""
    answers = {label: {"steps": [[x, 0, 0, 0, 0, 0, 1.0]], "milliseconds": {}, "kept": 4, "total": 4, "rules": {},
                       "gripper_kept": None} for label, x in steps.items()}
    return {"index": index, "stamp_ns": index * gap_ns, "log_ns": index * gap_ns, "instruction": instruction,
            "tf": "exact", "no_protection": "", "refused": "", "answers": answers,
            "recorded": None if recorded is None else [recorded, 0, 0, 0, 0, 0, None]}


def test_tiles_hold_what_decides(summary, looks, replay_folder):
    page = build_replay_page(summary, looks, replay_folder)
    assert page.title == "Replay of demo_bag"
    assert page.subtitle == "w4a4+sqap@0.4 and float \u00b7 160 looks \u00b7 16\u00a0s"
    assert list_tiles(page) == {
        "Looks": ("160", "1 refused"),
        "Cosine to float": ("0.9913", "least 0.9012"),
        "MAE to float": ("0.00153", "MSE 3.91e-06"),
        "Gripper agreement": ("98.1 %", "with float"),
        "Latency, median": ("31.8 ms", "p99 47.7 ms; float 57.2 ms"),
        "Deadline misses": ("0", "deadline 100 ms"),
        "Tokens kept": ("102", "of 256, 39.8 %"),
        "Gripper tokens kept": ("90.4 %", "mean of 160 looks"),
        "TF hit rate": ("97.5 %", "of 160 looks"),
    }
    assert [section.title for section in page.sections] == [
        "Pictures and actions", "Comparison", "Visual tokens", "Latency", "Motion", "Bag", "How it was run"]


def test_actions_are_recorded_ones_and_first_steps(summary, looks, replay_folder):
    actions, = (part for part in find(build_replay_page(summary, looks, replay_folder), "Pictures and actions").parts
                if isinstance(part, Plot))
    cells = list_lines(actions)
    assert [title.split()[0] for title in cells] == list(ACTION_NAMES)
    for place, lines in enumerate(cells.values()):
        assert [name for name, _ in lines] == ["recorded", FIRST, SECOND]
        assert lines[0][1] == [look["recorded"][place] for look in looks]
        assert lines[1][1] == [look["answers"][FIRST]["steps"][0][place] for look in looks]
    assert actions.figure["data"][0]["x"][:3] == pytest.approx([0, 0.1, 0.2])


def test_pictures_are_those_of_their_looks(summary, looks, replay_folder):
    scrubber = find(build_replay_page(summary, looks, replay_folder), "Pictures and actions").parts[0]
    assert isinstance(scrubber, Scrubber) and len(scrubber.frames) == 40
    frame = scrubber.frames[3]
    with Image.open(replay_folder / "overlays" / "000012.jpg") as drawn, Image.open(io.BytesIO(frame.jpeg)) as shown:
        assert max(shown.size) <= PICTURE_PX
        apart = np.asarray(drawn.resize(shown.size), dtype=float) - np.asarray(shown, dtype=float)
    assert np.abs(apart).mean() < 8.0
    assert frame.at_s == pytest.approx(1.2)
    assert frame.caption == "look 12 \u00b7 \u201cput the red block into the bin\u201d \u00b7 102 of 256 tokens"


def test_no_more_pictures_than_a_page_can_carry(tmp_path):
    looks = [make_look(index, a=0.0) for index in range(MAX_PICTURES + 100)]
    (tmp_path / "overlays").mkdir()
    for look in looks:
        Image.new("RGB", (8, 8)).save(tmp_path / "overlays" / f"{look['index']:06d}.jpg")
    scrubber = build_replay_page({"policies": {"a": {}}}, looks, tmp_path).sections[0].parts[0]
    shown = [int(frame.caption.split()[1]) for frame in scrubber.frames]
    assert len(shown) == len(set(shown)) == MAX_PICTURES and (shown[0], shown[-1]) == (0, len(looks) - 1)


def test_differences_add_up_within_an_instruction():
    looks = [make_look(0, "one", 0.5, a=1.0), make_look(1, "one", None, a=9.0), make_look(2, "one", 0.5, a=1.5),
             make_look(3, "two", 1.0, a=0.75)]
    plot = plot_deviation(looks, ["a"], [{"policy": "a", "with": "recorded"}], None)
    cells = list_lines(plot)
    assert cells["x (m)"] == [("a \u2212 recorded", [0.5, None, 1.5, -0.25])]
    assert cells["yaw (rad)"] == [("a \u2212 recorded", [0, None, 0, 0])] and len(cells) == 6


def test_look_counts_until_the_next_one():
    """At 10 looks/s a step of 0.2 s has half come by with the next look; behind a gap it begins anew."""
    looks = [make_look(index, a=1.0, b=0.0) for index in (0, 1, 2, 9, 10)]
    plot = plot_deviation(looks, ["a", "b"], [{"policy": "a", "with": "b"}], 0.2)
    assert list_lines(plot)["x (m)"][0][1] == pytest.approx([0.5, 1.0, 2.0, 0.5, 1.5])


def test_deviation_goes_as_far_as_the_drift_in_the_table(looks):
    """A look that only one policy answered counts in neither."""
    del looks[20]["answers"][SECOND]
    answered = [look for look in looks if len(look["answers"]) == 2]
    period_ns = 130_000_000
    stamps = [look["stamp_ns"] for look in answered]
    stretches = split_stretches(stamps, [look["instruction"] for look in answered], period_ns)
    first, second = (np.array([look["answers"][label]["steps"][0] for look in answered]) for label in (FIRST, SECOND))
    known = compare_actions(first, second, stretches, weigh_looks(stamps, stretches, period_ns))["dimensions"]
    plot = plot_deviation(looks, [FIRST, SECOND], [{"policy": FIRST, "with": SECOND}], period_ns * 1e-9)
    for name, lines in zip(ACTION_NAMES, list_lines(plot).values(), strict=False):
        assert max(map(abs, lines[0][1])) == pytest.approx(known[name]["drift"])
    assert len(plot.figure["data"][0]["x"]) == len(looks) - 1


def test_tokens_by_rule_are_of_policies_that_prune(looks):
    cells = list_lines(plot_kept_tokens(looks, [FIRST, SECOND]))
    assert list(cells) == [FIRST]
    assert [name for name, _ in cells[FIRST]] == ["attention", "robot", "coverage"]
    assert all(sum(counts) == 102 for counts in zip(*(values for _, values in cells[FIRST]), strict=True))
    lines = list_lines(plot_gripper_tokens(looks, [FIRST, SECOND]))["gripper tokens kept"]
    assert lines[0][1][5] == looks[5]["answers"][FIRST]["gripper_kept"] and lines[1][1] == [1.0] * len(looks)


def test_latency_is_of_each_stage_and_their_sum(looks):
    plot = plot_latency(looks, [FIRST, SECOND])
    assert plot.figure["layout"]["meta"]["cells"] == ["preprocess", "vision", "llm", "head", "total"]
    assert len(plot.figure["data"]) == 10
    assert all(sum(trace["y"]) == pytest.approx(1) for trace in plot.figure["data"])
    total = plot.figure["data"][8]
    middle = sum(x * share for x, share in zip(total["x"], total["y"], strict=True))
    sums = [sum(look["answers"][FIRST]["milliseconds"].values()) for look in looks]
    assert middle == pytest.approx(sum(sums) / len(sums), abs=total["width"])


def test_comparison_has_a_row_for_each_pair(summary, looks, replay_folder):
    overview, deviation, *dimensions = find(build_replay_page(summary, looks, replay_folder), "Comparison").parts
    assert [row[:3] for row in overview.rows] == [
        (FIRST, "recorded", "160"), (SECOND, "recorded", "160"), (FIRST, SECOND, "160")]
    assert overview.rows[0][3:] == ("3.91e-06", "0.00153", "0.9913", "0.9012", "98.1\u00a0%")
    assert isinstance(deviation, Plot) and len(dimensions) == 3
    assert [row[0].split()[0] for row in dimensions[0].rows] == list(ACTION_NAMES)
    assert dimensions[2].caption == "w4a4+sqap@0.4 against float"


def test_one_policy_and_no_recorded_commands_compare_nothing(summary, looks, tmp_path):
    for look in looks:
        look["recorded"] = None
        del look["answers"][SECOND]
    del summary["policies"][SECOND]
    summary["compared"] = []
    page = build_replay_page(summary, looks, tmp_path)
    assert find(page, "Comparison").note.startswith("Nothing could be compared") and not find(page, "Comparison").parts
    assert "no recorded commands" in find(page, "Actions").note
    names = {name for lines in list_lines(find(page, "Actions").parts[0]).values() for name, _ in lines}
    assert names == {FIRST} and "Cosine to float" not in list_tiles(page)
    assert "Nothing could be compared" in render_page(page)


def test_headline_falls_back_on_what_was_recorded(summary, looks, tmp_path):
    summary["compared"].pop()
    tiles = list_tiles(build_replay_page(summary, looks, tmp_path))
    assert tiles["MAE to the recording"] == ("0.00153", "MSE 3.91e-06")


def test_nothing_pruned_is_said(summary, looks, tmp_path):
    for look in looks:
        del look["answers"][FIRST]
    section = find(build_replay_page(summary, looks, tmp_path), "Visual tokens")
    assert section.note == "No policy prunes; every visual token stays."
    assert [type(part) for part in section.parts] == [Table]


def forget(value):
    """The same keys, with nothing known."""
    return {name: forget(part) for name, part in value.items()} if isinstance(value, dict) else None


def test_unknown_values_are_left_out(summary, looks, tmp_path):
    for look in looks:
        look.update(answers={}, recorded=None, refused="no TF", instruction="", tf="none")
    compared = [{**row, "mse": None, "mae": None, "cosine": None, "gripper_agreement": None, "dimensions": {}}
                for row in summary["compared"]]
    empty = forget(summary) | {"compared": compared}
    for known in (empty, {"bag": summary["bag"], "policies": summary["policies"]}, {}):
        for some in (looks, []):
            assert "</html>" in render_page(build_replay_page(known, some, tmp_path))
    page = build_replay_page(empty, looks, tmp_path)
    assert not [part for section in page.sections for part in section.parts if isinstance(part, Plot)]
    assert list_tiles(page) == {}


def test_complaints_stand_at_the_top(summary, looks, tmp_path):
    summary["bag"]["complaints"] = ["the file ends in the middle of a chunk"]
    assert build_replay_page(summary, looks, tmp_path).warnings == ["the file ends in the middle of a chunk"]


def test_bag_lists_topics_tf_and_refusals(summary, looks, tmp_path):
    topics, tf, refused = find(build_replay_page(summary, looks, tmp_path), "Bag").parts
    assert topics.rows[2] == ("/tf", "tf2_msgs/msg/TFMessage", "1,604")
    assert tf.rows == [("exact", "156", "97.5\u00a0%"), ("latest", "4", "2.5\u00a0%"), ("none", "0", "0\u00a0%")]
    assert refused.rows == [("the picture of /camera/image_raw is older than 0.5 s", "1")]


def test_settings_are_listed_by_dotted_name(summary, looks, tmp_path):
    summary["settings"]["bag_messages"] = {"/tf": 1604}
    tables = {table.columns[0]: dict(table.rows) for table in
              find(build_replay_page(summary, looks, tmp_path), "How it was run").parts[2:]}
    assert tables["Settings"] == {"seed": "0", "prune.rule": "sqap", "topics.images": '["/camera/image_raw"]'}
    assert tables["Speed"] == {"wall_s": "14.2", "decode_images_per_s": "412.0"}


def test_nothing_answered_has_no_plot_of_actions():
    assert plot_actions([make_look(0)], ["a"]) is None
