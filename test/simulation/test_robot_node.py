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

"""The simulated robot over DDS, from another process, as a policy and a person would use it."""

import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from control_msgs.action import GripperCommand
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.simulation import expert
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.session import FULL_OPENING_M
from sqap_vla_ros.simulation.tabletop import CONTROL_PERIOD_S, Tabletop
from sqap_vla_ros.simulation.tasks import Task

MODULE = "sqap_vla_ros.simulation.robot_node"
LOCKSTEP = {"publish_clock": True, "wait_for_command_s": 60.0, "real_time_factor": 0.0}


def stamp_ns(header_stamp):
    return header_stamp.sec * 10**9 + header_stamp.nanosec


class Pilot:
    """Everything a user of the robot needs: the newest message of each topic, a velocity, a gripper, services."""

    def __init__(self, world):
        self.world, node = world, world.node
        self.newest = {}
        static = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for name, kind, qos in (("camera/image_raw", Image, qos_profile_sensor_data),
                                ("camera/image_raw/compressed", CompressedImage, qos_profile_sensor_data),
                                ("camera/camera_info", CameraInfo, qos_profile_sensor_data),
                                ("joint_states", JointState, 10), ("/tf", TFMessage, 100),
                                ("/tf_static", TFMessage, static), ("/clock", Clock, qos_profile_sensor_data),
                                ("sim_robot/outcome", DiagnosticStatus, 10)):
            node.create_subscription(kind, name, lambda message, key=name: self.newest.__setitem__(key, message), qos)
        self.twist = node.create_publisher(TwistStamped, "delta_twist_cmds", 1)
        self.gripper = ActionClient(node, GripperCommand, "gripper_cmd")
        self.new_scene = node.create_client(Trigger, "sim_robot/new_scene")
        self.parameters = node.create_client(SetParameters, "sim_robot/set_parameters")

    def image_ns(self):
        message = self.newest.get("camera/image_raw")
        return stamp_ns(message.header.stamp) if message else -1

    def outcome(self):
        message = self.newest.get("sim_robot/outcome")
        return {entry.key: entry.value for entry in message.values} if message else {}

    def connect(self):
        self.world.wait_until(lambda: self.image_ns() > 0 and self.twist.get_subscription_count() == 1
                              and self.outcome() and self.gripper.server_is_ready(), what="the simulated robot")

    def set(self, **values):
        kinds = {str: (ParameterType.PARAMETER_STRING, "string_value"), int: (ParameterType.PARAMETER_INTEGER,
                                                                             "integer_value"),
                 float: (ParameterType.PARAMETER_DOUBLE, "double_value")}
        request = SetParameters.Request()
        for name, value in values.items():
            kind, field = kinds[type(value)]
            request.parameters.append(Parameter(name=name.replace("__", "."),
                                                value=ParameterValue(type=kind, **{field: value})))
        return self.world.call(self.parameters, request).results

    def lay_out(self, seed, kind="", color="", **layout):
        assert all(result.successful for result in self.set(scene__seed=seed, scene__task=kind, scene__color=color,
                                                            **layout))
        before, before_ns = int(self.outcome()["scene"]), self.image_ns()
        answer = self.world.call(self.new_scene, Trigger.Request())
        if answer.success:
            self.world.wait_until(lambda: int(self.outcome()["scene"]) == before + 1, what="the new scene's outcome")
            # The clock jumps ahead by a second, so an older picture cannot be taken for one of the new scene.
            self.next_picture(before_ns + 9 * 10**8)
        return answer

    def send(self, at_ns, linear=(0.0, 0.0, 0.0), angular=(0.0, 0.0, 0.0), frame="panda_link0"):
        message = TwistStamped()
        message.header.frame_id = frame
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(int(at_ns), 10**9)
        for into, vector in ((message.twist.linear, linear), (message.twist.angular, angular)):
            into.x, into.y, into.z = map(float, vector)
        self.twist.publish(message)

    def next_picture(self, after_ns):
        """Wait for a picture, and for what was sent just before it on other topics."""
        self.world.wait_until(lambda: self.image_ns() > after_ns, what=f"a picture after {after_ns}")
        self.world.wait_until(lambda: all(
            stamp_ns(self.newest[name].header.stamp) >= self.image_ns()
            for name in ("joint_states", "camera/camera_info") if name in self.newest), what="its companions")
        return self.image_ns()

    def move_gripper(self, opening_m):
        goal = GripperCommand.Goal()
        goal.command.position = float(opening_m)
        accepted = self.gripper.send_goal_async(goal)
        self.world.wait_until(accepted.done, what="the gripper's answer")
        return accepted.result()


