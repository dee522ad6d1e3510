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

"""Every topic, service and action of the package in one table: name, type, quality of service, unit.

Nodes create their ends from these rows, so a name or a QoS profile is changed here and nowhere else. Names are
relative, and so follow namespaces and remapping, except where ROS fixes them (``/tf``, ``/diagnostics``, ``/clock``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from control_msgs.action import GripperCommand, ParallelGripperCommand
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from moveit_msgs.srv import ServoCommandType
from nav_msgs.msg import Path
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory, MultiDOFJointTrajectory

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks


class Qos(Enum):
    """The profiles in use; the value is (reliability, durability, depth).

    SENSOR is what REP-2003 asks of consumers of sensor data. COMMAND keeps only the newest, so that a halt is never
    queued behind motion. LATCHED reaches those who come late.
    """

    SENSOR = (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE, 5)
    RELIABLE = (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 10)
    COMMAND = (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 1)
    LATCHED = (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL, 1)
    TF = (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE, 100)
    TF_STATIC = (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL, 100)

    def profile(self) -> QoSProfile:
        """As rclpy wants it."""
        reliability, durability, depth = self.value
        return QoSProfile(reliability=reliability, durability=durability, depth=depth)


@dataclass(frozen=True)
class Endpoint:
    """One topic, service or action.

    :param name: relative to the node's namespace; ``~/`` is relative to the node
    :param type: message, service or action class
    :param qos: profile of a topic; None for services and actions
    :param unit: what a value means, with its unit
    :param source_qos: profile of the publishing end where it differs
    """

    name: str
    type: Any
    qos: Qos | None
    unit: str
    source_qos: Qos | None = None

    @property
    def type_name(self) -> str:
        """As ``ros2 interface show`` takes it, for example ``sensor_msgs/msg/Image``."""
        package, kind = self.type.__module__.split(".")[:2]
        return f"{package}/{kind}/{self.type.__name__}"


IMAGE = Endpoint("camera/image_raw", Image, Qos.SENSOR,
                 "camera picture; stamp = moment of exposure, frame_id = optical frame", Qos.RELIABLE)
IMAGE_COMPRESSED = Endpoint("camera/image_raw/compressed", CompressedImage, Qos.SENSOR, "the same picture as JPEG",
                            Qos.RELIABLE)
CAMERA_INFO = Endpoint("camera/camera_info", CameraInfo, Qos.SENSOR, "K in px and distortion of the raw picture",
                       Qos.RELIABLE)
INSTRUCTION = Endpoint("instruction", String, Qos.RELIABLE, "what to do, in words; empty holds the robot")
TF = Endpoint("/tf", TFMessage, Qos.TF, "moving frames; m, quaternion")
TF_STATIC = Endpoint("/tf_static", TFMessage, Qos.TF_STATIC, "fixed frames; m, quaternion")
CLOCK = Endpoint("/clock", Clock, Qos.SENSOR, "simulated time", Qos.RELIABLE)
TWIST = Endpoint("delta_twist_cmds", TwistStamped, Qos.COMMAND,
                 "commanded velocity of the tool in frame_id; m/s, rad/s")
POSE = Endpoint("pose_target_cmds", PoseStamped, Qos.COMMAND, "where the tool shall be in frame_id; m, quaternion")
GRIPPER = Endpoint("gripper_cmd", GripperCommand, None, "distance between the fingers, m; largest force, N")
PARALLEL_GRIPPER = Endpoint("gripper_cmd", ParallelGripperCommand, None,
                            "positions of the fingers' joints, m; largest force, N")
GRIPPER_TRAJECTORY = Endpoint("gripper_trajectory", JointTrajectory, Qos.COMMAND,
                              "positions of the fingers' joints, m; one point")
SWITCH_COMMAND_TYPE = Endpoint("servo_node/switch_command_type", ServoCommandType, None,
                               "TWIST 1 or POSE 2; MoveIt Servo of Jazzy and Kilted")
START_SERVO = Endpoint("servo_node/start_servo", Trigger, None, "MoveIt Servo of Humble begins to listen")
ESTOP = Endpoint("estop", Bool, Qos.RELIABLE, "true stops the robot until ~/reset_fault; false only says that the "
                 "button is out")
ENABLE_ACTUATION = Endpoint("~/enable_actuation", SetBool, None, "second interlock: whether the robot may move")
RESET_FAULT = Endpoint("~/reset_fault", Trigger, None, "ends a fault or a stop whose cause is gone")
CHUNK = Endpoint("~/chunk", MultiDOFJointTrajectory, Qos.RELIABLE,
                 "the answer in force: pose of the tool in the base frame after each step; m, quaternion")
PATH = Endpoint("~/path", Path, Qos.RELIABLE, "the same as a path, for display")
JOINT_STATES = Endpoint("joint_states", JointState, Qos.RELIABLE, "positions and velocities; rad, m, rad/s, m/s")
LATENCY = Endpoint("~/latency", DiagnosticArray, Qos.RELIABLE, "one per inference; time by stage in ms, token counts")
DIAGNOSTICS = Endpoint("/diagnostics", DiagnosticArray, Qos.RELIABLE,
                       "once a second; state, p50 and p95 in ms, counters, reasons")
OVERLAY = Endpoint("~/overlay", Image, Qos.RELIABLE,
                   "picture with kept, pruned and protected tokens; only while someone subscribes")
ACTIVE_INSTRUCTION = Endpoint("~/active_instruction", String, Qos.LATCHED, "the instruction in force; empty when none")
OUTCOME = Endpoint("~/outcome", DiagnosticStatus, Qos.RELIABLE, "seed, task, instruction, steps, success, finished")
RESET = Endpoint("~/reset", Trigger, None, "the same scene from its start")
NEW_SCENE = Endpoint("~/new_scene", Trigger, None, "the scene that the parameters scene.seed, .task and .color name")
FAULT = Endpoint("rig/fault", String, Qos.LATCHED, "fault that `sqap soak` has let loose; empty when all is well")


class Role(Enum):
    """Which end of an endpoint a node has."""

    SUBSCRIBES = "subscribes"
    PUBLISHES = "publishes"
    CALLS = "calls"
    CALLS_ACTION = "calls action"
    SERVES_ACTION = "serves action"
    SERVES = "serves"


POLICY_NODE: tuple[tuple[Role, Endpoint], ...] = (
    (Role.SUBSCRIBES, IMAGE), (Role.SUBSCRIBES, IMAGE_COMPRESSED), (Role.SUBSCRIBES, CAMERA_INFO),
    (Role.SUBSCRIBES, INSTRUCTION), (Role.SUBSCRIBES, JOINT_STATES), (Role.SUBSCRIBES, TF),
    (Role.SUBSCRIBES, TF_STATIC), (Role.SUBSCRIBES, ESTOP), (Role.PUBLISHES, TWIST), (Role.PUBLISHES, POSE),
    (Role.CALLS_ACTION, GRIPPER), (Role.CALLS_ACTION, PARALLEL_GRIPPER), (Role.PUBLISHES, GRIPPER_TRAJECTORY),
    (Role.CALLS, SWITCH_COMMAND_TYPE), (Role.CALLS, START_SERVO), (Role.SERVES, ENABLE_ACTUATION),
    (Role.SERVES, RESET_FAULT), (Role.PUBLISHES, CHUNK), (Role.PUBLISHES, PATH), (Role.PUBLISHES, LATENCY),
    (Role.PUBLISHES, DIAGNOSTICS), (Role.PUBLISHES, OVERLAY), (Role.PUBLISHES, ACTIVE_INSTRUCTION))

WATCHDOG_NODE: tuple[tuple[Role, Endpoint], ...] = (
    # A longer queue than a robot's, so that its own zeros push no command out.
    (Role.SUBSCRIBES, replace(TWIST, qos=Qos.RELIABLE)), (Role.PUBLISHES, TWIST), (Role.PUBLISHES, DIAGNOSTICS))

SIM_ROBOT: tuple[tuple[Role, Endpoint], ...] = (
    (Role.PUBLISHES, IMAGE), (Role.PUBLISHES, IMAGE_COMPRESSED), (Role.PUBLISHES, CAMERA_INFO), (Role.PUBLISHES, TF),
    (Role.PUBLISHES, TF_STATIC), (Role.PUBLISHES, JOINT_STATES), (Role.PUBLISHES, CLOCK), (Role.PUBLISHES, OUTCOME),
    (Role.SUBSCRIBES, TWIST), (Role.SERVES_ACTION, GRIPPER), (Role.SERVES, RESET), (Role.SERVES, NEW_SCENE))

RIG_ROBOT: tuple[tuple[Role, Endpoint], ...] = (
    (Role.PUBLISHES, IMAGE), (Role.PUBLISHES, CAMERA_INFO), (Role.PUBLISHES, TF), (Role.PUBLISHES, TF_STATIC),
    (Role.PUBLISHES, JOINT_STATES), (Role.SERVES_ACTION, GRIPPER), (Role.SUBSCRIBES, FAULT))


def of_camera(endpoint: Endpoint, camera: str) -> Endpoint:
    """The same topic of another camera.

    :param endpoint: ``IMAGE``, ``IMAGE_COMPRESSED`` or ``CAMERA_INFO``
    :param camera: its namespace
    """
    return replace(endpoint, name=f"{camera}/{endpoint.name.partition('/')[2]}")


def in_dry_run(endpoint: Endpoint) -> Endpoint:
    """The topic of the node's own that stands for one of the robot's."""
    return replace(endpoint, name=f"~/dry_run/{endpoint.name}")


def subscribe(node: Node, endpoint: Endpoint, callback: Callable[[Any], None]) -> Subscription:
    """Create the receiving end of a topic."""
    assert endpoint.qos is not None, f"{endpoint.name} is not a topic"
    return node.create_subscription(endpoint.type, endpoint.name, callback, endpoint.qos.profile())


def subscribe_latched(node: Node, endpoint: Endpoint, callback: Callable[[Any], None]) -> Subscription:
    """Create one more receiving end of a topic, for what a sender sent before and kept; others are no cause to warn."""
    return node.create_subscription(endpoint.type, endpoint.name, callback, Qos.LATCHED.profile(),
                                    event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))


def advertise(node: Node, endpoint: Endpoint) -> Publisher:
    """Create the sending end of a topic."""
    return node.create_publisher(endpoint.type, endpoint.name, source_profile(endpoint), event_callbacks=_silent())


def advertise_managed(node: LifecycleNode, endpoint: Endpoint) -> LifecyclePublisher:
    """Create the sending end of a topic that is silent unless the node is active."""
    return node.create_lifecycle_publisher(endpoint.type, endpoint.name, source_profile(endpoint),
                                           event_callbacks=_silent())


def _silent() -> PublisherEventCallbacks:
    # Receiving ends warn of profiles that do not match, too; rclpy asks each sending end that does at every beat.
    return PublisherEventCallbacks(use_default_callbacks=False)


def source_profile(endpoint: Endpoint) -> QoSProfile:
    """Profile of the sending end of a topic."""
    qos = endpoint.source_qos or endpoint.qos
    assert qos is not None, f"{endpoint.name} is not a topic"
    return qos.profile()


def format_table(rows: Iterable[tuple[Role, Endpoint]]) -> str:
    """The rows as a Markdown table, for the README."""
    lines = ["| | name | type | QoS | meaning, unit |", "|---|---|---|---|---|"]
    for role, endpoint in rows:
        qos = _format_qos(role, endpoint)
        lines.append(f"| {role.value} | `{endpoint.name}` | `{endpoint.type_name}` | {qos} | {endpoint.unit} |")
    return "\n".join(lines)


def _format_qos(role: Role, endpoint: Endpoint) -> str:
    if endpoint.qos is None:
        return ""
    profile = source_profile(endpoint) if role is Role.PUBLISHES else endpoint.qos.profile()
    words = ["reliable" if profile.reliability == ReliabilityPolicy.RELIABLE else "best effort"]
    if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL:
        words.append("transient local")
    return f"{', '.join(words)}, {profile.depth}"
