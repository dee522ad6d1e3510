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

"""Runs in pairs: what is the same trial or look, what the interval of a difference is, and what cannot be paired."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from sqap_vla_ros.bags.looks import Answer, LookRecord
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.evaluation.results import EpisodeRecord, compare_records, summarize_methods
from sqap_vla_ros.report.changes import NO_DIFFERENCE, judge_change, say_change
from sqap_vla_ros.report.comparison import compare_runs
from sqap_vla_ros.report.comparison_page import build_comparison_page
from sqap_vla_ros.report.pairing import DISTANCE, MSE, compare_errors, cut_blocks, measure_errors, resample_units
from sqap_vla_ros.report.replays import sort_replays
from sqap_vla_ros.report.runs import read_runs

SETTINGS = {"methods": ["float"], "episodes": 20, "first_seed": 5, "suite": "base", "scene": [], "language": "scene",
            "trials_sha256": "c0ffee", "checkpoint": "demo", "execute_steps": 2, "blind": "", "knobs": {}}
RECORDED = [0.01, 0.0, -0.01, 0.0, 0.0, 0.02]
# Away from what was recorded by 1 mm in x and in rx: an MSE of 2e-6 / 6 and a distance of 1 mm.
APART = np.array([1e-3, 0, 0, 1e-3, 0, 0])


def write_evaluation(folder, methods, **settings):
    """A finished evaluation: successes by method, of seeds 5 and on."""
    records = [EpisodeRecord(name, 5 + index, "reach", "reach", "red", "reach the red block", success,
                             10 if success else 60, 2.0, 0.5, "red", "red")
               for name, outcomes in methods.items() for index, success in enumerate(outcomes)]
    settings = {**SETTINGS, "methods": list(methods), **settings}
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({
        "kind": "evaluation", **summarize_methods(records, list(methods)), "complete": True, "settings": settings}))
    (folder / "episodes.jsonl").write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
    return records


def write_replay(folder, policies, *, bag="bag", looks=120, recorded=True, first_stamp_ns=10**18, jerk=2.0,
                 checkpoint="0"):
    """A finished replay: by label, how far each look's action is from what was recorded, in units of APART."""
    lines = []
    for index in range(looks):
        answers = {label: Answer([[*(RECORDED + scale[index % len(scale)] * APART), 1.0]], {"llm": 5.0}, 102, 256,
                                 {"attention": 102}) for label, scale in policies.items()}
        lines.append(LookRecord(index, first_stamp_ns + index * 10**8, first_stamp_ns, "reach", "exact",
                                recorded=[*RECORDED, 1.0] if recorded else None, answers=answers).to_line())
    distances = [{"policy": label, "with": "recorded", "looks": looks, "mse": 1e-6, "mae": 1e-3,
                  "cosine": {"mean": 0.99, "min": 0.9}, "gripper_agreement": 1.0, "dimensions": {}}
                 for label in policies]
    folder.mkdir()
    (folder / "looks.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "summary.json").write_text(json.dumps({
        "kind": "replay", "bag": {"name": bag, "topics": {"/image": {"type": "Image", "count": looks}},
                                  "duration_s": 12.0, "looks": looks, "refused": {}, "complaints": []},
        "policies": {label: {"weight_bytes": 2_000_000} for label in policies}, "compared": distances,
        "motion": {label: {"jerk_m_s3": jerk * max(scale), "path_m": 1.0} for label, scale in policies.items()},
        "tokens": {label: {"kept_mean": 102.0, "total": 256} for label in policies},
        "timing": {label: {"latency_ms": {"total": {"p50": 5.0, "p99": 7.0}}} for label in policies},
        "settings": {"bag_start_ns": first_stamp_ns, "checkpoints": dict.fromkeys(policies, checkpoint)}}))


def compare(*folders):
    """The comparison and its page."""
    comparison = compare_runs(read_runs(folders))
    return comparison, build_comparison_page(comparison)


def list_texts(page):
    """Every text of a page's tables, row by row."""
    return [list(row) for section in page.sections for part in section.parts if hasattr(part, "rows")
            for row in part.rows]


