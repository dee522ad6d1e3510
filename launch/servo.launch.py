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

"""Start the policy beside a MoveIt Servo that already runs: commands go to its topics, its services are called."""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import SetRemap
from launch_ros.substitutions import FindPackageShare

# Arguments of policy.launch.py.
PASSED_ON = {
    "params_file": ([FindPackageShare("sqap_vla_ros"), "/config/moveit_servo.yaml"],
                    "YAML file with the nodes' parameters"),
    "namespace": ("", "namespace of the nodes and of their relative topics"),
    "use_sim_time": ("", "true takes time from /clock"),
    "checkpoint": ("", "folder of a checkpoint or artifact; empty takes what the parameter file says"),
    "dry_run": ("", "true sends the robot nothing, false lets the node command it"),
    "servo": ("humble" if os.environ.get("ROS_DISTRO") == "humble" else "jazzy",
              "whose services switch Servo on: humble, or jazzy, which is right for Kilted too"),
    "autostart": ("", "true configures and activates the policy at once"),
    "watchdog": ("true", "false starts no watchdog"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
OWN = {
    "servo_node": ("/servo_node", "MoveIt Servo's node, with its namespace"),
    "gripper_action": ("gripper_cmd", "action of the gripper's controller, e.g. /hand_controller/gripper_cmd"),
}
SERVO_NAMES = ("delta_twist_cmds", "pose_target_cmds")
SERVO_SERVICES = ("switch_command_type", "start_servo")
# ROS 2 does not remap an action by its name, only what it is made of.
ACTION_PARTS = ("send_goal", "cancel_goal", "get_result", "feedback", "status")


def generate_launch_description():
    """What `ros2 launch` runs."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in (PASSED_ON | OWN).items()]
    servo, gripper = LaunchConfiguration("servo_node"), LaunchConfiguration("gripper_action")
    remaps = [SetRemap(name, [servo, f"/{name}"]) for name in SERVO_NAMES]
    remaps += [SetRemap(f"servo_node/{name}", [servo, f"/{name}"]) for name in SERVO_SERVICES]
    remaps += [SetRemap(f"gripper_cmd/_action/{part}", [gripper, f"/_action/{part}"]) for part in ACTION_PARTS]
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("sqap_vla_ros"), "/launch/policy.launch.py"]),
        launch_arguments={name: LaunchConfiguration(name) for name in PASSED_ON}.items())
    return LaunchDescription([*arguments, GroupAction([*remaps, policy])])
