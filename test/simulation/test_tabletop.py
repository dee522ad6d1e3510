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

"""The simulated robot: seeds, pictures, frames and goals."""

import numpy as np
import pytest

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.episode import run_episode
from sqap_vla_ros.simulation.expert import MAX_STEP_M, act, plan
from sqap_vla_ros.simulation.goals import REACH_HEIGHT_M
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.scene import draw_scene
from sqap_vla_ros.simulation.suite import SUITES, VARIATIONS, choose_trials
from sqap_vla_ros.simulation.tabletop import CONTROL_PERIOD_S, Tabletop
from sqap_vla_ros.simulation.tasks import COLORS, Task


def test_a_seed_fully_determines_scene_and_motion(tabletop):
    def play():
        scene = tabletop.reset(7)
        for _ in range(5):
            tabletop.step(act(tabletop.state(), Task("pick", scene.colors[0]), tabletop.layout))
        return scene, tabletop.render(), tabletop.joint_state()[1]

    (scene, picture, joints), (again, same_picture, same_joints) = play(), play()
    assert scene == again
    assert np.array_equal(picture, same_picture)
    assert np.array_equal(joints, same_joints)
    assert not np.array_equal(picture, (tabletop.reset(8), tabletop.render())[1])


def test_scenes_hold_three_or_four_blocks_apart_from_each_other(tabletop):
    counts = set()
    for seed in range(40):
        scene = tabletop.reset(seed)
        places = np.array([tabletop.state().blocks[color][:2] for color in scene.colors])
        gaps = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places))
        assert gaps.min() > tabletop.layout.block_gap_m - 0.002
        counts.add(len(places))
    assert counts == {3, 4}


@pytest.mark.parametrize(("suite", "variations"), [("base", ()), ("hard", ()), ("base", tuple(VARIATIONS))])
def test_the_expert_fails_at_most_twice_in_90(suite, variations):
    done, tables = [], {}
    for trial in choose_trials(suite, 90, 1_900_000, variations):
        table = tables.setdefault(trial.group, Tabletop(trial.layout))
        table.reset(trial.seed)
        for _ in range(trial.task.max_steps):
            table.step(act(table.state(), trial.task, trial.layout))
            if table.succeeded(trial.task):
                break
        done.append((trial.group, table.succeeded(trial.task)))
    for table in tables.values():
        table.close()
    assert sum(success for _, success in done) >= 88
    for group in SUITES[suite]:
        assert sum(not success for name, success in done if name == group) <= 1


def test_velocities_move_the_tool_as_asked(tabletop):
    tabletop.reset(3)
    before = tabletop.state().tcp
    tabletop.set_twist(np.array([0.0, 0.2, 0.0]), np.array([0.0, 0.0, 0.3]))
    tabletop.advance(0.5)
    tabletop.set_twist(np.zeros(3), np.zeros(3))
    tabletop.advance(0.3)
    state = tabletop.state()
    assert state.tcp - before == pytest.approx([0.0, 0.1, 0.0], abs=0.004)
    assert state.yaw == pytest.approx(0.15, abs=0.01)
    assert state.tcp_speed < 0.01


def test_the_projected_tool_lies_between_the_drawn_fingers(tabletop):
    camera = tabletop.camera()
    ids = {"panda_leftfinger", "panda_rightfinger"}
    for seed in range(8):
        tabletop.reset(seed)
        segments = tabletop.segment()
        named = np.isin(segments, [index for index in np.unique(segments)
                                   if index >= 0 and tabletop.body_name(index) in ids])
        rows, columns = np.nonzero(named)
        position, rotation = tabletop.camera_pose()
        pixel = camera.project((tabletop.state().tcp - position)[None] @ rotation)[0][0]
        assert columns.min() < pixel[0] < columns.max()
        assert rows.min() - 2 < pixel[1] < rows.max() + 8


def test_blocks_cover_at_least_two_tokens_each_way(tabletop):
    for seed in range(10):
        tabletop.reset(seed)
        segments = tabletop.segment()
        areas = [np.count_nonzero(segments == index) for index in np.unique(segments)
                 if index >= 0 and tabletop.body_name(index).startswith("block_")]
        assert np.median(areas) >= 28 * 28 * 0.8


def test_frames_chain_from_base_to_fingers(tabletop):
    tabletop.reset(1)
    poses = {child: (parent, xyz, quaternion) for parent, child, xyz, quaternion
             in tabletop.link_poses() + tabletop.static_poses()}
    position, rotation, frame = np.zeros(3), np.eye(3), "tool0"
    while frame in poses and frame != "panda_link0":
        parent, xyz, quaternion = poses[frame]
        matrix = _matrix(quaternion)
        position, rotation, frame = matrix @ position + xyz, matrix @ rotation, parent
    assert frame == "panda_link0"
    assert position == pytest.approx(tabletop.state().tcp, abs=1e-9)


def test_goals_are_not_met_at_the_start_nor_for_absent_blocks(tabletop):
    scene = tabletop.reset(5)
    assert not any(tabletop.succeeded(Task(kind, color)) for kind in ("pick", "place") for color in COLORS)
    absent = next(color for color in COLORS if color not in scene.colors)
    assert not tabletop.succeeded(Task("reach", absent))


