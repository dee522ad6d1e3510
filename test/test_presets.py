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

"""The parameter files of config/, read as ROS reads them."""

import math
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.context import Context

from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.models import oft_presets
from sqap_vla_ros.ros.parameters import declare_parameters, read_config

CONFIG = Path(__file__).parents[1] / "config"
# All but the example of a sweep, which is no parameter file.
FILES = sorted(path.name for path in CONFIG.glob("*.yaml") if path.name != "sweep.yaml")
NODES = {"policy_node", "watchdog_node", "sim_robot"}
OWN = {"use_sim_time", "autostart"}


def overrides_of(file, node):
    """What a node of that name, in some namespace, is told by ``--params-file``: dotted name to value."""
    context = Context()
    rclpy.init(context=context, args=["--ros-args", "--params-file", str(CONFIG / file)])
    try:
        named = rclpy.create_node(node, namespace="/cell_1", context=context,
                                  automatically_declare_parameters_from_overrides=True)
        told = {name: parameter.value for name, parameter in named.get_parameters_by_prefix("").items()}
        named.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    return {name: value for name, value in told.items() if not name.startswith("start_type_description")}


def config_of(file):
    """The configuration of a policy node that is started with a file."""
    context = Context()
    rclpy.init(context=context, args=["--ros-args", "--params-file", str(CONFIG / file)])
    try:
        node = rclpy.create_node("policy_node", context=context)
        declare_parameters(node)
        config = read_config(node)
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    return config


def test_all_presets_are_looked_at():
    assert set(FILES) == {"cogact_widowx.yaml", "demo.yaml", "moveit_servo.yaml", "openvla_bridge.yaml",
                          "openvla_oft_libero.yaml", "policy.yaml"}


@pytest.mark.parametrize("file", FILES)
def test_a_preset_names_known_nodes_and_knobs_and_is_taken(file):
    nodes = {pattern.removeprefix("/**/") for pattern in yaml.safe_load((CONFIG / file).read_text())}
    assert "policy_node" in nodes <= NODES
    told = overrides_of(file, "policy_node")
    knobs = {name for name, _, _ in iterate_knobs(Config())}
    assert told.keys() - OWN <= knobs
    config = config_of(file)
    values = {name: list(value) if isinstance(value, tuple) else value for name, _, value in iterate_knobs(config)}
    assert {name: values[name] for name in told.keys() - OWN} == {name: told[name] for name in told.keys() - OWN}


@pytest.mark.parametrize("file", FILES)
def test_only_the_demo_moves_a_robot_by_itself(file):
    control = config_of(file).control
    assert (control.dry_run, control.enable_actuation) == ((False, True) if file == "demo.yaml" else (True, False))
    assert overrides_of(file, "policy_node")["autostart"] == (file == "demo.yaml")


@pytest.mark.parametrize("file", sorted(set(FILES) - {"policy.yaml"}))
def test_all_nodes_of_a_file_have_one_clock(file):
    nodes = [pattern.removeprefix("/**/") for pattern in yaml.safe_load((CONFIG / file).read_text())]
    simulated = {overrides_of(file, node)["use_sim_time"] for node in nodes if node != "sim_robot"}
    assert simulated == {file == "demo.yaml"} and "watchdog_node" in nodes


def test_bridge_presets_keep_the_data_s_rate_and_cut_off_none_of_its_actions():
    for file in ("cogact_widowx.yaml", "openvla_bridge.yaml"):
        config = config_of(file)
        assert (config.model.dataset, config.control.step_period_s) == ("bridge_orig", 0.2)
        # Larger of the 1 % and the 99 % quantile of each axis of the data, which are what -1 and 1 become; m, rad.
        assert config.safety.max_linear_m_s >= math.hypot(0.0288, 0.0418, 0.0402) / 0.2
        assert config.safety.max_angular_rad_s >= math.hypot(0.0820, 0.0929, 0.2072) / 0.2
        assert config.safety.command_timeout_s >= config.control.step_period_s
    assert config_of("openvla_bridge.yaml").model.pictures == "bridge"


def test_cogact_averages_instead_of_carrying_out_chunks():
    config = config_of("cogact_widowx.yaml")
    control = config.control
    assert (control.execute_steps, control.ensemble_horizon, control.ensemble_alpha) == (1, 7, 0.1)
    assert (config.model.sampler_steps, config.model.guidance) == (10, 1.5)


def test_oft_gets_what_its_robot_asks_for():
    config, preset = config_of("openvla_oft_libero.yaml"), oft_presets.PRESETS["libero"]
    assert config.model.robot == "libero" and len(config.input.cameras) == len(preset.cameras)
    assert config.control.execute_steps == preset.chunk_steps
    assert (config.input.state, 6 + len(config.input.joints)) == ("pose_axis_angle", preset.proprio_dims)


def test_servo_hears_often_enough():
    """MoveIt Servo halts after 0.1 s without a command, its default."""
    control = config_of("moveit_servo.yaml").control
    assert control.command_hz >= 2 / 0.1 and control.command == "twist"