def test_episodes_of_the_same_trials_are_paired_scene_by_scene(tmp_path):
    first = write_evaluation(tmp_path / "a", {"float": [True] * 16 + [False] * 4, "w4a4": [True] * 20})
    other = write_evaluation(tmp_path / "b", {"float": [True] * 4 + [False] * 16, "w8a8": [True] * 20}, blind="gripper")
    comparison, page = compare(tmp_path / "a", tmp_path / "b")
    assert [(pair.first, pair.first_run, pair.other, pair.other_run) for pair in comparison.episodes] == [
        ("float", "a", "float", "b"), ("float", "a", "w8a8", "b")]
    change = comparison.episodes[0].change
    assert change == compare_records(first[:20], other[:20])
    assert (change["only_first"], change["only_this"], change["difference"]) == (12, 0, -0.6)
    assert comparison.remarks == [] == page.warnings
    assert page.tiles[0].name == "float of b against float of a" and page.tiles[0].value == "-60.0 points"
    assert page.tiles[0].note.endswith("; less") and page.tiles[1].note.endswith("; no difference shown")
    section = page.sections[0]
    assert section.note == NO_DIFFERENCE and "includes 0 means that these data show no difference" in section.note
    settings = page.sections[-1].parts[0]
    assert settings.columns == ["run", "blind"]
    assert [row[-1] for row in settings.rows] == ["-", "gripper"]


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"suite": "hard"}, "suite hard against base"), ({"scene": ["dim-light"]}, "scene dim-light against nothing"),
    ({"first_seed": 6}, "first_seed 6 against 5"), ({"language": "other"}, "language other against scene"),
    ({"trials_sha256": "beef"}, "trials_sha256 beef against c0ffee"), ({"episodes": 10}, "episodes 10 against 20")])
def test_episodes_of_other_trials_are_shown_but_not_paired(tmp_path, settings, sentence):
    write_evaluation(tmp_path / "a", {"float": [True] * 20})
    write_evaluation(tmp_path / "b", {"float": [False] * settings.get("episodes", 20)}, **settings)
    comparison, page = compare(tmp_path / "a", tmp_path / "b")
    assert comparison.episodes == []
    assert comparison.remarks == [f"b is not paired with a: it played other trials ({sentence}); play both with the "
                                  "same --suite, --seeds, --episodes, --scene and --language."]
    assert comparison.remarks[0] in page.warnings
    rows = [row for row in list_texts(page) if row[0] in ("float of a", "float of b")]
    assert rows[0][1].startswith("20/20") and rows[1][1].startswith("0/")


def test_trials_that_are_not_told_or_kept_are_not_paired(tmp_path):
    for name in ("a", "b", "c"):
        write_evaluation(tmp_path / name, {"float": [True] * 20}, **({"trials_sha256": None} if name == "b" else {}))
    (tmp_path / "c/episodes.jsonl").unlink()
    comparison, _ = compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert comparison.episodes == [] and comparison.remarks == [
        "b is not paired with a: b does not say which trials it played; play it again with --fresh.",
        "c is not paired with a: the folder of c has no finished episodes in episodes.jsonl; copy that file beside "
        "summary.json."]


def test_later_run_is_paired_with_the_first_of_its_trials(tmp_path):
    write_evaluation(tmp_path / "base", {"float": [True] * 20})
    for name in ("hard", "hard-again"):
        write_evaluation(tmp_path / name, {"float": [True] * 20}, suite="hard")
    comparison, _ = compare(*(tmp_path / name for name in ("base", "hard", "hard-again")))
    assert [(pair.first_run, pair.other_run) for pair in comparison.episodes] == [("hard", "hard-again")]
    assert len(comparison.remarks) == 1 and comparison.remarks[0].startswith("hard is not paired with base: ")


def test_errors_are_taken_as_a_replay_takes_them():
    actions = {(0, 1): np.array(RECORDED) + APART, (1, 2): np.array(RECORDED), (2, 3): np.zeros(6)}
    wanted = {(0, 1): np.array(RECORDED), (1, 2): np.full(6, np.nan), (3, 4): np.zeros(6)}
    assert measure_errors(actions, wanted, MSE) == {(0, 1): pytest.approx(2e-6 / 6)}
    assert measure_errors(actions, wanted, DISTANCE) == {(0, 1): pytest.approx(1.0)}


def errors_of(values):
    return {(index, index): value for index, value in enumerate(values)}


