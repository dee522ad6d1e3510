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

"""A replay's results as they lie on disk: two policies, recorded commands, pictures for every fourth look."""

import json

import numpy as np
import pytest
from PIL import Image

from sqap_vla_ros.bags.looks import Answer, LookRecord
from sqap_vla_ros.data import ACTION_NAMES
from sqap_vla_ros.report.html import write_page
from sqap_vla_ros.report.replay_page import build_replay_page

LABELS = ("w4a4+sqap@0.4", "float")
LOOKS = 160
STAGES = {"preprocess": 1.4, "vision": 21.0, "llm": 9.0, "head": 0.4}


def make_answer(random, action, *, pruned):
    """An answer near an action, by a policy that prunes or not."""
    steps = (np.asarray(action) + random.normal(0, 0.002, (4, 7)) * [1, 1, 1, 2, 2, 2, 5]).tolist()
    robot = int(random.integers(18, 40))
    times = {name: float(typical * (1 if pruned else 1.8) * random.lognormal(0, 0.12))
             for name, typical in STAGES.items()}
    rules = {"attention": 32, "robot": robot, "coverage": 70 - robot} if pruned else {"unpruned": 256}
    return Answer(steps, times, 102 if pruned else 256, 256, rules, float(random.uniform(0.8, 1)) if pruned else 1.0)


def make_looks():
    """Looks of 16 s at 10 Hz, as dictionaries read from their lines."""
    random = np.random.default_rng(3)
    lines = []
    for index in range(LOOKS):
        time = index / 10
        action = [0.02 * np.sin(time * rate / 2 + rate) for rate in (1, 1.3, 1.7, 2.1, 2.9, 0.7)]
        action.append(float(time % 8 < 4))
        lines.append(LookRecord(
            index, 10**9 * 1000 + index * 10**8, 10**9 * 1000 + index * 10**8 + 4_000_000,
            "put the red block into the bin" if time < 8 else "stack the blue block on the green block",
            "latest" if index % 40 == 7 else "exact", recorded=[float(value) for value in action],
            answers={label: make_answer(random, action, pruned=label != "float") for label in LABELS}).to_line())
    return [json.loads(line) for line in lines]


def make_summary():
    """The summary that belongs to the looks, in form; its figures are made up."""
    measures = {"mse": 3.91e-06, "mae": 0.001532, "drift": 0.02213}
    pairs = [(LABELS[0], "recorded"), (LABELS[1], "recorded"), LABELS]
    levels = {"p50": 1.0, "p95": 1.3, "p99": 1.5, "max": 2.2}
    stages = {**STAGES, "total": sum(STAGES.values())}
    topics = {"/camera/image_raw": ("sensor_msgs/msg/Image", 161), "/camera/camera_info": (
        "sensor_msgs/msg/CameraInfo", 161), "/tf": ("tf2_msgs/msg/TFMessage", 1604), "/tf_static": (
        "tf2_msgs/msg/TFMessage", 1), "/instruction": ("std_msgs/msg/String", 2), "/servo_node/delta_twist_cmds": (
        "geometry_msgs/msg/TwistStamped", 160)}
    return {
        "kind": "replay", "step_period_s": 0.1,
        "bag": {"name": "demo_bag", "topics": {name: {"type": kind, "count": count}
                                               for name, (kind, count) in topics.items()},
                "duration_s": 16.02, "pictures": 161, "looks": LOOKS,
                "refused": {"the picture of /camera/image_raw is older than 0.5 s": 1}, "complaints": []},
        "policies": {label: {"family": "demo", "recipe": label.split("+")[0], "engine": "cpu", "device": "cpu",
                             "weight_bytes": 2623488, "float32_bytes": 20447232, "kept_tokens": 102,
                             "total_tokens": 256} for label in LABELS},
        "compared": [{"policy": one, "with": two, "looks": LOOKS, "mse": 3.91e-06, "mae": 0.001532,
                      "cosine": {"mean": 0.99127, "min": 0.90122}, "gripper_agreement": 0.98125,
                      "dimensions": {name: dict(measures) for name in ACTION_NAMES}} for one, two in pairs],
        "motion": {name: {"jerk_m_s3": 4.21, "path_m": 2.013} for name in ("recorded", *LABELS)},
        "tokens": {LABELS[0]: {"kept_mean": 102.0, "total": 256, "gripper_kept_mean": 0.904, "gripper_looks": 160},
                   LABELS[1]: {"kept_mean": 256.0, "total": 256, "gripper_kept_mean": 1.0, "gripper_looks": 160}},
        "tf": {"looks": LOOKS, "exact": 156, "latest": 4, "none": 0, "hit_rate": 0.975},
        "timing": {**{label: {"latency_ms": {stage: {level: round(times * factor * slower, 3)
                                                     for level, factor in levels.items()}
                                             for stage, times in stages.items()},
                              "deadline_ms": 100.0, "deadline_misses": 0}
                      for label, slower in zip(LABELS, (1.0, 1.8), strict=True)},
                   "wall_s": 14.2, "decode_images_per_s": 412.0},
        "settings": {"seed": 0, "prune.rule": "sqap", "topics": {"images": ["/camera/image_raw"]}},
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu"},
        "machine": {"system": "Linux", "cores": 2},
    }


def draw_pictures(folder):
    """Overlays of every fourth look, each of its own colour."""
    (folder / "overlays").mkdir(parents=True)
    down, right = np.mgrid[0:412, 0:512]
    for index in range(0, LOOKS, 4):
        shade = (right // 32 + down // 32) % 2 * 40 + index
        picture = np.stack((shade, 255 - shade, 90 + right // 8), axis=2).astype(np.uint8)
        Image.fromarray(picture).save(folder / "overlays" / f"{index:06d}.jpg", quality=80)


@pytest.fixture
def looks():
    """Lines of ``looks.jsonl``."""
    return make_looks()


@pytest.fixture
def summary():
    """Content of ``summary.json``."""
    return make_summary()


@pytest.fixture(scope="session")
def replay_report(replay_folder):
    """The replay's page, in a file; it has a complaint."""
    summary = make_summary()
    summary["bag"]["complaints"] = ["the bag ends in the middle of a message; what is whole was read"]
    write_page(build_replay_page(summary, make_looks(), replay_folder), replay_folder / "report.html")
    return replay_folder / "report.html"


@pytest.fixture(scope="session")
def replay_folder(tmp_path_factory):
    """Where the overlays lie."""
    folder = tmp_path_factory.mktemp("replay")
    draw_pictures(folder)
    return folder
