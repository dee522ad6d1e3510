"""What the launch files start, read through stand-ins with the signatures that Humble, Jazzy and Kilted share."""

import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sqap_vla_ros.config import Config, iterate_knobs

LAUNCH = Path(__file__).parents[1] / "launch"
ARGUMENTS = {"params_file", "namespace", "use_sim_time", "checkpoint", "autostart", "log_level"}


class Configuration(str):
    """``LaunchConfiguration``: a name, filled in when performed."""

    def perform(self, context):
        return context[str(self)]


def stand_ins():
    """Modules of launch and launch_ros that record what they are given; an unknown keyword is a TypeError."""

    def node(*, package, executable, name=None, namespace=None, parameters=None, arguments=None, output=None):
        return SimpleNamespace(**locals())

    def lifecycle_node(*, name, namespace, **kwargs):  # both are required there
        return node(name=name, namespace=namespace, **kwargs)

    contents = {
        "launch": {"LaunchDescription": list},
        "launch.actions": {
            "DeclareLaunchArgument": lambda name, *, default_value, description: SimpleNamespace(
                argument=name, default=default_value, description=description),
            "OpaqueFunction": lambda *, function: function,
            "IncludeLaunchDescription": lambda source, *, launch_arguments: SimpleNamespace(
                source=source, given=dict(launch_arguments))},
        "launch.launch_description_sources": {"PythonLaunchDescriptionSource": "".join},
        "launch.substitutions": {"LaunchConfiguration": Configuration},
        "launch_ros": {},
        "launch_ros.actions": {"Node": node, "LifecycleNode": lifecycle_node},
        "launch_ros.parameter_descriptions": {
            "ParameterValue": lambda value, *, value_type: (value, value_type)},
        "launch_ros.substitutions": {"FindPackageShare": lambda package: f"<{package}>"},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        yield name, module


@pytest.fixture
def describe(monkeypatch):
    """Run a launch file's ``generate_launch_description``; gives declared defaults and all other entities."""
    for name, module in stand_ins():
        monkeypatch.setitem(sys.modules, name, module)

    def run(file):
        entities = runpy.run_path(str(LAUNCH / file))["generate_launch_description"]()
        declared = {entity.argument: entity.default for entity in entities if hasattr(entity, "argument")}
        return declared, [entity for entity in entities if not hasattr(entity, "argument")]

    return run


def start_policy(describe, **given):
    """The policy node's action for some arguments."""
    declared, (function,) = describe("policy.launch.py")
    assert set(declared) == ARGUMENTS
    (node,) = function(declared | given)
    return node


def test_policy_alone_takes_everything_from_the_defaults(describe):
    node = start_policy(describe)
    assert (node.package, node.executable, node.name) == ("sqap_vla_ros", "policy_node", "policy_node")
    assert node.parameters == []
    assert node.arguments == ["--ros-args", "--log-level", "log_level"]


def test_policy_arguments_override_the_parameter_file(describe):
    node = start_policy(describe, params_file="robot.yaml", checkpoint="7b", autostart="true")
    assert node.parameters == [
        "robot.yaml", {"model.checkpoint": ("checkpoint", str), "autostart": ("autostart", bool)}]
    assert "model.checkpoint" in {name for name, _, _ in iterate_knobs(Config())}


def test_demo_starts_robot_and_policy_from_one_file(describe):
    declared, (robot, policy) = describe("demo.launch.py")
    assert set(declared) == ARGUMENTS - {"use_sim_time"}
    assert "".join(declared["params_file"]) == "<sqap_vla_ros>/config/demo.yaml"
    assert (LAUNCH.parent / "config" / "demo.yaml").exists()
    assert (robot.executable, robot.name, robot.parameters) == ("sim_robot_node", "sim_robot", ["params_file"])
    assert policy.source == "<sqap_vla_ros>/launch/policy.launch.py"
    assert policy.given == {name: name for name in declared}


@pytest.mark.skipif(importlib.util.find_spec("launch_ros") is None, reason="needs a ROS 2 installation")
@pytest.mark.parametrize("file", ["policy.launch.py", "demo.launch.py"])
def test_real_launch_accepts_the_files(file):
    description = runpy.run_path(str(LAUNCH / file))["generate_launch_description"]()
    assert {action.name for action in description.get_launch_arguments()} <= ARGUMENTS
