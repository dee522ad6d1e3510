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

"""Projection and protection against pictures whose every pixel is labelled."""

import cv2
import numpy as np

from sqap_vla_ros.geometry.footprint import project_footprint, token_mask
from sqap_vla_ros.geometry.image_map import resize_map
from sqap_vla_ros.knobs import FootprintKnobs
from sqap_vla_ros.simulation.expert import act
from sqap_vla_ros.simulation.tasks import BASE_KINDS, Task

SEEDS = range(7_000, 7_030)
GRIPPER = FootprintKnobs().frames


def play(tabletop, seed):
    """A scene somewhere on the expert's way."""
    rng = np.random.default_rng(seed)
    scene = tabletop.reset(seed)
    task = Task(BASE_KINDS[seed % 3], scene.colors[0])
    for _ in range(int(rng.integers(0, 25))):
        tabletop.step(act(tabletop.state(), task, tabletop.layout))


def frames_of(tabletop):
    """Every frame in the camera's optical frame, (4, 4)."""
    poses = {"panda_link0": np.eye(4)}
    for parent, child, shift, (x, y, z, w) in tabletop.link_poses() + tabletop.static_poses():
        if parent not in poses:
            continue
        step = np.eye(4)
        step[:3, :3] = [[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]]
        step[:3, 3] = shift
        poses[child] = poses[parent] @ step
    optical = np.linalg.inv(poses["camera_optical_frame"])
    return {name: optical @ pose for name, pose in poses.items()}


def seen(tabletop, labels, names):
    wanted = [index for index in np.unique(labels) if index >= 0 and tabletop.body_name(index) in names]
    return np.isin(labels, wanted)


def test_protected_tokens_cover_the_gripper(tabletop):
    camera, knobs = tabletop.camera(), FootprintKnobs()
    image_map = resize_map(camera.width, camera.height, 224)
    shares, counts = [], []
    for seed in SEEDS:
        play(tabletop, seed)
        poses = frames_of(tabletop)
        positions = np.array([poses[name][:3, 3] for name in GRIPPER])
        mask = token_mask(project_footprint(camera, GRIPPER, positions, knobs.radii_m), image_map, (16, 16), 224)
        protected = cv2.resize(mask.reshape(16, 16).astype(np.uint8), (camera.width, camera.height),
                               interpolation=cv2.INTER_NEAREST).astype(bool)
        gripper = seen(tabletop, tabletop.segment(), GRIPPER)
        shares.append((gripper & protected).sum() / gripper.sum())
        counts.append(mask.sum())
    assert np.mean(shares) >= 0.95
    assert min(shares) >= 0.9
    # Protection leaves room for the rest of the picture.
    assert np.mean(counts) <= 0.2 * 256


def test_blocks_are_where_they_project(tabletop):
    camera, offsets = tabletop.camera(), []
    for seed in SEEDS:
        tabletop.reset(seed)
        labels, optical = tabletop.segment(), frames_of(tabletop)["panda_link0"]
        for color, center in tabletop.state().blocks.items():
            rows, columns = np.nonzero(seen(tabletop, labels, [f"block_{color}"]))
            if len(rows) > 300:
                pixel, _ = camera.project((optical @ [*center, 1.0])[None, :3])
                offsets.append(pixel[0] - [columns.mean(), rows.mean()])
    assert len(offsets) > 50
    # What is visible of a block leans a little towards the camera's side.
    assert np.abs(np.median(offsets, axis=0)).max() < 0.6
