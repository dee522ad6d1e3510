"""The buffer of ``tf2_ros``: frames, their poses over time, and the way from one to another.

Poses are plain tuples: a lookup is a dozen products of four numbers, for which arrays are ten times slower.
"""

from __future__ import annotations

import math
import time as wall
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

MAX_GRAPH_DEPTH = 1000
QUATERNION_TOLERANCE = 1e-2
_POLL_S = 0.02


class TransformException(Exception):
    """Base of all errors of a look-up."""


class LookupException(TransformException):
    """A frame does not exist, or the tree has a loop."""


class ConnectivityException(TransformException):
    """The two frames are in different trees."""


class ExtrapolationException(TransformException):
    """The time asked for lies outside of what the buffer holds."""


class InvalidArgumentException(TransformException):
    """A frame name that can never exist."""


class TimeoutException(TransformException):
    """The time given ran out."""


Vector = tuple[float, float, float]  # m
Quaternion = tuple[float, float, float, float]  # x, y, z, w
Pose = tuple[Vector, Quaternion]
IDENTITY: Pose = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
NO_WAIT = Duration()


class _Step(NamedTuple):
    parent: str
    pose: Pose


class _Cache:
    """The poses of one frame over time, oldest first; a static frame has one that is always true."""

    def __init__(self, cache_ns: int, *, static: bool) -> None:
        self.static = static
        self._cache_ns = cache_ns
        self._stamps: list[int] = []
        self._steps: list[_Step] = []

    @property
    def latest_ns(self) -> int | None:
        return self._stamps[-1] if self._stamps and not self.static else None

    @property
    def latest_parent(self) -> str | None:
        return self._steps[-1].parent if self._steps else None

    def clear(self) -> None:
        if not self.static:
            self._stamps.clear()
            self._steps.clear()

    def insert(self, stamp_ns: int, step: _Step) -> None:
        if self.static:
            self._stamps, self._steps = [stamp_ns], [step]
            return
        if self._stamps and stamp_ns < self._stamps[-1] - self._cache_ns:
            return
        index = bisect_right(self._stamps, stamp_ns)
        self._stamps.insert(index, stamp_ns)
        self._steps.insert(index, step)
        expired = bisect_left(self._stamps, self._stamps[-1] - self._cache_ns)
        del self._stamps[:expired], self._steps[:expired]

    def at(self, stamp_ns: int) -> _Step:
        if self.static:
            return self._steps[0]
        stamps = self._stamps
        if not stamps:
            raise ExtrapolationException("Lookup would require extrapolation: the buffer is empty")
        if stamp_ns > stamps[-1] or stamp_ns < stamps[0]:
            if len(stamps) == 1:
                raise ExtrapolationException(f"Lookup would require extrapolation at time {_seconds(stamp_ns)}, but "
                                             f"only time {_seconds(stamps[0])} is in the buffer")
            direction, word, limit = (("future", "latest", stamps[-1]) if stamp_ns > stamps[-1]
                                      else ("past", "earliest", stamps[0]))
            raise ExtrapolationException(
                f"Lookup would require extrapolation into the {direction}.  Requested time {_seconds(stamp_ns)} but "
                f"the {word} data is at time {_seconds(limit)}")
        newer = bisect_right(stamps, stamp_ns)
        older = newer - 1
        if stamps[older] == stamp_ns or self._steps[older].parent != self._steps[newer].parent:
            return self._steps[older]
        ratio = (stamp_ns - stamps[older]) / (stamps[newer] - stamps[older])
        first, second = self._steps[older], self._steps[newer]
        return _Step(first.parent, _interpolate(first.pose, second.pose, ratio))


