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

"""From finished episodes to files, without ROS."""

import json
from contextlib import contextmanager

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from sqap_vla_ros.data import Episode, EpisodeResult, StageTimes
from sqap_vla_ros.errors import ConfigError, SqapError
from sqap_vla_ros.evaluation.demo import run_demo
from sqap_vla_ros.evaluation.methods import Method, parse_method, parse_methods
from sqap_vla_ros.evaluation.report import choose_example, write_report
from sqap_vla_ros.evaluation.statistics import summarize_times, wilson_interval
from sqap_vla_ros.evaluation.summary import summarize_demo
from sqap_vla_ros.evaluation.video import Clip, Panel, compose_pictures, compress_picture, expand_picture

EPISODES = [Episode(seed, task, "red", f"{task} the red block")
            for seed, task in ((5, "reach"), (6, "pick"), (7, "place"), (8, "reach"), (9, "pick"))]
METHODS = parse_methods("float,w4a4+sqap@0.4")
BYTES = {"float": (1000, 1000), "w4a4": (130, 1000)}


class FakePlayer:
    """Plays at once: fails what it is told to fail, and can break down."""

    def __init__(self, method, fails=(), breaks_at=None):
        stored, full = BYTES[method.recipe]
        self.description = {"recipe": method.recipe, "weight_bytes": str(stored), "float32_bytes": str(full),
                            "total_tokens": "256", "family": "demo", "engine": "cpu"}
        self.fails, self.breaks_at = fails, breaks_at

    def play(self, episode, on_picture):
        if episode.seed == self.breaks_at:
            raise SqapError("the node died")
        for shade in (40, 200):
            if on_picture is not None:
                on_picture(np.full((60, 80, 3), (shade, 0, 0), np.uint8))
        success = episode.seed not in self.fails
        return EpisodeResult(episode, success, 10 if success else 60,
                             tuple(StageTimes({"vision": 1.0 * n, "llm": 10.0 * n}) for n in (1, 2, 3)), (154,) * 3)


class Silence:
    def on_method(self, method, episodes):
        pass

    def on_episode(self, episode):
        pass

    def on_result(self, result):
        pass


def play(record=True, **faults):
    runs = []

    @contextmanager
    def open_player(method):
        yield FakePlayer(method, **faults.get(method.recipe, {}))

    try:
        run_demo(runs, METHODS, EPISODES, open_player, Silence(), record=record)
    except SqapError:
        assert any("breaks_at" in fault for fault in faults.values())
    return runs


def test_summary_counts_what_was_played():
    summary = summarize_demo(play(w4a4={"fails": (6,)}), EPISODES, {"first_seed": 5})
    row = summary["compressed"]
    assert (row["successes"], row["episodes"], row["success"], row["method"]) == (4, 5, 0.8, "w4a4+sqap@0.4")
    assert row["tasks"] == {"reach": {"successes": 2, "episodes": 2}, "pick": {"successes": 1, "episodes": 2},
                            "place": {"successes": 1, "episodes": 1}}
    assert row["latency_ms"]["total"] == {"p50": 22.0, "p95": 33.0}
    assert (row["kept_tokens"], row["total_tokens"], row["inferences"]) == (154, 256, 15)
    assert row["mean_steps_to_success"] == 10
    assert (summary["success"], summary["weight_ratio"]) == (0.9, 0.13)
    assert summary["complete"] and summary["worked"]
    assert summary["scenes"][1] == {"seed": 6, "task": "pick", "color": "red", "instruction": "pick the red block",
                                    "float": {"success": True, "steps": 10},
                                    "compressed": {"success": False, "steps": 60}}
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize(("faults", "why"), [
    ({"float": {"fails": (5, 6)}, "w4a4": {"fails": (5,)}}, "success below 80 %"),
    ({"w4a4": {"breaks_at": 9}}, "an episode is missing"),
])
def test_demo_that_fell_short_has_not_worked(faults, why):
    assert not summarize_demo(play(**faults), EPISODES, {})["worked"], why


def test_demo_with_heavy_or_unknown_weights_has_not_worked():
    runs = play()
    runs[1].description["weight_bytes"] = "161"
    assert not summarize_demo(runs, EPISODES, {})["worked"]
    del runs[1].description["weight_bytes"]
    summary = summarize_demo(runs, EPISODES, {})
    assert summary["weight_ratio"] is None and not summary["worked"]