@pytest.fixture
def pilot(ros_world):
    def connect(**parameters):
        process = ros_world.start(MODULE, **parameters)
        pilot = Pilot(ros_world)
        pilot.connect()
        return SimpleNamespace(process=process, pilot=pilot)
    return connect


def drive_with_expert(pilot, seed, kind):
    """The expert at the sticks: it watches a twin of the world here and steers the one in the other process."""
    twin = Tabletop()
    color = twin.reset(seed).colors[0]
    task, opening = Task(kind, color), 1.0
    assert pilot.lay_out(seed, kind, color).success
    picture_ns = pilot.image_ns()
    for _ in range(task.max_steps):
        action = expert.act(twin.state(), task, twin.layout)
        if action[6] != opening:
            opening = action[6]
            assert pilot.move_gripper(opening * FULL_OPENING_M).accepted
        pilot.send(picture_ns, action[:3] / CONTROL_PERIOD_S, action[3:6] / CONTROL_PERIOD_S)
        twin.step(action)
        picture_ns = pilot.next_picture(picture_ns)
        if twin.succeeded(task):
            break
    pilot.world.wait_until(lambda: pilot.outcome()["finished"] == "true", what="the end of the episode")
    return twin


def test_expert_over_dds_succeeds_and_the_world_follows_its_twin(pilot):
    run = pilot(**LOCKSTEP)
    for seed, kind in ((3, "reach"), (4, "pick"), (5, "place")):
        twin = drive_with_expert(run.pilot, seed, kind)
        outcome = run.pilot.outcome()
        assert (outcome["success"], outcome["task"], outcome["seed"]) == ("true", kind, str(seed))
        assert 2 <= int(outcome["steps"]) <= 35
        names, positions, _ = twin.joint_state()
        message = run.pilot.newest["joint_states"]
        assert tuple(message.name) == names
        np.testing.assert_allclose(message.position, positions, atol=1e-9)
    assert outcome["waits_timed_out"] == "0"
    assert {outcome[f"refused_{why}"] for why in ("frame", "stale", "future", "non_finite", "gripper")} == {"0"}


