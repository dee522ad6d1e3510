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

"""What the launch files start, read through stand-ins with the signatures that Humble, Jazzy and Kilted share."""

import importlib.util
import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import rclpy
from rclpy.context import Context

from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.parameters import declare_parameters, read_config

LAUNCH = Path(__file__).parents[1] / "launch"
SHARED = {"params_file", "namespace", "checkpoint", "autostart", "log_level"}
ARGUMENTS = SHARED | {"use_sim_time", "dry_run", "servo", "watchdog"}
FILES = sorted(path.name for path in LAUNCH.glob("*.launch.py"))
POLICY = "<sqap_vla_ros>/launch/policy.launch.py"


class Configuration(str):
    """``LaunchConfiguration``: a name, filled in when performed."""

    def perform(self, context):
        return context[str(self)]


def stand_ins():
    """Modules of launch and launch_ros that record what they are given; an unknown keyword is a TypeError."""

    def node(*, package, executable, name=None, namespace=None, parameters=None, arguments=None, output=None,
             condition=None):
        return SimpleNamespace(**locals())

    def lifecycle_node(*, name, namespace, **kwargs):  # both are required there
        return node(name=name, namespace=namespace, **kwargs)

    contents = {
        "launch": {"LaunchDescription": list},
        "launch.actions": {
            "DeclareLaunchArgument": lambda name, *, default_value=None, description: SimpleNamespace(
                argument=name, default=default_value, description=description),
            "ExecuteProcess": lambda *, cmd, output, on_exit: SimpleNamespace(
                command=cmd, output=output, on_exit=on_exit),
            "GroupAction": list,
            "OpaqueFunction": lambda *, function: function,
            "RegisterEventHandler": lambda handler: handler,
            "Shutdown": lambda *, reason: ("shutdown", reason),
            "IncludeLaunchDescription": lambda source, *, launch_arguments: SimpleNamespace(
                source=source, given=dict(launch_arguments))},
        "launch.conditions": {"IfCondition": lambda predicate: ("if", predicate)},
        "launch.launch_description_sources": {"PythonLaunchDescriptionSource": "".join},
        "launch.substitutions": {"LaunchConfiguration": Configuration},
        "launch_ros": {},
        "launch_ros.actions": {"Node": node, "LifecycleNode": lifecycle_node,
                               "SetRemap": lambda src, dst: (src, "".join(dst))},
        "launch_ros.event_handlers": {
            "OnStateTransition": lambda *, goal_state, entities, handle_once: SimpleNamespace(
                goal_state=goal_state, entities=entities, once=handle_once)},
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
    """The actions of the policy's node and its watchdog for some arguments."""
    declared, (function,) = describe("policy.launch.py")
    assert set(declared) == ARGUMENTS
    return function(declared | given)


def test_policy_alone_takes_everything_from_the_defaults(describe):
    node, watchdog = start_policy(describe)
    assert (node.package, node.executable, node.name) == ("sqap_vla_ros", "policy_node", "policy_node")
    assert (watchdog.package, watchdog.executable, watchdog.name) == ("sqap_vla_ros", "watchdog_node", "watchdog_node")
    assert node.condition is None and watchdog.condition == ("if", "watchdog")
    for action in (node, watchdog):
        assert action.parameters == [] and action.namespace == "namespace"
        assert action.arguments == ["--ros-args", "--log-level", "log_level"]


def test_policy_arguments_override_the_parameter_file(describe):
    node, watchdog = start_policy(describe, params_file="robot.yaml", checkpoint="7b", autostart="true",
                                  use_sim_time="true", dry_run="false", servo="humble")
    assert node.parameters == ["robot.yaml", {
        "use_sim_time": ("use_sim_time", bool), "model.checkpoint": ("checkpoint", str),
        "control.dry_run": ("dry_run", bool), "control.servo": ("servo", str), "autostart": ("autostart", bool)}]
    assert watchdog.parameters == ["robot.yaml", {"use_sim_time": ("use_sim_time", bool)}]
    knobs = {name for name, _, _ in iterate_knobs(Config())}
    assert {name for name in node.parameters[1] if "." in name} <= knobs


def test_demo_starts_robot_and_policy_from_one_file(describe):
    declared, (robot, policy) = describe("demo.launch.py")
    assert set(declared) == SHARED | {"watchdog"}
    assert "".join(declared["params_file"]) == "<sqap_vla_ros>/config/demo.yaml"
    assert (LAUNCH.parent / "config" / "demo.yaml").exists()
    assert (robot.executable, robot.name, robot.parameters) == ("sim_robot_node", "sim_robot", ["params_file"])
    assert policy.source == POLICY
    assert policy.given == {name: name for name in declared}


def test_servo_gets_the_commands_and_is_switched_on(describe):
    declared, (group,) = describe("servo.launch.py")
    assert set(declared) == ARGUMENTS | {"servo_node", "gripper_action"}
    assert "".join(declared["params_file"]) == "<sqap_vla_ros>/config/moveit_servo.yaml"
    assert (declared["servo_node"], declared["gripper_action"]) == ("/servo_node", "gripper_cmd")
    *remaps, policy = group
    targets = {end.name: f"servo_node/{end.name}" for end in (interface.TWIST, interface.POSE)}
    targets |= {end.name: end.name for end in (interface.SWITCH_COMMAND_TYPE, interface.START_SERVO)}
    parts = ("send_goal", "cancel_goal", "get_result", "feedback", "status")
    targets |= {f"{interface.GRIPPER.name}/_action/{part}": f"gripper_action/_action/{part}" for part in parts}
    assert dict(remaps) == targets
    assert policy.source == POLICY
    assert policy.given == {name: name for name in ARGUMENTS}


@pytest.mark.parametrize(("distro", "servo"), [("humble", "humble"), ("jazzy", "jazzy"), ("kilted", "jazzy"),
                                               ("", "jazzy")])
def test_servo_is_that_of_the_distribution(describe, monkeypatch, distro, servo):
    monkeypatch.setenv("ROS_DISTRO", distro)
    assert describe("servo.launch.py")[0]["servo"] == servo


def test_a_replay_commands_nothing_and_begins_when_the_policy_is_active(describe):
    declared, (start, policy) = describe("replay.launch.py")
    assert set(declared) == SHARED | {"bag", "rate", "clock_hz", "bag_arguments"}
    assert declared["bag"] is None and declared["autostart"] == "true"
    assert policy.source == POLICY
    assert policy.given == {name: name for name in SHARED} | {
        "use_sim_time": "true", "dry_run": "true", "watchdog": "false"}
    assert (start.goal_state, start.once) == ("active", True)
    (play,) = start.entities
    (bag,) = play(declared | {"bag_arguments": "--loop --topics /tf '/camera 1/image_raw'"})
    assert bag.command == ["ros2", "bag", "play", "bag", "--clock", "clock_hz", "--rate", "rate", "--loop", "--topics",
                           "/tf", "/camera 1/image_raw"]
    assert bag.on_exit == ("shutdown", "the bag has ended")


def test_an_argument_wins_over_the_parameter_file(tmp_path):
    """As launch passes them on: the file first, then one with the overrides under the node's full name, or ``/**``."""
    first = tmp_path / "robot.yaml"
    first.write_text("/**/policy_node:\n  ros__parameters:\n    control:\n      dry_run: true\n      servo: none\n")
    for key in ("/policy_node", "/**"):
        second = tmp_path / "given.yaml"
        second.write_text(f"{key}:\n  ros__parameters:\n    control.dry_run: false\n")
        context = Context()
        arguments = ["--ros-args", "--params-file", str(first), "--params-file", str(second)]
        rclpy.init(context=context, args=arguments)
        try:
            node = rclpy.create_node("policy_node", context=context)
            declare_parameters(node)
            control = read_config(node).control
            node.destroy_node()
        finally:
            rclpy.shutdown(context=context)
        assert (control.dry_run, control.servo) == (False, "none"), key


@pytest.mark.skipif(importlib.util.find_spec("launch_ros") is None, reason="needs a ROS 2 installation")
@pytest.mark.parametrize("file", FILES)
def test_real_launch_accepts_the_files(file):
    description = runpy.run_path(str(LAUNCH / file))["generate_launch_description"]()
    names = {action.name for action in description.get_launch_arguments()}
    assert names >= SHARED and len(names) == len(description.get_launch_arguments())


def example():
    """The launch file that the README shows."""
    (text,) = re.findall(r"```xml\n(.*?)```", (LAUNCH.parent / "README.md").read_text(), flags=re.DOTALL)
    return text


def test_readme_s_launch_file_names_what_there_is(describe):
    root = ElementTree.fromstring(example())
    (include,) = root.iter("include")
    file = include.get("file").removeprefix("$(find-pkg-share sqap_vla_ros)/launch/")
    given = {item.get("name"): item.get("value") for item in include}
    assert given.keys() <= describe(file)[0].keys()
    assert (LAUNCH.parent / given["params_file"].removeprefix("$(find-pkg-share sqap_vla_ros)/")).is_file()
    ends = {end.name for _, end in interface.POLICY_NODE}
    remapped = [item.get("from") for item in root.iter("set_remap")]
    assert remapped and set(remapped) <= ends
    assert [item.get("name") for item in root.findall("arg")] == re.findall(r"\$\(var (\w+)\)", example())


@pytest.mark.parametrize("command", re.findall(
    r"ros2 launch sqap_vla_ros (\S+)((?: (?:\\\n +)?\w+:=(?:\"[^\"]*\"|\S+))*)",
    (LAUNCH.parent / "README.md").read_text()))
def test_readme_s_commands_give_arguments_that_there_are(describe, command):
    file, arguments = command
    assert set(re.findall(r"(\w+):=", arguments)) <= describe(file)[0].keys()


@pytest.mark.skipif(importlib.util.find_spec("launch_xml") is None, reason="needs a ROS 2 installation")
def test_real_launch_accepts_the_readme_s_launch_file(tmp_path):
    from launch.launch_description_sources import AnyLaunchDescriptionSource

    file = tmp_path / "robot.launch.xml"
    file.write_text(example())
    source = AnyLaunchDescriptionSource(str(file))
    assert source.try_get_launch_description_without_context() is not None
