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

import pytest
import rclpy
from rclpy.context import Context
from rclpy.exceptions import ParameterException
from rclpy.parameter import Parameter

from sqap_vla_ros.config import Config, build_config, iterate_knobs
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.ros.parameters import change_config, declare_parameters, read_config


@pytest.fixture
def make_node():
    context = Context()
    rclpy.init(context=context)
    nodes = []

    def make(**overrides):
        parameters = [Parameter(name.replace("__", "."), value=value) for name, value in overrides.items()]
        nodes.append(rclpy.create_node("knobs", context=context, parameter_overrides=parameters))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_every_knob_is_a_parameter_with_its_default_and_its_sentence(make_node):
    node = make_node()
    declare_parameters(node)
    assert read_config(node) == Config()
    for name, knob, _ in iterate_knobs(Config()):
        assert node.describe_parameter(name).description == knob.description


def test_ranges_and_choices_are_described(make_node):
    node = make_node()
    declare_parameters(node)
    speed = node.describe_parameter("safety.max_linear_m_s").floating_point_range[0]
    assert (speed.from_value, speed.to_value) == (0.0, 5.0)
    threads = node.describe_parameter("model.threads").integer_range[0]
    assert (threads.from_value, threads.to_value) == (1, 256)
    recipe = node.describe_parameter("model.recipe").additional_constraints
    assert recipe.startswith("one of float, stored, w4a4, w4a4-rtn, ")
    assert recipe.endswith("; fixed while the node is configured")
    assert node.describe_parameter("safety.max_linear_m_s").additional_constraints == ""


def test_overrides_are_read(make_node):
    node = make_node(model__recipe="float", footprint__frames=["tool0"], footprint__radii_m=[0.1],
                     control__execute_steps=3)
    declare_parameters(node)
    config = read_config(node)
    assert (config.model.recipe, config.footprint.frames, config.footprint.radii_m) == ("float", ("tool0",), (0.1,))
    assert config.control.execute_steps == 3


@pytest.mark.parametrize("override", [{"control__command_hz": 0.1}, {"control__command_hz": "fast"},
                                      {"model__threads": 0}])
def test_an_override_of_another_type_or_out_of_range_is_refused_at_declaration(make_node, override):
    with pytest.raises(ParameterException):
        declare_parameters(make_node(**override))


def test_a_contradiction_is_told_when_read(make_node):
    node = make_node(footprint__frames=["tool0"])
    declare_parameters(node)
    with pytest.raises(ConfigError, match="3 values for 1"):
        read_config(node)


def change(name, value, *, configured):
    return change_config(Config(), [Parameter(name, value=value)], configured=configured)


def test_changes_are_checked_and_the_fixed_ones_refused_once_configured():
    assert change("safety.max_linear_m_s", 0.1, configured=True).safety.max_linear_m_s == 0.1
    assert change("model.recipe", "float", configured=False).model.recipe == "float"
    with pytest.raises(ConfigError, match=r"model\.recipe cannot change while the node is configured"):
        change("model.recipe", "float", configured=True)
    with pytest.raises(ConfigError, match="allowed are float"):
        change("model.recipe", "w2a2", configured=False)
    with pytest.raises(ConfigError, match="one radius per frame"):
        change("footprint.radii_m", [0.1], configured=True)
    ensemble = build_config({"control.ensemble_horizon": 2, "control.execute_steps": 1})
    with pytest.raises(ConfigError, match=r"set control\.execute_steps to 1, or control\.ensemble_horizon to 1"):
        change_config(ensemble, [Parameter("control.execute_steps", value=2)], configured=True)
    with pytest.raises(ConfigError, match=r"control\.ensemble_horizon cannot change while the node is configured"):
        change_config(ensemble, [Parameter("control.ensemble_horizon", value=1)], configured=True)
    # What is no knob is somebody else's.
    assert change("use_sim_time", True, configured=True) == Config()
