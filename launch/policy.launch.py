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

"""Start the policy node and its watchdog.

The parameter file says how they run; an argument that is given overrides it for this start.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "params_file": ("", "YAML file with the nodes' parameters; empty takes the defaults"),
    "namespace": ("", "namespace of the nodes and of their relative topics"),
    "use_sim_time": ("", "true takes time from /clock"),
    "checkpoint": ("", "folder of a checkpoint or artifact, or 'demo' for the policy in the package"),
    "dry_run": ("", "true sends the robot nothing, false lets the node command it"),
    "servo": ("", "MoveIt Servo to switch on: that of humble, that of jazzy (and Kilted), or none"),
    "autostart": ("", "true configures and activates the policy at once"),
    "watchdog": ("true", "false starts no watchdog; some controllers take commands from one publisher only"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
# Argument to the parameter it overrides; launch would guess the type of a bare text.
OVERRIDES = {"use_sim_time": ("use_sim_time", bool), "checkpoint": ("model.checkpoint", str),
             "dry_run": ("control.dry_run", bool), "servo": ("control.servo", str), "autostart": ("autostart", bool)}
WATCHDOG_OVERRIDES = {"use_sim_time": OVERRIDES["use_sim_time"]}


def start_nodes(context):
    """Both nodes, with the parameters that this start's arguments ask for."""
    given = {argument for argument in OVERRIDES if LaunchConfiguration(argument).perform(context)}
    params_file = LaunchConfiguration("params_file").perform(context)

    def settings(executable, overrides):
        asked = {parameter: ParameterValue(LaunchConfiguration(argument), value_type=kind)
                 for argument, (parameter, kind) in overrides.items() if argument in given}
        return {"package": "sqap_vla_ros", "executable": executable, "name": executable, "output": "screen",
                "namespace": LaunchConfiguration("namespace"),
                "parameters": ([params_file] if params_file else []) + ([asked] if asked else []),
                "arguments": ["--ros-args", "--log-level", LaunchConfiguration("log_level")]}

    return [LifecycleNode(**settings("policy_node", OVERRIDES)),
            Node(**settings("watchdog_node", WATCHDOG_OVERRIDES),
                 condition=IfCondition(LaunchConfiguration("watchdog")))]


def generate_launch_description():
    """What `ros2 launch` runs."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_nodes)])