def test_camera_and_frames_agree_with_the_tabletop(pilot):
    run = pilot(**LOCKSTEP)
    twin = Tabletop()
    twin.reset(7)
    assert run.pilot.lay_out(7).success
    run.pilot.world.wait_until(lambda: {"camera/camera_info", "/tf", "/tf_static", "/clock",
                                        "camera/image_raw/compressed"} <= run.pilot.newest.keys())
    run.pilot.world.wait_until(
        lambda: stamp_ns(run.pilot.newest["/tf"].transforms[0].header.stamp) == run.pilot.image_ns()
        == stamp_ns(run.pilot.newest["/clock"].clock), what="frames and time of the picture")
    image, info = run.pilot.newest["camera/image_raw"], run.pilot.newest["camera/camera_info"]
    picture = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    assert (image.encoding, image.step, image.header.frame_id) == ("rgb8", 672, "camera_optical_frame")
    np.testing.assert_array_equal(picture, twin.render())
    np.testing.assert_allclose(np.reshape(info.k, (3, 3)), twin.camera().matrix)
    np.testing.assert_allclose(np.reshape(info.p, (3, 4))[:, :3], twin.camera().matrix)
    assert (info.distortion_model, list(info.d)) == ("plumb_bob", [0.0] * 5)
    moving = {entry.child_frame_id: entry for entry in run.pilot.newest["/tf"].transforms}
    fixed = {entry.child_frame_id: entry for entry in run.pilot.newest["/tf_static"].transforms}
    assert moving.keys() == {f"panda_link{i}" for i in range(1, 8)} | {"panda_hand", "panda_leftfinger",
                                                                       "panda_rightfinger"}
    assert {(name, entry.header.frame_id) for name, entry in fixed.items()} == {
        ("panda_link0", "world"), ("tool0", "panda_hand"), ("camera_optical_frame", "panda_link0")}
    for parent, child, translation, rotation in twin.link_poses():
        pose = moving[child].transform
        assert moving[child].header.frame_id == parent
        place, turn = pose.translation, pose.rotation
        np.testing.assert_allclose([place.x, place.y, place.z], translation, atol=1e-12)
        np.testing.assert_allclose([turn.x, turn.y, turn.z, turn.w], rotation, atol=1e-12)
    jpeg = run.pilot.newest["camera/image_raw/compressed"]
    assert jpeg.format.startswith("rgb8; jpeg") and bytes(jpeg.data[:2]) == b"\xff\xd8"


def test_static_frames_are_those_of_the_first_scene_when_it_moves_the_camera(pilot):
    moved = {"camera_shift_m": [0.02, 0.03], "camera_turn_deg": [1.0, 3.0]}
    run = pilot(**LOCKSTEP | {"scene.seed": 9} | {f"layout.{name}": value for name, value in moved.items()})
    run.pilot.world.wait_until(lambda: "/tf_static" in run.pilot.newest, what="the static frames")
    twin = Tabletop(Layout(**{name: tuple(value) for name, value in moved.items()}))
    twin.reset(9)
    told = {entry.child_frame_id: entry.transform for entry in run.pilot.newest["/tf_static"].transforms}
    poses, unmoved = ({child: (place, turn) for _, child, place, turn in table.static_poses()}
                      for table in (twin, Tabletop()))
    place, turn = told["camera_optical_frame"].translation, told["camera_optical_frame"].rotation
    expected = poses["camera_optical_frame"]
    np.testing.assert_allclose([place.x, place.y, place.z], expected[0], atol=1e-12)
    np.testing.assert_allclose([turn.x, turn.y, turn.z, turn.w], expected[1], atol=1e-12)
    assert np.linalg.norm(expected[0] - unmoved["camera_optical_frame"][0]) > 0.015


def test_unusable_commands_are_refused_and_counted_while_the_clock_stands(pilot):
    run = pilot(**LOCKSTEP)
    assert run.pilot.lay_out(1, "reach").success
    now = run.pilot.image_ns()
    for counter, bad in (("frame", {"frame": ""}), ("frame", {"frame": "nowhere"}), ("stale", {"at_ns": now - 10**8}),
                         ("future", {"at_ns": now + 10**8}), ("non_finite", {"linear": (math.nan, 0.0, 0.0)}),
                         ("non_finite", {"angular": (0.0, math.inf, 0.0)})):
        before = int(run.pilot.outcome()[f"refused_{counter}"])
        run.pilot.send(**{"at_ns": now, "linear": (1.0, 0.0, 0.0), **bad})
        run.pilot.world.wait_until(lambda name=f"refused_{counter}", count=before + 1:
                                   int(run.pilot.outcome()[name]) == count, what=f"refusal: {counter}")
    assert not run.pilot.move_gripper(-0.01).accepted
    assert not run.pilot.move_gripper(math.nan).accepted
    assert run.pilot.image_ns() == now
    run.pilot.send(now)
    run.pilot.next_picture(now)
    run.pilot.world.wait_until(lambda: run.pilot.outcome()["steps"] == "1", what="one step")
    outcome = run.pilot.outcome()
    counted = {name: int(value) for name, value in outcome.items() if name.startswith("refused")}
    assert counted == {"refused_frame": 2, "refused_stale": 1, "refused_future": 1, "refused_non_finite": 2,
                       "refused_gripper": 2}
    assert outcome["commands"] == "1"


