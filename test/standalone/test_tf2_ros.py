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

"""What holds for the real tf2_ros and for the stand-in alike; the one that this machine has is tested."""

import math
import os
import threading

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time

from sqap_vla_ros.standalone import import_ros_module

tf2_ros = import_ros_module("tf2_ros")
S = 1_000_000_000


def pose(parent, child, stamp_ns, xyz=(0.0, 0.0, 0.0), axis=(0.0, 0.0, 1.0), angle=0.0):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
    into = message.transform
    into.translation.x, into.translation.y, into.translation.z = map(float, xyz)
    into.rotation.x, into.rotation.y, into.rotation.z = (float(a) * math.sin(angle / 2) for a in axis)
    into.rotation.w = math.cos(angle / 2)
    return message


def fill(*poses, static=(), **options):
    buffer = tf2_ros.Buffer(**options)
    for message in poses:
        buffer.set_transform(message, "test")
    for message in static:
        buffer.set_transform_static(message, "test")
    return buffer


def look(buffer, target, source, stamp_ns):
    message = buffer.lookup_transform(target, source, Time(nanoseconds=stamp_ns))
    shift, turn = message.transform.translation, message.transform.rotation
    return (np.array([shift.x, shift.y, shift.z]), np.array([turn.x, turn.y, turn.z, turn.w]),
            Time.from_msg(message.header.stamp).nanoseconds)


def matrix(buffer, target, source, stamp_ns):
    (tx, ty, tz), (x, y, z, w), _ = look(buffer, target, source, stamp_ns)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), tx],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w), ty],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y), tz], [0, 0, 0, 1]])