def test_looks_next_to_each_other_do_not_count_as_independent():
    # A slow swing around a small mean: 200 looks drawn one by one would be certain of a difference.
    swing = 0.15 + np.sin(np.arange(200) * 2 * np.pi / 200)
    alone = resample_units([np.array([value]) for value in swing])
    assert alone[0] > 0.0
    found = compare_errors({"bag": errors_of(np.ones(200))}, {"bag": errors_of(1.0 + swing)})
    assert found.difference == pytest.approx(0.15) and found.interval[0] < -0.2 < 0.5 < found.interval[1]
    assert judge_change(found.interval, "more", "less") == "no difference shown"


def test_difference_is_taken_look_by_look():
    # Looks differ a hundredfold in how hard they are, and the other is farther by the same in all.
    hard = np.geomspace(1, 100, 100)
    found = compare_errors({"bag": errors_of(hard)}, {"bag": errors_of(hard + 0.5)})
    assert found.interval == pytest.approx((0.5, 0.5)) and found.other - found.first == pytest.approx(0.5)
    assert (found.looks, found.bags) == (100, 1)


def test_only_looks_that_both_answered_are_compared():
    found = compare_errors({"a": {(0, 0): 1.0, (1, 5): 2.0}, "b": {(0, 0): 1.0}},
                           {"a": {(1, 5): 5.0, (1, 6): 100.0}, "c": {(0, 0): 1.0}})
    assert (found.looks, found.bags, found.difference, found.interval) == (1, 1, 3.0, None)
    assert compare_errors({"a": {(0, 0): 1.0}}, {"a": {(0, 1): 1.0}}) is None


def test_blocks_are_long_enough_or_there_is_no_interval():
    assert [len(block) for block in cut_blocks(np.arange(105))] == [11] * 5 + [10] * 5
    assert [len(block) for block in cut_blocks(np.arange(65))] == [11] * 5 + [10]
    assert np.concatenate(cut_blocks(np.arange(65))).tolist() == list(range(65))
    few = {"bag": errors_of(np.zeros(59))}
    assert compare_errors(few, {"bag": errors_of(np.ones(59))}).interval is None
    assert len(cut_blocks(np.arange(7))) == 1


def test_whole_bags_are_drawn_where_there_are_several():
    # Within each bag all looks agree, and bags do not.
    by_bag = [-1.0, 2.0, -0.5, 1.5, -2.0, 1.0, 0.5]
    zeros = {str(number): errors_of(np.zeros(50)) for number in range(7)}
    ones = {str(number): errors_of(np.full(50, value)) for number, value in enumerate(by_bag)}
    found = compare_errors(zeros, ones)
    assert found.interval[0] < -0.8 < 1.2 < found.interval[1] and found.by_bag["1"] == 2.0
    assert (found.looks, found.bags) == (350, 7)
    assert compare_errors(dict(list(zeros.items())[:5]), ones).interval is None
    # Longer bags count for more, as each look counts alike.
    assert compare_errors({**zeros, "1": errors_of(np.zeros(400))},
                          {**ones, "1": errors_of(np.full(400, 2.0))}).difference == pytest.approx(
                              (sum(by_bag) * 50 + 350 * 2.0) / 700)


def test_intervals_of_few_units_hold_what_they_promise():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(150):
        low, high = resample_units([np.array([value]) for value in random.normal(size=6)])
        held += low <= 0.0 <= high
    # Plain percentiles of six hold the mean in about 84 of 100 cases.
    assert 0.90 <= held / 150 <= 1.0


def test_looks_of_one_bag_are_paired_by_what_was_recorded_and_by_the_float_policy(tmp_path):
    write_replay(tmp_path / "f", {"float": [1.0]})
    write_replay(tmp_path / "q", {"w4a4": [2.0, 3.0], "w4a4+sqap@0.4": [0.5]})
    comparison, page = compare(tmp_path / "f", tmp_path / "q")
    found = {(pair.yardstick, pair.first, pair.other): pair.result for pair in comparison.looks if pair.measure == MSE}
    assert list(found) == [("recorded", "float", "w4a4"), ("recorded", "float", "w4a4+sqap@0.4"),
                           ("float", "w4a4", "w4a4+sqap@0.4")]
    unit = 2e-6 / 6
    farther = found["recorded", "float", "w4a4"]
    assert farther.first == pytest.approx(unit) and farther.other == pytest.approx(6.5 * unit)
    assert farther.interval[0] <= farther.difference <= farther.interval[1] and farther.interval[0] > 4 * unit
    assert found["recorded", "float", "w4a4+sqap@0.4"].difference == pytest.approx(-0.75 * unit)
    # From float: w4a4 by 1 and 2 units of APART, the other by half of one.
    assert found["float", "w4a4", "w4a4+sqap@0.4"].difference == pytest.approx((0.25 - 2.5) * unit)
    assert comparison.remarks == [] and [section.title for section in page.sections[:2]] == [
        "Distance from what was recorded, look by look", "Distance from float, look by look"]
    assert "blocks of the bag's looks" in page.sections[0].note and "includes 0 means" in page.sections[0].note
    assert [(tile.value, tile.note) for tile in page.tiles] == [
        ("+1.5 mm", "of distance from what was recorded; farther"),
        ("-0.5 mm", "of distance from what was recorded; nearer"), ("-1 mm", "of distance from float; nearer")]
    bars = {trace["name"]: trace["y"] for trace in page.sections[0].parts[0].figure["data"]}
    assert bars == {MSE: pytest.approx([550.0, -75.0]), DISTANCE: pytest.approx([150.0, -50.0])}
    assert ["w4a4", "farther than float", "1", "2.5", "120", "1"] in [
        [row[0], *row[2:]] for row in list_texts(page) if len(row) == 7]


