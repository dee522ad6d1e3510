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

"""Start the simulated robot and the policy, ready for an instruction."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

# No use_sim_time: the robot keeps the time, and the parameter file has to say so for all nodes alike.
ARGUMENTS = {
    "params_file": ([FindPackageShare("sqap_vla_ros"), "/config/demo.yaml"], "YAML file with the nodes' parameters"),
    "namespace": ("", "namespace of the nodes and of their relative topics"),
    "checkpoint": ("", "folder of a checkpoint or artifact; empty takes what the parameter file says"),
    "autostart": ("", "false leaves configuring and activating the policy to you"),
    "watchdog": ("true", "false starts no watchdog"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def generate_launch_description():
    """What `ros2 launch` runs."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    robot = Node(
        package="sqap_vla_ros", executable="sim_robot_node", name="sim_robot",
        namespace=LaunchConfiguration("namespace"), output="screen",
        parameters=[LaunchConfiguration("params_file")],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")])
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("sqap_vla_ros"), "/launch/policy.launch.py"]),
        launch_arguments={name: LaunchConfiguration(name) for name in ARGUMENTS}.items())
    return LaunchDescription([*arguments, robot, policy])
