"""The simulated robot: seeds, pictures, frames and goals."""

import numpy as np
import pytest

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.episode import run_episode
from sqap_vla_ros.simulation.expert import MAX_STEP_M, act, plan
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.tabletop import CONTROL_PERIOD_S, REACH_HEIGHT_M, Tabletop
from sqap_vla_ros.simulation.tasks import COLORS, KINDS, MAX_STEPS, VOCABULARY, Task


@pytest.fixture(scope="module")
def tabletop():
    """One simulation for the whole module; every test resets it."""
    table = Tabletop()
    yield table
    table.close()


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


def test_the_expert_does_at_least_99_percent_of_300_scenes(tabletop):
    done = 0
    for seed in range(300):
        scene = tabletop.reset(40_000 + seed)
        task = Task(KINDS[seed % 3], scene.colors[seed % len(scene.colors)])
        for _ in range(MAX_STEPS):
            tabletop.step(act(tabletop.state(), task, tabletop.layout))
            if tabletop.succeeded(task):
                done += 1
                break
    assert done >= 297


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
    assert (outcome.success, outcome.steps) == (False, MAX_STEPS)
    assert looks == [f"pick up the {color} block"] * (MAX_STEPS // 3)


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


@pytest.mark.parametrize(("kind", "color", "named"), [("push", "red", "push"), ("pick", "pink", "pink")])
def test_tasks_that_do_not_exist_are_named(kind, color, named):
    with pytest.raises(ConfigError, match=named):
        Task(kind, color)


def test_every_instruction_is_made_of_the_vocabulary():
    words = {word for kind in KINDS for color in COLORS for word in Task(kind, color).instruction.split()}
    assert words == set(VOCABULARY)


def _matrix(quaternion):
    x, y, z, w = quaternion
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