def test_between_two_poses_position_is_linear_and_rotation_spherical():
    buffer = fill(pose("a", "b", S, (0, 0, 0), angle=0.0), pose("a", "b", 2 * S, (1, 2, -4), angle=1.2))
    position, rotation, stamp = look(buffer, "a", "b", S + S // 4)
    np.testing.assert_allclose(position, (0.25, 0.5, -1.0))
    np.testing.assert_allclose(rotation, (0, 0, math.sin(0.15), math.cos(0.15)), atol=1e-12)
    assert stamp == S + S // 4


def test_rotation_goes_the_short_way_round():
    first, second = pose("a", "b", S, angle=0.2), pose("a", "b", 2 * S, angle=0.6)
    turn = second.transform.rotation
    turn.x, turn.y, turn.z, turn.w = -turn.x, -turn.y, -turn.z, -turn.w
    _, rotation, _ = look(fill(first, second), "a", "b", S + S // 2)
    assert abs(rotation @ (0, 0, math.sin(0.2), math.cos(0.2))) == pytest.approx(1.0, abs=1e-12)


def test_a_way_up_and_down_the_tree_is_the_product_of_its_steps():
    rng = np.random.default_rng(0)
    edges = [("root", "a"), ("a", "b"), ("b", "c"), ("root", "x"), ("x", "y")]
    poses = [pose(parent, child, S, rng.normal(size=3), axis / np.linalg.norm(axis), rng.uniform(-3, 3))
             for (parent, child), axis in zip(edges, rng.normal(size=(5, 3)), strict=True)]
    buffer = fill(*poses)
    step = {child: matrix(buffer, parent, child, S) for parent, child in edges}
    down = np.linalg.inv(step["x"] @ step["y"])
    np.testing.assert_allclose(matrix(buffer, "y", "c", S), down @ step["a"] @ step["b"] @ step["c"], atol=1e-12)
    np.testing.assert_allclose(matrix(buffer, "b", "a", S), np.linalg.inv(step["b"]), atol=1e-12)
    np.testing.assert_allclose(matrix(buffer, "c", "c", S), np.eye(4), atol=1e-12)


def test_a_point_rotated_by_a_quarter_turn():
    buffer = fill(pose("a", "b", S, (1, 0, 0), angle=math.pi / 2), pose("b", "c", S, (2, 0, 0)))
    np.testing.assert_allclose(look(buffer, "a", "c", S)[0], (1, 2, 0), atol=1e-12)
    np.testing.assert_allclose(look(buffer, "b", "a", S)[0], (0, 1, 0), atol=1e-12)


@pytest.mark.parametrize(("stamp_ns", "direction"), [(S - 1, "into the past"), (3 * S + 1, "into the future")])
def test_outside_of_what_is_known_is_extrapolation(stamp_ns, direction):
    buffer = fill(pose("a", "b", S), pose("a", "b", 3 * S))
    with pytest.raises(tf2_ros.ExtrapolationException, match=direction):
        look(buffer, "a", "b", stamp_ns)
    assert not buffer.can_transform("a", "b", Time(nanoseconds=stamp_ns))
    for edge in (S, 3 * S):
        assert buffer.can_transform("a", "b", Time(nanoseconds=edge))


def test_a_single_pose_is_true_at_its_own_time_only():
    buffer = fill(pose("a", "b", S))
    look(buffer, "a", "b", S)
    with pytest.raises(tf2_ros.ExtrapolationException):
        look(buffer, "a", "b", S + 1)


def test_frames_that_do_not_exist_or_do_not_connect():
    buffer = fill(pose("a", "b", S), pose("x", "y", S))
    with pytest.raises(tf2_ros.LookupException):
        look(buffer, "a", "nowhere", S)
    with pytest.raises(tf2_ros.ConnectivityException):
        look(buffer, "b", "y", S)
    with pytest.raises(tf2_ros.ConnectivityException):
        look(buffer, "b", "y", 0)
    with pytest.raises(tf2_ros.InvalidArgumentException):
        look(buffer, "", "b", S)
    for kind in (tf2_ros.LookupException, tf2_ros.ConnectivityException, tf2_ros.ExtrapolationException,
                 tf2_ros.InvalidArgumentException):
        assert issubclass(kind, tf2_ros.TransformException)


def test_time_zero_is_the_latest_time_that_all_frames_on_the_way_share():
    buffer = fill(pose("a", "b", S), pose("a", "b", 3 * S, (3, 0, 0)), pose("b", "c", S), pose("b", "c", 2 * S),
                  pose("a", "unrelated", S), static=[pose("c", "d", 9 * S, (0, 1, 0))])
    position, _, stamp = look(buffer, "a", "d", 0)
    assert stamp == 2 * S
    np.testing.assert_allclose(position, (1.5, 1, 0))


def test_static_frames_are_true_at_all_times_and_have_none_of_their_own():
    buffer = fill(static=[pose("a", "b", 5 * S, (1, 0, 0)), pose("b", "c", 6 * S, (0, 1, 0))])
    for stamp_ns in (1, 5 * S, 100 * S):
        position, _, stamp = look(buffer, "a", "c", stamp_ns)
        np.testing.assert_allclose(position, (1, 1, 0))
        assert stamp == stamp_ns
    assert look(buffer, "a", "c", 0)[2] == 0


@pytest.mark.parametrize(("options", "kept_s"), [({}, 10), ({"cache_time": Duration(seconds=2.0)}, 2)])
def test_what_is_older_than_the_cache_is_forgotten_and_not_taken_in(options, kept_s):
    latest_s = kept_s + 4
    # What expires is found when the next pose comes.
    poses = [pose("a", "b", index * S) for index in range(1, latest_s + 1)] + [pose("a", "b", latest_s * S, (1, 0, 0))]
    buffer = fill(*poses, **options)
    look(buffer, "a", "b", 4 * S)
    buffer.set_transform(pose("a", "b", 3 * S), "test")
    with pytest.raises(tf2_ros.ExtrapolationException, match="into the past"):
        look(buffer, "a", "b", 4 * S - 1)


def test_poses_that_come_late_are_sorted_in():
    buffer = fill(pose("a", "b", 3 * S, (3, 0, 0)), pose("a", "b", S, (1, 0, 0)), pose("a", "b", 2 * S, (9, 0, 0)))
    np.testing.assert_allclose(look(buffer, "a", "b", 2 * S)[0], (9, 0, 0))
    np.testing.assert_allclose(look(buffer, "a", "b", 2 * S + S // 2)[0], (6, 0, 0))


def test_of_two_poses_at_one_moment_the_last_counts_and_the_first_where_the_buffer_begins():
    twice = [pose("a", "b", stamp, (x, 0, 0)) for stamp in (S, 2 * S) for x in (1, 2)]
    buffer = fill(*twice, pose("a", "b", 3 * S, (6, 0, 0)))
    # A pose that is known already does not become the last again.
    buffer.set_transform(twice[2], "test")
    for stamp, x in ((S, 1), (S + S // 2, 1.5), (2 * S, 2), (2 * S + S // 2, 4)):
        np.testing.assert_allclose(look(buffer, "a", "b", stamp)[0], (x, 0, 0))


def test_a_moving_frame_without_stamps_is_not_part_of_the_latest_time():
    buffer = fill(pose("a", "b", 0, (1, 0, 0)), pose("b", "c", 5 * S))
    np.testing.assert_allclose(look(buffer, "a", "b", 0)[0], (1, 0, 0))
    with pytest.raises(tf2_ros.ExtrapolationException):
        look(buffer, "a", "c", 0)


def test_between_fixed_frames_nothing_that_was_stamped_zero_long_ago_counts():
    buffer = fill(pose("c", "b", 0, (7, 0, 0)), pose("a", "b", S), static=[pose("b", "c", 0, (2, 0, 0))])
    np.testing.assert_allclose(look(buffer, "c", "b", 0)[0], (-2, 0, 0))


def test_a_frame_that_changes_its_parent_is_not_interpolated_across():
    buffer = fill(pose("a", "b", S, (1, 0, 0)), pose("x", "b", 2 * S, (5, 0, 0)))
    np.testing.assert_allclose(look(buffer, "a", "b", S + S // 2)[0], (1, 0, 0))


def test_clearing_keeps_static_frames_only():
    buffer = fill(pose("a", "b", S), static=[pose("a", "c", 0, (0, 0, 2))])
    buffer.clear()
    np.testing.assert_allclose(look(buffer, "a", "c", 7 * S)[0], (0, 0, 2))
    with pytest.raises(tf2_ros.TransformException):
        look(buffer, "a", "b", S)
    buffer.set_transform(pose("a", "b", S // 2, (4, 0, 0)), "test")
    np.testing.assert_allclose(look(buffer, "a", "b", S // 2)[0], (4, 0, 0))


def without_rotation(**changes):
    message = pose("a", "b", S)
    for name, value in {"w": 0.0, **changes}.items():
        setattr(message.transform.rotation, name, value)
    return message


@pytest.mark.parametrize("broken", [pose("", "b", S), pose("a", "", S), pose("b", "b", S), pose("b", "/b", S),
                                    pose("a", "b", S, (math.nan, 0, 0)), without_rotation(),
                                    without_rotation(x=math.nan), without_rotation(x=math.inf)])
def test_poses_that_make_no_sense_are_not_taken_in(broken):
    for static in (False, True):
        buffer = fill(static=[broken]) if static else fill(broken)
        with pytest.raises(tf2_ros.LookupException):
            look(buffer, "a", "b", S)


def test_a_rotation_of_another_length_is_taken_as_one_of_length_one():
    half = math.sin(0.5), math.cos(0.5)
    long, backwards = without_rotation(z=3.0 * half[0], w=3.0 * half[1]), without_rotation(z=-half[0], w=-half[1])
    for message in (long, backwards):
        np.testing.assert_allclose(look(fill(message), "a", "b", S)[1], (0, 0, *half), atol=1e-12)
    # The same half a turn, the larger part positive.
    np.testing.assert_allclose(look(fill(without_rotation(y=-1.0, w=0.001)), "a", "b", S)[1], (0, 1, 0, -0.001),
                               atol=1e-6)


def test_a_leading_slash_belongs_to_no_name():
    buffer = fill(pose("/a", "/b", S, (1, 0, 0)))
    np.testing.assert_allclose(look(buffer, "a", "b", S)[0], (1, 0, 0))
    with pytest.raises(tf2_ros.InvalidArgumentException):
        look(buffer, "/a", "b", S)
    assert not buffer.can_transform("a", "/b", Time(nanoseconds=S))


def test_a_frame_in_itself_is_the_identity_at_any_time_whether_it_exists_or_not():
    buffer = fill(pose("a", "b", S), pose("a", "b", 3 * S))
    assert look(buffer, "b", "b", 7 * S)[2] == 7 * S and look(buffer, "b", "b", 0)[2] == 3 * S
    assert look(buffer, "a", "a", 0)[2] == 0 and look(buffer, "nowhere", "nowhere", 5)[2] == 5
    assert buffer.can_transform("nowhere", "nowhere", Time(nanoseconds=S))


def test_frames_in_a_circle_are_a_lookup_error():
    buffer = fill(pose("a", "b", S), pose("b", "c", S), pose("c", "a", S), pose("elsewhere", "x", S))
    for stamp_ns in (0, S):
        with pytest.raises(tf2_ros.LookupException, match="contains a loop"):
            look(buffer, "x", "b", stamp_ns)


def test_a_frame_that_becomes_fixed_or_moves_again_forgets_what_it_was():
    buffer = fill(pose("a", "b", S, (1, 0, 0)), static=[pose("a", "b", 0, (2, 0, 0))])
    np.testing.assert_allclose(look(buffer, "a", "b", 9 * S)[0], (2, 0, 0))
    buffer.set_transform(pose("a", "b", 5 * S, (3, 0, 0)), "test")
    np.testing.assert_allclose(look(buffer, "a", "b", 0)[0], (3, 0, 0))
    with pytest.raises(tf2_ros.ExtrapolationException):
        look(buffer, "a", "b", S)


def test_the_newest_parent_decides_where_the_latest_pose_is():
    buffer = fill(pose("a", "b", S, (1, 0, 0)), pose("a", "b", 2 * S, (1, 0, 0)), pose("x", "b", 3 * S, (5, 0, 0)))
    assert look(buffer, "x", "b", 0)[2] == 3 * S
    np.testing.assert_allclose(look(buffer, "a", "b", S)[0], (1, 0, 0))
    with pytest.raises(tf2_ros.ConnectivityException):
        look(buffer, "a", "b", 0)


def test_why_not_can_be_asked_for():
    buffer = fill(pose("a", "b", S))
    good, _ = buffer.can_transform("a", "b", Time(nanoseconds=S), return_debug_tuple=True)
    bad, why = buffer.can_transform("a", "b", Time(nanoseconds=2 * S), Duration(), True)
    assert good and not bad and "extrapolation at time 2.0" in why and "only time 1.0" in why


def test_a_messages_time_will_do():
    buffer = fill(pose("a", "b", S, (1, 0, 0)))
    stamp = Time(nanoseconds=S).to_msg()
    assert buffer.lookup_transform("a", "b", stamp).header.stamp == stamp
    assert buffer.can_transform("a", "b", stamp)


def test_a_lookup_waits_for_what_another_thread_brings():
    buffer, found = fill(pose("a", "b", S)), []
    begun = threading.Event()

    def wait():
        begun.set()
        found.append(buffer.lookup_transform("a", "c", Time(nanoseconds=S), timeout=Duration(seconds=60.0)))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert begun.wait(60.0)
    buffer.set_transform(pose("b", "c", S, (0, 2, 0)), "test")
    waiting.join(60.0)
    assert not waiting.is_alive() and found[0].transform.translation.y == 2.0


@pytest.fixture
def nodes():
    """Two nodes in a context, and what spins the second."""
    context = Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    speaker, listener = (rclpy.create_node(name, context=context) for name in ("speaker", "listener"))
    executor.add_node(listener)
    yield speaker, listener, executor
    executor.shutdown()
    for node in (speaker, listener):
        node.destroy_node()
    rclpy.shutdown(context=context)


def spin_until_known(executor, buffer, frames, meanwhile=lambda: None):
    for _ in range(500):
        meanwhile()
        executor.spin_once(timeout_sec=0.02)
        if all(buffer.can_transform("a", name, Time(nanoseconds=S)) for name in frames):
            break


def test_broadcast_frames_arrive_and_static_ones_also_late(nodes):
    speaker, listener, executor = nodes
    fixed = tf2_ros.StaticTransformBroadcaster(speaker)
    fixed.sendTransform([pose("a", "b", S, (1, 0, 0)), pose("a", "c", S, (0, 1, 0))])
    moving = tf2_ros.TransformBroadcaster(speaker, qos=10)
    buffer = tf2_ros.Buffer()
    ears = tf2_ros.TransformListener(buffer, listener, qos=10)
    spin_until_known(executor, buffer, "bcde",
                     lambda: moving.sendTransform([pose("b", "d", S, (0, 0, 1)), pose("c", "e", S)]))
    np.testing.assert_allclose(look(buffer, "c", "d", S)[0], (1, -1, 1))
    assert listener.count_subscribers("/tf") == 1
    ears.unregister()
    assert listener.count_subscribers("/tf") == 0


@pytest.mark.skipif(os.environ.get("ROS_DISTRO") == "humble", reason="there latecomers get the last message only")
def test_static_frames_that_were_sent_one_by_one_all_reach_who_comes_late(nodes):
    speaker, listener, executor = nodes
    fixed = tf2_ros.StaticTransformBroadcaster(speaker)
    fixed.sendTransform(pose("a", "b", S, (1, 0, 0)))
    fixed.sendTransform(pose("a", "c", S, (0, 1, 0)))
    buffer = tf2_ros.Buffer()
    tf2_ros.TransformListener(buffer, listener)
    spin_until_known(executor, buffer, "bc")
    np.testing.assert_allclose(look(buffer, "c", "b", S)[0], (1, -1, 0))
