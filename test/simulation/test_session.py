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

"""The simulated robot's rules without ROS."""

import numpy as np
import pytest

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.parameters import RANGES, build_layout, check_time
from sqap_vla_ros.simulation.session import COMMAND_TIMEOUT_NS, TICK_NS, TICKS_PER_STEP, Session, build_task, look_ahead
from sqap_vla_ros.simulation.tasks import Task

ZERO = np.zeros(3)


@pytest.fixture(scope="module")
def session():
    return Session(Layout(), 10**9)


def tool(session):
    return session.tabletop.state().tcp


def test_command_moves_the_arm_for_as_long_as_it_is_fresh(session):
    session.start_scene(0)
    start = tool(session)
    session.command_twist(session.now_ns, "panda_link0", np.array([0.0, 0.1, 0.0]), ZERO)
    for _ in range(50):
        session.tick()
    # 0.1 s at 0.1 m/s, then nothing although 1 s went by.
    np.testing.assert_allclose(tool(session) - start, [0.0, 0.01, 0.0], atol=2e-3)


def test_stale_is_counted_from_the_stamp_as_servo_does(session):
    session.start_scene(0)
    session.command_twist(session.now_ns - COMMAND_TIMEOUT_NS + 1, "world", ZERO, ZERO)
    with pytest.raises(InputError, match=r"a velocity 0\.100 s old was refused"):
        session.command_twist(session.now_ns - COMMAND_TIMEOUT_NS, "world", ZERO, ZERO)


def test_new_scene_makes_old_commands_stale(session):
    session.start_scene(0)
    stamp_ns = session.now_ns
    session.start_scene(1)
    with pytest.raises(InputError, match="old was refused"):
        session.command_twist(stamp_ns, "world", ZERO, ZERO)


def test_episode_runs_out_of_steps_and_then_stays_as_it_ended(session):
    session.start_scene(0, Task("pick", look_ahead(Layout(), 0).colors[0]))
    for _ in range(65):
        for _ in range(TICKS_PER_STEP):
            session.now_ns += TICK_NS
        session.end_step()
    outcome = session.outcome()
    assert (outcome["steps"], outcome["success"], outcome["finished"]) == ("60", "false", "true")


def test_free_play_never_finishes(session):
    session.start_scene(0)
    session.end_step()
    assert not session.finished and session.steps == 0


def test_refused_scene_leaves_the_old_one_untouched(session):
    seed_of_four = next(seed for seed in range(20) if len(session.start_scene(seed).colors) == 4)
    session.start_scene(seed_of_four, Task("pick", session.scene.colors[0]))
    session.command_twist(session.now_ns, "world", np.array([0.1, 0.0, 0.0]), ZERO)
    session.tick()
    before = session.tabletop.joint_state()[1]
    missing, = {"red", "green", "blue", "yellow", "purple"} - set(session.scene.colors)
    crowd = Layout(block_counts=(6, 6), twin_blocks=1, block_gap_m=0.2)
    for seed, task, layout, sentence in ((-5, None, None, "negative"), (3, None, crowd, "6 blocks do not fit"),
                                         (seed_of_four, Task("pick", missing), None, f"has no {missing} block")):
        with pytest.raises(ConfigError, match=sentence):
            session.start_scene(seed, task, layout)
    np.testing.assert_array_equal(session.tabletop.joint_state()[1], before)
    assert session.outcome()["task"] == "pick"


def test_a_task_without_a_color_is_about_an_only_block():
    scene = look_ahead(Layout(twin_blocks=1), 4)
    assert build_task(scene, "pick", "", "", "").color in scene.singles
    assert build_task(scene, "", "red", "", "") is None
    with pytest.raises(ConfigError, match="'dance' does not exist"):
        build_task(scene, "dance", "", "", "")


def test_closing_on_nothing_reaches_and_opening_beyond_the_stops_means_open(session):
    session.start_scene(0)
    session.command_gripper(0.0)
    for _ in range(40):
        session.tick()
    opening, reached, stalled = session.gripper()
    assert reached and not stalled and opening < 0.003
    session.command_gripper(1.0)
    for _ in range(40):
        session.tick()
    assert abs(session.gripper()[0] - 0.09) < 0.003
    with pytest.raises(InputError, match=r"allowed is 0 to 0\.09"):
        session.command_gripper(-0.1)


def test_every_layout_field_has_a_range_that_its_default_keeps():
    assert set(RANGES) == set(Layout.__dataclass_fields__)
    assert build_layout({name: getattr(Layout(), name) for name in RANGES}) == Layout()


@pytest.mark.parametrize(("values", "sentence"), [
    ({"camera_fovy": 30.0}, "unknown layout field 'camera_fovy'"),
    ({"camera_fovy_deg": 500.0}, "takes numbers from 5 to 120"),
    ({"tray_center": [0.1]}, "takes 2 numbers"),
    ({"block_area": [0.5, 0.4, 0.0, 0.1]}, "each 'from' must not exceed"),
    ({"block_counts": [4, 2]}, "the fewest must not exceed the most"),
    ({"block_gap_m": 0.4}, "do not fit"),
    ({"camera_shift_m": [0.1, 0.0]}, "'from' must not exceed 'to'"),
    ({"twin_blocks": 2}, "every twin needs another block"),
    ({"block_counts": [6, 6], "block_gap_m": 0.05}, "every twin needs another block"),
])
def test_layout_that_cannot_be_is_named(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_layout(values)


def test_time_cannot_be_bent_on_the_wall_clock():
    check_time(simulated=True, wait_s=1.0, factor=0.0)
    with pytest.raises(ConfigError, match="set publish_clock to true"):
        check_time(simulated=False, wait_s=1.0, factor=1.0)
    with pytest.raises(ConfigError, match="both must be 0 or more"):
        check_time(simulated=True, wait_s=-1.0, factor=1.0)