def test_report_of_an_interrupted_demo_holds_what_was_finished(tmp_path):
    runs = play(w4a4={"breaks_at": 7})
    told = []
    summary = write_report(tmp_path, runs, EPISODES, {"first_seed": 5}, told.append)
    assert summary["compressed"]["episodes"] == 2 and not summary["complete"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chart.png", "demo.mp4", "overlay.png", "summary.json"]
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "demo.mp4"))
    film = next(reader)
    reader.close()
    # 5 clips of 2 pictures, each held for a second at the end.
    assert film["codec"] == "h264" and film["duration"] == pytest.approx(5 * (2 + 6) / 6, abs=0.2)
    assert len([line for line in told if line.startswith("wrote")]) == 4


def test_report_removes_what_an_earlier_run_left(tmp_path):
    write_report(tmp_path, play(), EPISODES, {}, lambda _: None)
    summary = write_report(tmp_path, play(record=False), EPISODES, {}, lambda _: None)
    assert not (tmp_path / "demo.mp4").exists() and not (tmp_path / "overlay.png").exists()
    assert summary["files"] == {"chart": "chart.png", "summary": "summary.json"}
    assert write_report(tmp_path, [], EPISODES, {}, lambda _: None)["files"] == {"summary": "summary.json"}


def test_chart_is_a_picture_with_both_colours(tmp_path):
    write_report(tmp_path, play(record=False), EPISODES, {}, lambda _: None)
    chart = cv2.imread(str(tmp_path / "chart.png"))[..., ::-1].reshape(-1, 3)
    for color in ((0x5b, 0x7f, 0xa6), (0xe0, 0x8a, 0x3c)):
        assert (chart == color).all(axis=1).sum() > 1000


def test_film_shows_both_methods_side_by_side_and_holds_the_shorter():
    red, blue = (np.zeros((60, 80, 3), np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 255, 255
    panels = (Panel("a", "done in 2 steps", True, (compress_picture(red),)),
              Panel("b", "not done after 60 steps", False, tuple(compress_picture(blue) for _ in range(3))))
    pictures = list(compose_pictures([Clip("do it", panels)]))
    assert len(pictures) == 3 + 6
    assert {picture.shape for picture in pictures} == {pictures[0].shape}
    height, width, _ = pictures[0].shape
    assert height % 2 == 0 and width % 2 == 0
    for picture in pictures:
        assert picture[74, 48, 0] > 240 and picture[74, width - 48, 2] > 240
    assert list(compose_pictures([])) == []


def test_picture_survives_compression():
    picture = np.random.default_rng(0).integers(0, 255, (15, 20, 3), np.uint8)
    picture = cv2.resize(picture, (200, 150), interpolation=cv2.INTER_CUBIC)
    assert np.abs(expand_picture(compress_picture(picture)).astype(int) - picture).mean() < 6


def test_example_is_from_a_success_if_there_is_one():
    runs = play(float={"fails": (5, 6, 7, 8, 9)}, w4a4={"fails": (5, 6, 7, 8)})
    assert choose_example(runs) == runs[1].pictures[4][1]
    assert choose_example(play(record=False)) is None


@pytest.mark.parametrize(("successes", "trials", "low", "high"), [
    # Reference values: Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_without_trials_allows_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_sum_of_stages_comes_last():
    times = summarize_times([StageTimes({"vision": 1.0}), StageTimes({"vision": 3.0, "llm": 5.0})])
    assert list(times) == ["vision", "llm", "total"]
    assert times["vision"] == {"p50": 2.0, "p95": 2.9}


def test_methods_are_read_and_written_alike():
    assert parse_method("w4a4+sqap@0.40") == Method("w4a4", "sqap", 0.4)
    assert parse_method("float+sqap-no-robot@0.6") == Method("float", "sqap-no-robot", 0.6)
    assert [method.name for method in METHODS] == ["float", "w4a4+sqap@0.4"]
    assert parse_method("float").knobs == {"model.recipe": "float", "prune.rule": "none", "prune.pruned_ratio": 0.0}


@pytest.mark.parametrize("text", ["", "w4a4+", "w4a4+sqap", "w4a4+sqap@", "w4a4+sqap@0.4.1", "w4a4+sqap@2", "FLOAT",
                                  "float,,w4a4", "float,float", "w4a4,w4a4+none@0.4",
                                  "w4a4+sqap@0.4,w4a4+sqap@0.40000001"])
def test_unreadable_methods_are_refused(text):
    with pytest.raises(ConfigError):
        parse_methods(text)
