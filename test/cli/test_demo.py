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

"""The demo as a person runs it: three processes over DDS."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import imageio_ffmpeg
import pytest

METHODS = "float,w4a4-rtn+sqap@0.4"  # plain rounding needs no observations, of which an untrained policy has none


def finish(process, timeout_s=100):
    output, errors = process.communicate(timeout=timeout_s)
    return process.returncode, output.splitlines(), errors


def read_until(process, sentence):
    """Lines of stderr up to the one with ``sentence``."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if sentence in line:
            return lines
    raise AssertionError(f"'{sentence}' never came:\n{''.join(lines)}")


def node_processes(folder):
    """Process ids whose command line names this demo's folder."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().split("\0")
            except OSError:  # It ended while the folder was read.
                continue
            if "--ros-args" in words and any(str(folder / "logs") in word for word in words):
                found[words[words.index("--ros-args") - 1].rsplit(".", 1)[-1]] = int(entry.name)
    return found


def test_both_methods_play_the_same_scenes_and_everything_is_written(sqap, untrained, tmp_path):
    code, output, errors = finish(sqap("demo", "--methods", METHODS, "--episodes", 2, "--checkpoint", untrained,
                                       "--out", tmp_path / "out"))
    assert code == 1, errors  # An untrained policy falls short.
    line = json.loads(output[-1])
    assert (line["worked"], line["complete"], len(output)) == (False, True, 1)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    for label, method, kept in (("float", "float", 64), ("compressed", "w4a4-rtn+sqap@0.4", 38)):
        row = summary[label]
        assert (row["method"], row["episodes"], row["kept_tokens"], row["total_tokens"]) == (method, 2, kept, 64)
        assert {name: entry["episodes"] for name, entry in row["tasks"].items()} == {"reach": 1, "pick": 1}
        assert list(row["latency_ms"]) == ["preprocess", "vision", "llm", "head", "total"]
        assert 0.0 < row["latency_ms"]["llm"]["p50"] <= row["latency_ms"]["llm"]["p95"]
        # 60 steps, a look every second one, and nothing lost or repeated on the way.
        assert 56 <= row["inferences"] <= 62
    assert summary["float"]["weight_bytes"] == summary["float"]["float32_bytes"]
    assert summary["weight_ratio"] == pytest.approx(summary["compressed"]["weight_bytes"]
                                                    / summary["compressed"]["float32_bytes"], abs=1e-4)
    assert 0.125 < summary["weight_ratio"] < 0.16
    assert [scene["seed"] for scene in summary["scenes"]] == [3_000_000, 3_000_001]
    assert all(scene[label]["steps"] == 60 for scene in summary["scenes"] for label in ("float", "compressed"))
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "out/demo.mp4"))
    film = next(reader)
    reader.close()
    assert film["codec"] == "h264" and film["size"][0] > 1000
    assert cv2.imread(str(tmp_path / "out/overlay.png")).shape[1] == 512
    assert cv2.imread(str(tmp_path / "out/chart.png")).shape[1] > 1000
    assert "reach the" in errors and "95 % interval" in errors and "Traceback" not in errors


def test_ctrl_c_ends_the_nodes_and_keeps_what_was_finished(sqap, untrained, tmp_path):
    process = sqap("demo", "--methods", METHODS, "--episodes", 50, "--checkpoint", untrained, "--out", tmp_path,
                   "--no-video")
    read_until(process, " 1/50")
    nodes = node_processes(tmp_path)
    assert nodes.keys() == {"robot_node", "policy_node"}
    process.send_signal(signal.SIGINT)
    code, output, errors = finish(process, 40)
    assert code == 130, errors
    assert node_processes(tmp_path) == {}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 1 <= summary["float"]["episodes"] < 50
    assert (summary["complete"], summary["settings"]["interrupted"]) == (False, True)
    assert json.loads(output[-1])["worked"] is False
    assert not (tmp_path / "demo.mp4").exists()


def test_death_of_a_node_is_told_with_the_end_of_its_log(sqap, untrained, tmp_path):
    process = sqap("demo", "--methods", METHODS, "--episodes", 50, "--checkpoint", untrained, "--out", tmp_path,
                   "--no-video")
    read_until(process, " 1/50")
    os.kill(node_processes(tmp_path)["policy_node"], signal.SIGKILL)
    code, _, errors = finish(process, 40)
    assert code == 1
    assert "policy_node was killed by SIGKILL. The end of" in errors and "configured: family demo" in errors
    assert node_processes(tmp_path) == {}


def test_nodes_do_not_outlive_a_demo_that_was_killed(sqap, tmp_path):
    process = sqap("demo", "--checkpoint", tmp_path / "nothing", "--out", tmp_path, "--no-video")
    read_until(process, "starting the policy")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20.0
    while node_processes(tmp_path):
        assert time.monotonic() < deadline, "a node goes on without its demo"


def test_missing_checkpoint_is_a_sentence(sqap, tmp_path):
    code, output, errors = finish(sqap("demo", "--checkpoint", tmp_path / "nothing", "--out", tmp_path / "out"), 40)
    assert code == 1
    assert "policy_node could not be configured" in errors and "no checkpoint folder at" in errors
    assert json.loads(output[-1])["complete"] is False


def test_help_teaches():
    answer = subprocess.run([sys.executable, "-m", "sqap_vla_ros.cli.main", "demo", "--help"], capture_output=True,
                            text=True, timeout=60, check=True)
    for part in ("--episodes N", "examples:", "summary.json", "Exit codes: 0 it worked"):
        assert part in answer.stdout


def test_packaged_policy_moves_the_robot_compressed(sqap, tmp_path):
    code, output, errors = finish(sqap("demo", "--methods", "w4a4-rtn+sqap@0.4", "--episodes", 3, "--no-video",
                                       "--out", tmp_path))
    row = json.loads(output[-1])["compressed"]
    assert row["successes"] >= 2, errors
    assert code == (0 if row["successes"] == 3 else 1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["weight_ratio"] <= 0.16
    # The last inference may still be on its way when the episode ends; the robot never waited in vain.
    steps = sum(scene["compressed"]["steps"] for scene in summary["scenes"])
    assert steps / 2 - 3 <= summary["compressed"]["inferences"] <= steps / 2 + 6
