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

"""`sim_robot`: the tabletop as a ROS 2 robot with a camera, a velocity interface and a gripper.

Simulated time moves one control period at a time: a picture is published, the clock stands still until a command
for that moment has come (at most ``wait_for_command_s`` of wall time), then the period is played in ticks of 20 ms.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import rclpy
from control_msgs.action import GripperCommand
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.action.server import ActionServer, GoalResponse, ServerGoalHandle
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import try_shutdown
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.errors import ConfigError, InputError, SqapError
from sqap_vla_ros.ros import codecs, interface
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.parameters import PARAMETERS, build_layout, check_time
from sqap_vla_ros.simulation.session import TICK_NS, TICKS_PER_STEP, Session, build_task, look_ahead

NODE_NAME, CAMERA_FRAME = "sim_robot", "camera_optical_frame"
FIRST_STAMP_NS, REPEAT_PERIOD_S = 1_000_000_000, 0.25
COMPANIONS = 4
EFFORT_N = 15.0


class RobotNode(Node):
    """See the module's docstring; :class:`~sqap_vla_ros.simulation.session.Session` holds the rules."""

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        for name, (default, description) in PARAMETERS.items():
            self._declare(name, default, description, read_only="." not in name)
        for entry in fields(Layout):
            value = list(entry.default) if isinstance(entry.default, tuple) else entry.default
            self._declare(f"layout.{entry.name}", value, "Scene layout; holds from the next scene on.")
        self._simulated = bool(self._value("publish_clock"))
        self._wait_s, self._factor = self._value("wait_for_command_s"), self._value("real_time_factor")
        check_time(simulated=self._simulated, wait_s=self._wait_s, factor=self._factor)
        self._session = (Session(self._layout(), FIRST_STAMP_NS) if self._simulated
                         else Session(self._layout(), self.get_clock().now().nanoseconds, jump_ns=0))
        self._goals: list[ServerGoalHandle] = []
        self._next_seed = 0
        self._open_ends()
        self._new_scene()
        self._publish_static()
        self.add_on_set_parameters_callback(self._check_parameters)

    def run(self, executor: SingleThreadedExecutor, keep_going: Callable[[], bool]) -> None:
        """Play one control period after another until ``keep_going`` says no."""
        self._executor, self._keep_going, self._period_start = executor, keep_going, time.monotonic()
        executor.add_node(self)
        while keep_going():
            scene = self._session.scene_number
            self._publish_frame()
            self._wait_for_command(scene)
            if keep_going():
                self._play_period(scene)

    def close(self) -> None:
        """Free the renderer and the ROS ends."""
        self._session.tabletop.close()
        self._gripper_server.destroy()
        self.destroy_node()

    # --- one control period

    def _wait_for_command(self, scene: int) -> None:
        if self._wait_s == 0.0:
            return
        frame_ns, begin = self._session.now_ns, time.monotonic()
        repeat = begin + REPEAT_PERIOD_S
        while self._session.command_stamp_ns < frame_ns:
            now = time.monotonic()
            if now - begin >= self._wait_s:
                self._session.counts["waits_timed_out"] += 1
                return
            if now >= repeat:
                # As a camera would: whoever starts late needs the picture and the time, even while it stands still.
                self._publish_frame()
                self._publish_outcome()
                repeat = now + REPEAT_PERIOD_S
            self._executor.spin_once(timeout_sec=min(begin + self._wait_s, repeat) - now)
            if self._session.scene_number != scene or not self._keep_going():
                return
        # What was sent together shall act together: the gripper's goal travels beside the velocity.
        for _ in range(COMPANIONS):
            self._executor.spin_once(timeout_sec=0.0)

    def _play_period(self, scene: int) -> None:
        tick_s = TICK_NS / 1e9 / self._factor if self._factor > 0.0 else 0.0
        # Of the time lost to waiting, half a period at most is caught up.
        self._period_start = max(self._period_start, time.monotonic() - TICKS_PER_STEP * tick_s / 2)
        for tick in range(1, TICKS_PER_STEP + 1):
            if self._session.scene_number != scene:
                return
            self._session.tick()
            if tick < TICKS_PER_STEP:  # The last moment is told together with its picture.
                self._publish_clock()
                self._publish_transforms()
            self._settle_goals()
            self._spin_until(self._period_start + tick * tick_s)
        self._period_start += TICKS_PER_STEP * tick_s
        if self._session.scene_number != scene:
            return
        self._follow_wall()
        self._session.end_step()
        self._publish_outcome()

    def _spin_until(self, deadline: float) -> None:
        while self._keep_going():
            left = deadline - time.monotonic()
            self._executor.spin_once(timeout_sec=max(0.0, left))
            if left <= 0.0:
                return

    # --- what goes out

    def _publish_frame(self) -> None:
        self._follow_wall()
        # Drawn first, so that nobody knows the time long before the picture of that time.
        session, stamp_ns, picture = self._session, self._session.now_ns, self._session.tabletop.render()
        self._publish_clock()
        self._publish_transforms()
        names, positions, velocities = session.tabletop.joint_state()
        self._joints.publish(JointState(header=codecs.make_header(stamp_ns, ""), name=list(names),
                                        position=positions.tolist(), velocity=velocities.tolist()))
        self._info.publish(codecs.encode_camera_info(session.tabletop.camera(), stamp_ns, CAMERA_FRAME))
        self._image.publish(codecs.encode_image(picture, stamp_ns, CAMERA_FRAME))
        if self._compressed.get_subscription_count() > 0:
            self._compressed.publish(codecs.encode_compressed(picture, stamp_ns, CAMERA_FRAME))

    def _follow_wall(self) -> None:
        if not self._simulated:
            self._session.now_ns = max(self._session.now_ns, self.get_clock().now().nanoseconds)

    def _publish_clock(self) -> None:
        if self._simulated:
            self._clock_out.publish(Clock(clock=codecs.ns_to_stamp(self._session.now_ns)))

    def _publish_transforms(self) -> None:
        self._tf.publish(self._encode_poses(self._session.tabletop.link_poses()))

    def _publish_static(self) -> None:
        self._tf_static.publish(self._encode_poses(self._session.tabletop.static_poses()))

    def _encode_poses(self, poses: list[tuple[str, str, np.ndarray, np.ndarray]]) -> TFMessage:
        stamp_ns = self._session.now_ns
        return TFMessage(transforms=[codecs.encode_transform(*pose, stamp_ns) for pose in poses])

    def _publish_outcome(self) -> None:
        values = self._session.outcome()
        self._outcome.publish(DiagnosticStatus(
            name=f"{NODE_NAME}: episode", hardware_id="simulation", message=values["instruction"],
            values=[KeyValue(key=key, value=value) for key, value in values.items()]))

    # --- what comes in

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        self._follow_wall()
        try:
            self._session.command_twist(
                codecs.stamp_to_ns(message.header.stamp), message.header.frame_id,
                np.array([linear.x, linear.y, linear.z]), np.array([angular.x, angular.y, angular.z]))
        except InputError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=1.0)

    def _on_gripper_goal(self, goal: GripperCommand.Goal) -> GoalResponse:
        try:
            self._session.command_gripper(goal.command.position)
        except InputError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=1.0)
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_gripper_accepted(self, handle: ServerGoalHandle) -> None:
        # A newer goal replaces the ones before it; this one ends when the fingers have settled.
        self._end_goals(ServerGoalHandle.abort)
        self._goals.append(handle)

    def _settle_goals(self) -> None:
        if self._goals:
            _, reached, stalled = self._session.gripper()
            if reached or stalled:
                self._end_goals(ServerGoalHandle.succeed)

    def _end_goals(self, end: Callable[[ServerGoalHandle], None]) -> None:
        goals, self._goals = self._goals, []
        for handle in goals:
            handle.execute(lambda goal: self._answer_goal(goal, end))

    def _answer_goal(self, handle: ServerGoalHandle, end: Callable[[ServerGoalHandle], None]) -> GripperCommand.Result:
        opening, reached, stalled = self._session.gripper()
        end(handle)
        return GripperCommand.Result(position=opening, effort=EFFORT_N, reached_goal=bool(reached),
                                     stalled=bool(stalled))

    def _answer(self, response: Trigger.Response, lay_out: Callable[[], Any]) -> Trigger.Response:
        try:
            lay_out()
        except SqapError as error:
            response.success, response.message = False, str(error)
            return response
        self._end_goals(ServerGoalHandle.abort)
        self._publish_static()
        self._publish_outcome()
        scene, response.success = self._session.scene, True
        response.message = f"scene {scene.seed} with {', '.join(scene.colors)} blocks"
        self.get_logger().info(response.message)
        return response

    def _new_scene(self) -> None:
        seed = self._value("scene.seed")
        seed = self._next_seed if seed == -1 else seed
        layout = self._layout()
        words = [self._value(f"scene.{name}") for name in ("task", "color", "side", "other")]
        self._session.start_scene(seed, build_task(look_ahead(layout, seed), *words), layout)
        self._next_seed = seed + 1

    def _declare(self, name: str, default: Any, description: str, *, read_only: bool = False) -> None:
        self.declare_parameter(name, default, ParameterDescriptor(description=description, read_only=read_only))

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _layout(self, changed: dict[str, Any] | None = None) -> Layout:
        values = {entry.name: self._value(f"layout.{entry.name}") for entry in fields(Layout)}
        return build_layout(values | (changed or {}))

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changed = {entry.name.removeprefix("layout."): entry.value for entry in parameters
                   if entry.name.startswith("layout.")}
        try:
            self._layout(changed)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _open_ends(self) -> None:
        self._image, self._compressed, self._info, self._tf, self._tf_static, self._joints, self._outcome = (
            interface.advertise(self, endpoint) for endpoint in (
                interface.IMAGE, interface.IMAGE_COMPRESSED, interface.CAMERA_INFO, interface.TF,
                interface.TF_STATIC, interface.JOINT_STATES, interface.OUTCOME))
        if self._simulated:
            self._clock_out = interface.advertise(self, interface.CLOCK)
        interface.subscribe(self, interface.TWIST, self._on_twist)
        self._gripper_server = ActionServer(
            self, interface.GRIPPER.type, interface.GRIPPER.name, execute_callback=self._answer_goal,
            goal_callback=self._on_gripper_goal, handle_accepted_callback=self._on_gripper_accepted)
        self.create_service(interface.NEW_SCENE.type, interface.NEW_SCENE.name,
                            lambda _, response: self._answer(response, self._new_scene))
        self.create_service(interface.RESET.type, interface.RESET.name,
                            lambda _, response: self._answer(response, self._session.restart_scene))


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    asked_to_stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: asked_to_stop.append(received))
    # The loop below ends itself, so that nothing is published on a context that is gone.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = RobotNode()
    except (SqapError, ParameterException) as error:
        print(f"{NODE_NAME}: {error}", file=sys.stderr)
        try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    try:
        node.run(executor, lambda: not asked_to_stop)
    finally:
        executor.shutdown()
        node.close()
        try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
