"""Start the simulated robot and the policy, ready for an instruction."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "params_file": ("", "YAML file with the policy node's parameters; empty takes the defaults"),
    "namespace": ("", "namespace of both nodes and of their relative topics"),
    "use_sim_time": ("false", "true lets the simulated robot keep the time, on /clock"),
    "checkpoint": ("demo", "folder of a checkpoint or artifact, or 'demo' for the policy in the package"),
    "autostart": ("true", "false leaves configuring and activating the policy to you"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def generate_launch_description():
    """What `ros2 launch` runs."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    robot = Node(
        package="sqap_vla_ros", executable="sim_robot_node", name="sim_robot",
        namespace=LaunchConfiguration("namespace"), output="screen",
        parameters=[{"publish_clock": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)}],
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")])
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("sqap_vla_ros"), "/launch/policy.launch.py"]),
        launch_arguments={name: LaunchConfiguration(name) for name in ARGUMENTS}.items())
    return LaunchDescription([*arguments, robot, policy])