def test_plans_follow_the_expert_and_respect_its_step(tabletop):
    scene = tabletop.reset(11)
    task, state = Task("place", scene.colors[0]), tabletop.state()
    chunk = plan(state, task, tabletop.layout, 4)
    assert np.array_equal(chunk[0], act(state, task, tabletop.layout))
    assert np.linalg.norm(chunk[:, :3], axis=1).max() <= MAX_STEP_M + 1e-12


def test_an_episode_counts_steps_and_stops_at_the_cap(tabletop):
    scene = tabletop.reset(2)
    color = scene.colors[0]
    looks = []

    def still(picture, instruction):
        looks.append(instruction)
        return np.tile([0, 0, 0, 0, 0, 0, 1.0], (4, 1))

    outcome = run_episode(tabletop, Task("pick", color), still, execute_steps=3)
    assert (outcome.success, outcome.steps) == (False, 60)
    assert looks == [f"pick up the {color} block"] * 20
    assert outcome.actions.shape == (60, 7)


def test_an_episode_ends_with_success(tabletop):
    scene = tabletop.reset(2)
    task = Task("reach", scene.colors[0])
    outcome = run_episode(tabletop, task, lambda *_: plan(tabletop.state(), task, tabletop.layout, 4), execute_steps=2)
    assert outcome.success
    goal = tabletop.state().blocks[task.color] + [0, 0, REACH_HEIGHT_M]
    assert np.linalg.norm(tabletop.state().tcp - goal) < 0.025
    assert outcome.steps * CONTROL_PERIOD_S < 2.0


def test_light_and_camera_change_the_picture():
    pictures = []
    for layout in (Layout(), Layout(light_intensity=0.3), Layout(camera_pitch_deg=51.0)):
        table = Tabletop(layout)
        table.reset(0)
        pictures.append(table.render().astype(float))
        table.close()
    assert pictures[0].mean() - pictures[1].mean() > 15
    assert np.abs(pictures[0] - pictures[2]).mean() > 3


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"[34] blocks do not fit"):
        Tabletop(Layout(block_gap_m=0.5))


def test_camera_and_light_move_by_what_the_layout_says():
    still = Tabletop()
    still.reset(3)
    position, rotation = still.camera_pose()
    table = Tabletop(Layout(camera_shift_m=(0.03, 0.03), camera_turn_deg=(3.0, 3.0), light_scale=(0.5, 0.5)))
    bright = still.render().mean()
    directions = []
    for seed in range(4):
        table.reset(seed)
        moved, turned = table.camera_pose()
        assert np.linalg.norm(moved - position) == pytest.approx(0.03, abs=1e-6)
        assert np.degrees(np.arccos((np.trace(turned @ rotation.T) - 1) / 2)) == pytest.approx(3.0, abs=1e-3)
        directions.append(moved - position)
    assert table.render().mean() < 0.6 * bright
    still.close()
    table.close()
    assert np.linalg.matrix_rank(directions) == 3


def test_the_second_block_of_a_color_is_seen_where_it_is():
    layout = Layout(twin_blocks=1, block_counts=(4, 4), start_area=(0.3, 0.3, 0.2, 0.2, 0.3, 0.3))
    table = Tabletop(layout)
    for seed in range(6):
        scene, state = table.reset(seed), table.state()
        assert {name for name in state.blocks if "_2" in name} == {f"{scene.twins[0]}_2"}
        labels, picture = table.segment(), table.render().reshape(-1, 3).astype(float)
        position, rotation = table.camera_pose()
        tones = []
        for name in (scene.twins[0], f"{scene.twins[0]}_2"):
            mine = [i for i in np.unique(labels) if i >= 0 and table.body_name(i) == f"block_{name}"]
            rows, columns = np.nonzero(labels == mine[0])
            pixel = table.camera().project(((state.blocks[name] - position) @ rotation)[None])[0][0]
            assert np.hypot(*(pixel - [columns.mean(), rows.mean()])) < 4
            tones.append(picture[(labels == mine[0]).ravel()].mean(0))
        assert np.abs(tones[0] / np.linalg.norm(tones[0]) - tones[1] / np.linalg.norm(tones[1])).max() < 0.05
    table.close()


def test_yaw_is_told_of_blocks_and_gripper(tabletop):
    scene = tabletop.reset(9)
    state = tabletop.state()
    for block in scene.blocks:
        assert state.yaws[block.name] == pytest.approx(block.yaw, abs=0.02)
    for _ in range(3):
        tabletop.step(np.array([0, 0, 0, 0, 0, 0.1, 1.0]))
    assert tabletop.state().yaw - state.yaw == pytest.approx(0.3, abs=0.05)


def test_looking_ahead_sees_what_will_be_laid_out(tabletop):
    assert draw_scene(tabletop.layout, 12) == tabletop.reset(12)


def _matrix(quaternion):
    x, y, z, w = quaternion
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
