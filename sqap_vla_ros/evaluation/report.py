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

"""A finished demo as files: video, chart, overlay, summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sqap_vla_ros.data import Episode
from sqap_vla_ros.evaluation.chart import draw_chart
from sqap_vla_ros.evaluation.demo import MethodRun
from sqap_vla_ros.evaluation.summary import label_runs, summarize_demo, summarize_run, write_json
from sqap_vla_ros.evaluation.video import Clip, Panel, expand_picture, write_video

FILES = ("summary.json", "chart.png", "overlay.png", "demo.mp4")


def write_report(folder: Path, runs: Sequence[MethodRun], episodes: Sequence[Episode], settings: dict[str, Any],
                 tell: Callable[[str], None]) -> dict[str, Any]:
    """Write everything that can be written of what was played.

    :param tell: called with a sentence per file
    :return: the summary
    """
    for name in FILES:
        # What an earlier run left would be taken for this one's.
        (folder / name).unlink(missing_ok=True)
    summary = summarize_demo(runs, episodes, settings)
    summary["files"] = files = {}
    labels = {label: run for label, run in label_runs(runs).items() if run.results}
    if labels:
        draw_chart({label: summarize_run(run) for label, run in labels.items()}, folder / "chart.png")
        files["chart"] = "chart.png"
    picture = choose_example(list(labels.values()))
    if picture is not None:
        tell("writing the video")
        Image.fromarray(expand_picture(picture)).save(folder / "overlay.png")
        files["overlay"] = "overlay.png"
        if write_video(folder / "demo.mp4", cut_clips(list(labels.values()), episodes)):
            files["video"] = "demo.mp4"
    files["summary"] = "summary.json"
    write_json(folder / "summary.json", summary)
    for name in files.values():
        tell(f"wrote {folder / name}")
    return summary


def cut_clips(runs: Sequence[MethodRun], episodes: Sequence[Episode]) -> list[Clip]:
    """One clip per episode that somebody finished."""
    clips = []
    for index, episode in enumerate(episodes):
        panels = tuple(
            Panel(run.method.name, _say_outcome(run, index), run.results[index].success, tuple(run.pictures[index]))
            for run in runs if index < len(run.results))
        if panels:
            clips.append(Clip(episode.instruction, panels))
    return clips


def choose_example(runs: Sequence[MethodRun]) -> bytes | None:
    """A picture from the middle of the last method's longest success, or of anything if nothing succeeded."""
    for wanted in (True, False):
        for run in reversed(runs):
            candidates = [pictures for result, pictures in zip(run.results, run.pictures, strict=True)
                          if pictures and result.success >= wanted]
            if candidates:
                longest = max(candidates, key=len)
                return longest[len(longest) // 2]
    return None


def _say_outcome(run: MethodRun, index: int) -> str:
    result = run.results[index]
    return f"done in {result.steps} steps" if result.success else f"not done after {result.steps} steps"
