"""What holds for the real tf2_ros and for the stand-in alike; the one that this machine has is tested."""

import math

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


@pytest.mark.parametrize("stamp_ns", [S - 1, 3 * S + 1])
def test_outside_of_what_is_known_is_extrapolation(stamp_ns):
    buffer = fill(pose("a", "b", S), pose("a", "b", 3 * S))
    with pytest.raises(tf2_ros.ExtrapolationException):
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


def test_what_is_older_than_the_cache_is_forgotten_and_not_taken_in():
    buffer = fill(*(pose("a", "b", index * S) for index in range(1, 6)), cache_time=Duration(seconds=2.0))
    look(buffer, "a", "b", 3 * S)
    with pytest.raises(tf2_ros.ExtrapolationException):
        look(buffer, "a", "b", 3 * S - 1)
    buffer.set_transform(pose("a", "b", S), "test")
    with pytest.raises(tf2_ros.ExtrapolationException):
        look(buffer, "a", "b", 2 * S)


def test_poses_that_come_late_are_sorted_in():
    buffer = fill(pose("a", "b", 3 * S, (3, 0, 0)), pose("a", "b", S, (1, 0, 0)), pose("a", "b", 2 * S, (9, 0, 0)))
    np.testing.assert_allclose(look(buffer, "a", "b", 2 * S)[0], (9, 0, 0))
    np.testing.assert_allclose(look(buffer, "a", "b", 2 * S + S // 2)[0], (6, 0, 0))


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


@pytest.mark.parametrize("broken", [pose("", "b", S), pose("a", "", S), pose("b", "b", S),
                                    pose("a", "b", S, (math.nan, 0, 0)), pose("a", "b", S, axis=(0, 0, 2), angle=1.0)])
def test_poses_that_make_no_sense_are_not_taken_in(broken):
    buffer = fill(broken)
    with pytest.raises(tf2_ros.TransformException):
        look(buffer, "a", "b", S)


def test_broadcast_frames_arrive_and_static_ones_also_late():
    context = Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    speaker, listener = (rclpy.create_node(name, context=context) for name in ("speaker", "listener"))
    fixed = tf2_ros.StaticTransformBroadcaster(speaker)
    fixed.sendTransform(pose("a", "b", S, (1, 0, 0)))
    fixed.sendTransform([pose("a", "c", S, (0, 1, 0))])
    moving = tf2_ros.TransformBroadcaster(speaker)
    buffer = tf2_ros.Buffer()
    ears = tf2_ros.TransformListener(buffer, listener)
    executor.add_node(listener)
    try:
        for _ in range(500):
            moving.sendTransform([pose("b", "d", S, (0, 0, 1)), pose("c", "e", S)])
            executor.spin_once(timeout_sec=0.02)
            if all(buffer.can_transform("a", name, Time(nanoseconds=S)) for name in "bcde"):
                break
        np.testing.assert_allclose(look(buffer, "c", "d", S)[0], (1, -1, 1))
        assert listener.count_subscribers("/tf") == 1
        ears.unregister()
        assert listener.count_subscribers("/tf") == 0
    finally:
        executor.shutdown()
        for node in (speaker, listener):
            node.destroy_node()
        rclpy.shutdown(context=context)