def test_tool_frame_turns_the_velocity(pilot):
    run = pilot(**LOCKSTEP)
    twin = Tabletop()
    twin.reset(2)
    assert run.pilot.lay_out(2).success
    now = run.pilot.image_ns()
    # The tool points down: its z is the base's -z and its y the base's -y.
    run.pilot.send(now, linear=(0.1, 0.1, 0.1), frame="tool0")
    twin.set_twist(np.array([0.1, -0.1, -0.1]), np.zeros(3))
    twin.advance(CONTROL_PERIOD_S)
    run.pilot.next_picture(now)
    np.testing.assert_allclose(run.pilot.newest["joint_states"].position, twin.joint_state()[1], atol=2e-3)


def test_scene_that_cannot_be_is_answered_with_a_sentence(pilot):
    run = pilot(**LOCKSTEP)
    colors = Tabletop().reset(3).colors
    missing = next(color for color in ("red", "green", "blue", "yellow", "purple") if color not in colors)
    answer = run.pilot.lay_out(3, "pick", missing)
    assert not answer.success
    assert answer.message == f"scene 3 has no {missing} block; it has {', '.join(colors)}"
    assert "task 'dance' does not exist" in run.pilot.lay_out(3, "dance").message
    refused, = run.pilot.set(layout__block_gap_m=0.4)
    assert not refused.successful and "do not fit" in refused.reason
    bright = np.asarray(run.pilot.newest["camera/image_raw"].data).mean()
    assert run.pilot.lay_out(3, "", "", layout__light_intensity=0.1, layout__ambient_intensity=0.1).success
    assert np.asarray(run.pilot.newest["camera/image_raw"].data).mean() < 0.7 * bright


def test_wall_clock_mode_needs_nobody_and_runs_in_real_time(pilot):
    run = pilot(publish_clock=False)
    first = run.pilot.image_ns()
    wall = run.pilot.world.node.get_clock().now().nanoseconds
    assert abs(wall - first) < 3 * 10**8
    assert run.pilot.lay_out(5, "reach", "").success
    fresh = run.pilot.next_picture(run.pilot.image_ns())
    assert abs(run.pilot.world.node.get_clock().now().nanoseconds - fresh) < 3 * 10**8
    last = run.pilot.next_picture(first + 10**9)
    assert "/clock" not in run.pilot.newest
    assert abs(run.pilot.world.node.get_clock().now().nanoseconds - last) < 3 * 10**8


def test_gripper_goal_ends_when_the_fingers_have_settled(pilot):
    run = pilot(publish_clock=True, real_time_factor=0.0)
    handle = run.pilot.move_gripper(0.03)
    answer = handle.get_result_async()
    run.pilot.world.wait_until(answer.done, what="the gripper's result")
    result = answer.result().result
    assert result.reached_goal and not result.stalled
    assert abs(result.position - 0.03) < 0.003


def test_signal_ends_the_node_cleanly(pilot):
    run = pilot(publish_clock=True, real_time_factor=1.0)
    run.process.send_signal(signal.SIGINT)
    output, _ = run.process.communicate(timeout=10)
    assert run.process.returncode == 0, output
    assert "Traceback" not in output


def test_contradicting_parameters_end_the_node_with_a_sentence(ros_world):
    process = ros_world.start(MODULE, publish_clock=False, wait_for_command_s=1.0)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "set publish_clock to true as well" in output
    assert "Traceback" not in output
