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

"""Let the policy watch a recorded bag in a dry run: the bag starts once the policy is active, and ends it all.

`ros2 bag play` publishes whatever was recorded, commands too: do this where no robot listens, or choose topics.
"""

import shlex

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.event_handlers import OnStateTransition
from launch_ros.substitutions import FindPackageShare

# Arguments of policy.launch.py.
PASSED_ON = {
    "params_file": ("", "YAML file with the node's parameters; empty takes the defaults"),
    "namespace": ("", "namespace of the node and of its relative topics"),
    "checkpoint": ("", "folder of a checkpoint or artifact; empty takes what the parameter file says"),
    "autostart": ("true", "false leaves configuring and activating the policy to you; the bag waits for it"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
OWN = {
    "rate": ("1.0", "speed of the replay; below 1 for a policy that is slower than the camera"),
    "clock_hz": ("100", "how often /clock is published, Hz"),
    "bag_arguments": ("", "more arguments of `ros2 bag play`, e.g. '--topics /camera/image_raw /tf /tf_static'"),
}
FIXED = {"use_sim_time": "true", "dry_run": "true", "watchdog": "false"}


def play_bag(context):
    """`ros2 bag play` as a process."""
    more = shlex.split(LaunchConfiguration("bag_arguments").perform(context))
    return [ExecuteProcess(
        cmd=["ros2", "bag", "play", LaunchConfiguration("bag"), "--clock", LaunchConfiguration("clock_hz"),
             "--rate", LaunchConfiguration("rate"), *more],
        output="screen", on_exit=Shutdown(reason="the bag has ended"))]


def generate_launch_description():
    """What `ros2 launch` runs."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in (PASSED_ON | OWN).items()]
    arguments.append(DeclareLaunchArgument("bag", description="folder of the bag"))
    start = RegisterEventHandler(OnStateTransition(
        goal_state="active", entities=[OpaqueFunction(function=play_bag)], handle_once=True))
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("sqap_vla_ros"), "/launch/policy.launch.py"]),
        launch_arguments=({name: LaunchConfiguration(name) for name in PASSED_ON} | FIXED).items())
    return LaunchDescription([*arguments, start, policy])