class Buffer:
    """Frames and their poses of the last ``cache_time``.

    :param cache_time: how long poses are kept; 10 s when None
    :param node: accepted as by the real buffer; not used
    """

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self._cache_ns = 10_000_000_000 if cache_time is None else cache_time.nanoseconds
        self._caches: dict[str, _Cache] = {}
        self._names: set[str] = set()

    def clear(self) -> None:
        """Forget all but the static frames."""
        for cache in self._caches.values():
            cache.clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Add the pose of a moving frame; one that makes no sense is ignored, as the real buffer does."""
        self._insert(transform, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Add the pose of a fixed frame."""
        self._insert(transform, static=True)

    def can_transform(self, target_frame: str, source_frame: str, time: Time, timeout: Duration = NO_WAIT) -> bool:
        """Whether :meth:`lookup_transform` would succeed, waiting up to ``timeout`` for another thread's data."""
        deadline = wall.monotonic() + timeout.nanoseconds * 1e-9
        while True:
            try:
                self._lookup(target_frame, source_frame, time.nanoseconds)
                return True
            except TransformException:
                if wall.monotonic() >= deadline:
                    return False
            wall.sleep(_POLL_S)

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time,
                         timeout: Duration = NO_WAIT) -> TransformStamped:
        """Pose of ``source_frame`` in ``target_frame``.

        :param target_frame: in which frame
        :param source_frame: of which frame
        :param time: when; 0 is the latest time at which all frames on the way are known
        :param timeout: how long to wait; sleeps, so data must come from another thread
        :raises LookupException: when a frame does not exist
        :raises ConnectivityException: when no way leads from one to the other
        :raises ExtrapolationException: when the time lies outside of the buffer
        """
        if timeout.nanoseconds > 0:
            self.can_transform(target_frame, source_frame, time, timeout)
        stamp_ns, translation, rotation = self._lookup(target_frame, source_frame, time.nanoseconds)
        message = TransformStamped(child_frame_id=source_frame)
        message.header.frame_id = target_frame
        message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        into = message.transform
        into.translation.x, into.translation.y, into.translation.z = translation
        into.rotation.x, into.rotation.y, into.rotation.z, into.rotation.w = rotation
        return message

    def _insert(self, transform: TransformStamped, *, static: bool) -> None:
        parent, child = transform.header.frame_id.removeprefix("/"), transform.child_frame_id.removeprefix("/")
        shift, turn = transform.transform.translation, transform.transform.rotation
        pose = (shift.x, shift.y, shift.z), (turn.x, turn.y, turn.z, turn.w)
        usable = not any(map(math.isnan, pose[0])) and abs(_dot(pose[1], pose[1]) - 1) < QUATERNION_TOLERANCE
        if not parent or not child or parent == child or not usable:
            return
        cache = self._caches.get(child)
        if cache is None or cache.static != static:
            cache = self._caches[child] = _Cache(self._cache_ns, static=static)
        cache.insert(Time.from_msg(transform.header.stamp).nanoseconds, _Step(parent, pose))
        self._names.update((parent, child))

    def _lookup(self, target: str, source: str, stamp_ns: int) -> tuple[int, Vector, Quaternion]:
        for role, frame in (("target_frame", target), ("source_frame", source)):
            if not frame or frame.startswith("/"):
                raise InvalidArgumentException(f'Invalid argument "{frame}" passed to lookupTransform argument {role} '
                                               "- in tf2 frame_ids cannot be empty or start with a '/'")
            if frame not in self._names:
                raise LookupException(f'"{frame}" passed to lookupTransform argument {role} does not exist. ')
        if stamp_ns == 0 and source != target:
            stamp_ns = self._latest_common_ns(target, source)
        upward: dict[str, Pose] = {source: IDENTITY}
        stopped: ExtrapolationException | None = None
        try:
            for parent, pose in self._climb(source, stamp_ns, until=target):
                upward[parent] = pose
        except ExtrapolationException as error:
            stopped = error
        if target in upward:
            return stamp_ns, *upward[target]
        try:
            for parent, pose in self._climb(target, stamp_ns, until=None):
                if parent in upward:
                    return stamp_ns, *_compose(_invert(pose), upward[parent])
        except ExtrapolationException as error:
            stopped = stopped or error
        if stopped is not None:
            raise ExtrapolationException(f"{stopped}, when looking up transform from frame [{source}] to frame "
                                         f"[{target}]")
        raise self._not_connected(target, source)

    def _climb(self, frame: str, stamp_ns: int, until: str | None) -> Iterator[tuple[str, Pose]]:
        # Ancestors one by one, with the pose of the first frame in each.
        pose = IDENTITY
        for _ in range(MAX_GRAPH_DEPTH):
            if frame == until or frame not in self._caches:
                return
            step = self._caches[frame].at(stamp_ns)
            pose, frame = _compose(step.pose, pose), step.parent
            yield frame, pose
        raise LookupException("The tf tree is invalid because it contains a loop.")

    def _latest_common_ns(self, target: str, source: str) -> int:
        # The way is that of the newest poses; static frames have no time, so a static way has time 0.
        ways = []
        for frame in (source, target):
            way = [frame]
            while (cache := self._caches.get(way[-1])) is not None and cache.latest_parent is not None:
                way.append(cache.latest_parent)
                if len(way) > MAX_GRAPH_DEPTH:
                    raise LookupException("The tf tree is invalid because it contains a loop.")
            ways.append(way)
        meeting = next((frame for frame in ways[0] if frame in ways[1]), None)
        if meeting is None:
            raise self._not_connected(target, source)
        moving = [self._caches[frame].latest_ns for way in ways for frame in way[:way.index(meeting)]]
        return min((stamp for stamp in moving if stamp is not None), default=0)

    def _not_connected(self, target: str, source: str) -> ConnectivityException:
        return ConnectivityException(f"Could not find a connection between '{target}' and '{source}' because they are "
                                     "not part of the same tree. Tf has two or more unconnected trees.")


def _compose(outer: Pose, inner: Pose) -> Pose:
    x, y, z = _rotate(outer[1], inner[0])
    return (outer[0][0] + x, outer[0][1] + y, outer[0][2] + z), _multiply(outer[1], inner[1])


def _invert(pose: Pose) -> Pose:
    x, y, z, w = pose[1]
    back = (-x, -y, -z, w)
    u, v, t = _rotate(back, pose[0])
    return (-u, -v, -t), back


def _rotate(rotation: Quaternion, vector: Vector) -> Vector:
    x, y, z, w = rotation
    a, b, c = vector
    u, v, t = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
    return a + w * u + y * t - z * v, b + w * v + z * u - x * t, c + w * t + x * v - y * u


def _multiply(left: Quaternion, right: Quaternion) -> Quaternion:
    x, y, z, w = left
    a, b, c, d = right
    return (w * a + x * d + y * c - z * b, w * b - x * c + y * d + z * a, w * c + x * b - y * a + z * d,
            w * d - x * a - y * b - z * c)


def _dot(left: Quaternion, right: Quaternion) -> float:
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2] + left[3] * right[3]


def _interpolate(first: Pose, second: Pose, ratio: float) -> Pose:
    # Straight in position, the short way round in rotation.
    (a, b, c), (u, v, t) = first[0], second[0]
    position = (a + ratio * (u - a), b + ratio * (v - b), c + ratio * (t - c))
    cosine = _dot(first[1], second[1])
    angle = math.acos(min(abs(cosine), 1.0))
    if angle < 1e-9:
        return position, first[1]
    weight, other = math.sin((1 - ratio) * angle), math.copysign(math.sin(ratio * angle), cosine)
    x, y, z, w = (weight * p + other * q for p, q in zip(first[1], second[1], strict=True))
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    return position, (x / norm, y / norm, z / norm, w / norm)


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"
