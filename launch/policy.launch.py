"""Start the policy node. The parameter file says how it runs; an argument that is given overrides it for this start."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    "params_file": ("", "YAML file with the node's parameters; empty takes the defaults"),
    "namespace": ("", "namespace of the node and of its relative topics"),
    "use_sim_time": ("", "true takes time from /clock"),
    "checkpoint": ("", "folder of a checkpoint or artifact, or 'demo' for the policy in the package"),
    "autostart": ("", "true configures and activates the node at once"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
# Argument to the parameter it overrides; launch would guess the type of a bare text.
OVERRIDES = {"use_sim_time": ("use_sim_time", bool), "checkpoint": ("model.checkpoint", str),
             "autostart": ("autostart", bool)}


def start_policy(context):
    """The node, with the parameters that this start's arguments ask for."""
    params_file = LaunchConfiguration("params_file").perform(context)
    given = {parameter: ParameterValue(LaunchConfiguration(argument), value_type=kind)
             for argument, (parameter, kind) in OVERRIDES.items() if LaunchConfiguration(argument).perform(context)}
    return [LifecycleNode(
        package="sqap_vla_ros", executable="policy_node", name="policy_node",
        namespace=LaunchConfiguration("namespace"), output="screen",
        parameters=([params_file] if params_file else []) + ([given] if given else []),
        arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")])]


def generate_launch_description():
    """What `ros2 launch` runs."""
    arguments = [DeclareLaunchArgument(name, default_value=default, description=description)
                 for name, (default, description) in ARGUMENTS.items()]
    return LaunchDescription([*arguments, OpaqueFunction(function=start_policy)])