def test_policies_of_one_name_are_told_apart_by_what_they_answered(tmp_path):
    write_replay(tmp_path / "a", {"w4a4": [2.0], "float": [1.0]})
    write_replay(tmp_path / "b", {"w4a4": [3.0], "float": [1.0]})
    write_replay(tmp_path / "c", {"w4a4": [3.0]})
    comparison, page = compare(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert list(comparison.replays.policies) == ["w4a4 of a", "float", "w4a4 of b"]
    assert comparison.replays.baseline == "float"
    assert comparison.remarks == ["w4a4 gave the same answers on bag in b and c, to the last digit; they are shown as "
                                  "one."] == page.warnings
    assert comparison.replays.policies["float"]["bag"].runs == ["a", "b"]


def test_checkpoints_of_one_name_stay_apart_where_one_lacks_a_bag(tmp_path):
    folders = []
    for bag in range(3):
        for checkpoint, scale in (("x", 2.0), ("y", 1.0)):
            if (bag, checkpoint) != (0, "x"):
                folders.append(tmp_path / f"{bag}{checkpoint}")
                write_replay(folders[-1], {"stored": [scale + bag]}, bag=f"bag{bag}", checkpoint=checkpoint,
                             first_stamp_ns=bag * 10**15)
    policies = sort_replays(read_runs(folders)).policies
    assert sorted([run for track in tracks.values() for run in track.runs] for tracks in policies.values()) == [
        ["0y", "1y", "2y"], ["1x", "2x"]]


def test_many_bags_are_paired_bag_by_bag(tmp_path):
    for number in range(7):
        write_replay(tmp_path / f"ep{number}", {"float": [1.0], "w4a4": [1.5 + number / 10]}, bag=f"bag{number}",
                     looks=20, jerk=1.0 + number)
    comparison, page = compare(*sorted(tmp_path.iterdir()))
    pair = next(pair for pair in comparison.looks if pair.measure == DISTANCE)
    assert pair.result.bags == 7 and pair.result.looks == 140
    assert pair.result.by_bag == {f"bag{number}": pytest.approx(0.5 + number / 10) for number in range(7)}
    assert 0.5 < pair.result.interval[0] < 0.8 < pair.result.interval[1] < 1.1
    jerk = next(pair for pair in comparison.motions if pair.quantity == "jerk_m_s3")
    assert jerk.bags == 7 and jerk.interval[0] < jerk.ratio < jerk.interval[1]
    assert jerk.ratio == pytest.approx(sum((1.5 + n / 10) * (1 + n) for n in range(7)) / 28)
    assert "Whole bags are drawn" in page.sections[0].note
    assert [row[0] for row in list_texts(page)].count("bag3") == 1


def test_few_bags_leave_it_open(tmp_path):
    for number in range(2):
        write_replay(tmp_path / f"ep{number}", {"float": [1.0], "w4a4": [2.0]}, bag=f"bag{number}")
    comparison, page = compare(*sorted(tmp_path.iterdir()))
    assert all(pair.result.interval is None for pair in comparison.looks)
    assert comparison.motions[0].interval is None and comparison.motions[0].ratio == pytest.approx(2.0)
    assert page.tiles[0].note.endswith("too little data to tell")


def test_other_bags_of_the_same_name_are_not_paired(tmp_path):
    write_replay(tmp_path / "a", {"float": [1.0]})
    write_replay(tmp_path / "b", {"w4a4": [2.0]}, first_stamp_ns=2 * 10**18)
    comparison, page = compare(tmp_path / "a", tmp_path / "b")
    assert comparison.looks == [] and comparison.remarks == [
        "Only one policy has replayed bag, bag of b; looks of different bags cannot be paired. Replay the same bag "
        "with each policy."]
    assert {"float of a", "w4a4 of b"} <= {row[0] for row in list_texts(page)}


def test_without_recorded_commands_the_float_policy_is_the_yardstick(tmp_path):
    write_replay(tmp_path / "a", {"float": [0.0], "w4a4": [1.0], "w8a8": [1.0]}, recorded=False)
    write_replay(tmp_path / "b", {"w4a4+sqap@0.4": [3.0]}, recorded=False)
    comparison, _ = compare(tmp_path / "a", tmp_path / "b")
    assert {pair.yardstick for pair in comparison.looks} == {"float"}
    assert [(pair.other, round(pair.result.difference, 6)) for pair in comparison.looks
            if pair.measure == DISTANCE] == [("w8a8", 0.0), ("w4a4+sqap@0.4", 2.0)]


def test_other_recorded_actions_are_told(tmp_path):
    write_replay(tmp_path / "a", {"float": [1.0]})
    write_replay(tmp_path / "b", {"w4a4": [2.0]})
    path = tmp_path / "b/looks.jsonl"
    path.write_text(path.read_text().replace('"recorded":[0.01,', '"recorded":[0.02,', 3))
    comparison, _ = compare(tmp_path / "a", tmp_path / "b")
    assert comparison.remarks == [
        "b takes other actions as recorded at 3 looks of bag than the runs before it, whose are taken; replay with the "
        "same command topics and rates."]


def test_replays_and_evaluations_stand_on_one_page(tmp_path):
    write_evaluation(tmp_path / "e", {"float": [True] * 20})
    write_replay(tmp_path / "r", {"float": [1.0], "w4a4": [2.0]})
    comparison, page = compare(tmp_path / "e", tmp_path / "r")
    assert comparison.remarks[0].startswith("Evaluations and replays are never paired")
    titles = [section.title for section in page.sections]
    assert "Success of each run" in titles and "Distance from what was recorded, look by look" in titles
    described = json.loads(json.dumps(comparison.describe()))
    assert described["looks"][0]["result"]["looks"] == 120 and described["runs"][1]["kind"] == "replay"


@pytest.mark.parametrize(("line", "sentence"), [
    ("[1]", "line 121 of .*looks.jsonl holds no result but list"), ("{}", "is no look of a replay"),
    ("{", "looks.jsonl cannot be read"),
    ('{"index":1,"stamp_ns":2,"answers":{"float":{}}}', "look 1 of .* has no actions")])
def test_looks_that_cannot_be_read_are_a_sentence(tmp_path, line, sentence):
    write_replay(tmp_path / "a", {"float": [1.0]})
    write_replay(tmp_path / "b", {"w4a4": [1.0]})
    with (tmp_path / "a/looks.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=sentence):
        compare(tmp_path / "a", tmp_path / "b")


def test_last_line_that_was_cut_is_left_out(tmp_path):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, {"float": [True] * 20})
    path = tmp_path / "b/episodes.jsonl"
    path.write_text(path.read_text()[:-9])
    comparison, _ = compare(tmp_path / "a", tmp_path / "b")
    assert comparison.episodes[0].change["episodes"] == 19


def test_changes_are_told_in_words():
    for touching in ((0.0, 1.0), (-1.0, 0.0)):
        assert judge_change(touching, "more", "less") == "no difference shown"
    assert judge_change((0.1, 1.0), "more", "less") == "more" and judge_change((-2.0, -0.1), "more", "less") == "less"
    assert judge_change((0.8, 0.9), "more", "less", 1.0) == "less"
    assert say_change(1.24, (-0.4, 2.8), "{:+.1f}").split() == ["+1.2", "(-0.4", "to", "+2.8)"]
    assert say_change(1.24, None, "{:+.1f}") == "+1.2"


def test_nothing_heavy_is_imported_for_a_report():
    code = ("import sys, sqap_vla_ros.cli.report_run; "
            "print([name for name in ('torch', 'mujoco', 'rclpy', 'matplotlib') if name in sys.modules])")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
