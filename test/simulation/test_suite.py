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

"""Tasks, goals, scenes and suites: what can be asked, what is asked of which scene, and when it is done."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.simulation.expert import MAX_STEP_M, act, find_target, grasp_yaw
from sqap_vla_ros.simulation.goals import State, goal_reached
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.scene import draw_scene
from sqap_vla_ros.simulation.suite import DIFFICULTIES, SEED_RANGES, SUITES, choose_trials
from sqap_vla_ros.simulation.tasks import COLORS, KINDS, SIDES, TWO_BLOCK_KINDS, VOCABULARY, Task
from sqap_vla_ros.training.settings import TRAIN_SEEDS

LAYOUT = Layout()
HALF = LAYOUT.block_size_m / 2


def state(**changes):
    """Two red blocks and a blue one on the table, the gripper high above."""
    blocks = {"red": np.array([0.4, -0.1, HALF]), "red_2": np.array([0.5, 0.0, HALF]),
              "blue": np.array([0.45, -0.05, HALF])}
    whole = State(np.array([0.45, 0.0, 0.3]), 0.0, 0.0, 0.09, blocks, dict.fromkeys(blocks, 0.0),
                  np.array([0.465, 0.14, 0.0]))
    return replace(whole, **changes)


@pytest.mark.parametrize(("task", "named"), [
    (("push", "red"), "'push' does not exist"), (("pick", "pink"), "'pink' does not exist"),
    (("pick", "red", "upper"), "side 'upper'"), (("stack", "red"), "take one other than"),
    (("pick", "red", "", "blue"), "the rest none"), (("stack", "red", "", "red"), "other than the first")])
def test_tasks_that_do_not_exist_are_named(task, named):
    with pytest.raises(ConfigError, match=named):
        Task(*task)


def test_every_instruction_is_made_of_the_vocabulary_and_they_all_differ():
    tasks = [Task(kind, color, side, other) for kind in KINDS for color in COLORS for side in ("", *SIDES)
             for other in (COLORS if kind in TWO_BLOCK_KINDS else ("",)) if other != color]
    words = {word for task in tasks for word in task.instruction.replace(",", "").split()}
    assert words == set(VOCABULARY)
    assert len({task.instruction for task in tasks}) == len(tasks)


def test_scenes_say_which_tasks_they_allow():
    scene = draw_scene(Layout(twin_blocks=1, block_counts=(4, 4)), 1)
    twin, single = scene.twins[0], scene.singles[0]
    scene.check(Task("pick", twin, "left"))
    scene.check(Task("stack", twin, "right", single))
    for task in (Task("pick", twin), Task("pick", single, "left"), Task("stack", single, other=twin)):
        with pytest.raises(ConfigError, match="is not clear in scene 1"):
            scene.check(task)
    with pytest.raises(ConfigError, match="has no"):
        scene.check(Task("pick", next(color for color in COLORS if color not in scene.colors)))


def test_left_and_right_are_those_of_the_picture():
    for layout in (Layout(twin_blocks=1), Layout(twin_blocks=1, camera_yaw_deg=90.0)):
        scene = draw_scene(layout, 5)
        places = {block.name: np.dot(block.position, layout.rightward) for block in scene.blocks}
        left, right = (scene.target(Task("pick", scene.twins[0], side)) for side in SIDES)
        assert places[right] - places[left] >= layout.twin_gap_m


def test_difficulties_are_as_hard_as_they_say():
    for name, changes in DIFFICULTIES.items():
        scenes = [draw_scene(replace(LAYOUT, **changes), seed) for seed in range(40)]
        assert name not in ("pair", "crowded") or all(len(scene.twins) == 1 for scene in scenes)
        assert name != "crowded" or all(len(scene.blocks) == 6 for scene in scenes)
        widest = max(abs(block.yaw) for scene in scenes for block in scene.blocks)
        assert (widest > 0.7) == (name == "yaw")
    assert DIFFICULTIES["small"]["block_size_m"] == 0.03


def test_hard_groups_show_all_their_difficulties_at_once():
    layouts = {trial.group: trial.layout for trial in choose_trials("hard", 6, 100)}
    assert {group: layout.block_size_m for group, layout in layouts.items()} == {
        "small": 0.03, "crowded": 0.04, "pair": 0.04, "yaw": 0.03, "stack": 0.04, "two-step": 0.04}
    assert {group for group, layout in layouts.items() if layout.block_yaw_rad > 0.7} == {"pair", "yaw", "two-step"}
    assert {group for group, layout in layouts.items() if layout.block_counts == (6, 6)} == {
        "crowded", "pair", "two-step"}
    for layout in layouts.values():
        assert (layout.camera_shift_m == (0.03, 0.03)) == (layout.light_scale == (0.65, 0.65))
    assert {group for group, layout in layouts.items() if layout.light_tilt_deg[1]} == {"small", "crowded", "yaw"}
    dimmed = choose_trials("hard", 6, 100, ("dim-light",))
    assert all(trial.layout.light_scale == (0.65, 0.65) for trial in dimmed)
    assert [trial.layout.block_size_m for trial in dimmed] == [layout.block_size_m for layout in layouts.values()]


def test_trials_take_groups_in_turn_and_colors_evenly():
    for suite, groups in SUITES.items():
        trials = choose_trials(suite, 60, 100)
        assert trials == choose_trials(suite, 60, 100)
        assert [trial.group for trial in trials[:len(groups)]] == list(groups)
        assert [trial.seed for trial in trials] == list(range(100, 160))
        for trial in trials:
            draw_scene(trial.layout, trial.seed).check(trial.task)
        colors = Counter(trial.task.color for trial in trials)
        assert set(colors) == set(COLORS) and max(colors.values()) <= 2 * min(colors.values())
    assert {trial.task.kind for trial in choose_trials("hard", 60, 100)} == set(KINDS)


def test_seeds_of_training_validation_and_test_are_apart():
    ranges = sorted([TRAIN_SEEDS, *SEED_RANGES.values()], key=lambda seeds: seeds.start)
    assert all(one.stop <= other.start for one, other in itertools.pairwise(ranges))


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("soft", 3, 0), "suite 'soft' does not exist; allowed are base, hard"),
    (("base", 3, 0, ("fog",)), "variation 'fog' does not exist")])
def test_suites_that_do_not_exist_are_named(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        choose_trials(*arguments)


def test_a_stack_stands_only_when_let_go():
    on_top = {**state().blocks, "red": np.array([0.455, -0.05, 3 * HALF])}
    task = Task("stack", "red", "left", "blue")
    assert goal_reached(state(blocks=on_top), task, "red", LAYOUT)
    holding = state(blocks=on_top, tcp=on_top["red"], opening=0.05)
    assert not goal_reached(holding, task, "red", LAYOUT)
    beside = {**on_top, "red": np.array([0.49, -0.05, 3 * HALF])}
    assert not goal_reached(state(blocks=beside), task, "red", LAYOUT)


def test_two_steps_count_only_with_both_done():
    task = Task("place-reach", "red", "left", "blue")
    over_blue = state().blocks["blue"] + [0, 0, 0.075]
    in_tray = {**state().blocks, "red": np.array([0.465, 0.14, HALF + 0.004])}
    assert goal_reached(state(blocks=in_tray, tcp=over_blue), task, "red", LAYOUT)
    assert not goal_reached(state(blocks=in_tray), task, "red", LAYOUT)
    assert not goal_reached(state(tcp=over_blue), task, "red", LAYOUT)


def test_the_expert_keeps_to_the_block_in_its_hand():
    task = Task("place", "red", "left")
    assert find_target(state(), task, LAYOUT) == "red"
    just_gripped = state(tcp=state().blocks["red_2"], opening=0.05)
    assert find_target(just_gripped, task, LAYOUT) == "red"
    carried = {**state().blocks, "red": np.array([0.45, 0.1, 0.14])}
    assert find_target(state(blocks=carried), task, LAYOUT) == "red_2"
    held = state(blocks=carried, tcp=carried["red"], opening=0.05)
    assert find_target(held, task, LAYOUT) == "red"


@pytest.mark.parametrize("task", [Task("place", "red", "left"), Task("pick-place", "red", "left"),
                                  Task("place-reach", "red", "left", "blue")])
def test_the_expert_takes_no_second_block_once_one_is_in_the_tray(task):
    delivered = {**state().blocks, "red": np.array([0.465, 0.14, HALF + 0.004])}
    assert find_target(state(blocks=delivered), task, LAYOUT) == "red"


def test_the_expert_takes_no_second_block_once_one_is_stacked():
    stacked = {**state().blocks, "red": np.array([0.455, -0.05, 3 * HALF]), "red_2": np.array([0.4, -0.12, HALF])}
    assert find_target(state(blocks=stacked), Task("stack", "red", "left", "blue"), LAYOUT) == "red"


@pytest.mark.parametrize(("block", "gripper", "expected"), [
    (0.3, 0.0, 0.3), (-0.3, 0.0, -0.3), (1.4, 0.0, 1.4 - np.pi / 2), (0.75, 0.9, 0.75), (0.6, 1.45, 0.6)])
def test_grasps_turn_the_short_way_and_never_far(block, gripper, expected):
    turned = state(yaw=gripper, yaws={"red": block, "red_2": 0.0, "blue": 0.0})
    assert grasp_yaw(turned, "red") == pytest.approx(expected)


@pytest.mark.parametrize("task", [Task("stack", "red", "left", "blue"), Task("place", "red", "left"),
                                  Task("pick", "red", "left")])
def test_the_expert_leads_on_wherever_one_is_unsure(task):
    """Moved by 1 mm, it moves by a few millimetres more or less, so that the mean of what lies around leads on too."""
    def step(place):
        held = task.kind != "pick"
        blocks = {**state().blocks, "red": place} if held else state().blocks
        return act(state(tcp=place, opening=0.05 if held else 0.09, blocks=blocks), task, LAYOUT)[:3]

    over = {"stack": state().blocks["blue"], "place": state().tray, "pick": state().blocks["red"]}[task.kind]
    # Past the first millimetres, where the gripper closes or opens and another goal begins.
    for height in np.arange(0.05, 0.2, 0.015) + (0.05 if task.kind == "stack" else 0.0):
        places = [np.array([over[0] + aside, over[1], height]) for aside in np.arange(0.012, 0.12, 0.001)]
        steps = np.array([step(place) for place in places])
        assert np.abs(np.diff(steps, axis=0)).max() < 0.15 * MAX_STEP_M
