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

"""The buffer of ``tf2_ros``: frames, their poses over time, and the way from one to another.

Like the real buffer it may be filled by one thread and asked by another.
"""

from __future__ import annotations

import math
import time as wall
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

from builtin_interfaces.msg import Time as TimeMessage
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

from sqap_vla_ros.standalone.tf2_pose import IDENTITY, Pose, Quaternion, Vector, compose, interpolate, invert, normalize

MAX_GRAPH_DEPTH = 1000
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
        # What expires goes before the new pose comes, so that a single pose after a long pause leaves two.
        oldest = self._stamps[-1] - self._cache_ns if self._stamps else stamp_ns
        expired = bisect_left(self._stamps, oldest)
        del self._stamps[:expired], self._steps[:expired]
        index = bisect_right(self._stamps, stamp_ns)
        if stamp_ns >= oldest and step not in self._steps[bisect_left(self._stamps, stamp_ns):index]:
            self._stamps.insert(index, stamp_ns)
            self._steps.insert(index, step)

    def at(self, stamp_ns: int) -> _Step:
        if self.static:
            return self._steps[0]
        stamps = self._stamps
        if not stamps:
            raise ExtrapolationException("Lookup would require extrapolation: the buffer is empty")
        if stamp_ns == 0:
            return self._steps[-1]
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
        # Of several poses at one moment the last to come is true, at the beginning of the buffer the first.
        older = 0 if stamp_ns == stamps[0] != stamps[-1] else newer - 1
        if stamps[older] == stamp_ns or self._steps[older].parent != self._steps[newer].parent:
            return self._steps[older]
        ratio = (stamp_ns - stamps[older]) / (stamps[newer] - stamps[older])
        first, second = self._steps[older], self._steps[newer]
        return _Step(first.parent, interpolate(first.pose, second.pose, ratio))


class Buffer:
    """Frames and their poses of the last ``cache_time``.

    :param cache_time: how long poses are kept; 10 s when None
    :param node: accepted as by the real buffer; not used
    """

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self._cache_ns = 10_000_000_000 if cache_time is None else cache_time.nanoseconds
        self._caches: dict[str, _Cache] = {}
        self._names: set[str] = set()
        self._lock = Lock()

    def clear(self) -> None:
        """Forget all but the static frames."""
        with self._lock:
            for cache in self._caches.values():
                cache.clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Add the pose of a moving frame; one that makes no sense is ignored, as the real buffer does."""
        self._insert(transform, static=False)

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Add the pose of a fixed frame."""
        self._insert(transform, static=True)

    def can_transform(self, target_frame: str, source_frame: str, time: Time | TimeMessage,
                      timeout: Duration = NO_WAIT, return_debug_tuple: bool = False) -> bool | tuple[bool, str]:
        """Whether :meth:`lookup_transform` would succeed, waiting up to ``timeout`` for another thread's data.

        :param return_debug_tuple: whether to say too why it would not
        """
        deadline = wall.monotonic() + timeout.nanoseconds * 1e-9
        while True:
            reason = ""
            try:
                self._lookup(target_frame, source_frame, _to_ns(time))
            except TransformException as error:
                reason = str(error)
            if not reason or wall.monotonic() >= deadline:
                return (not reason, reason) if return_debug_tuple else not reason
            wall.sleep(_POLL_S)

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time | TimeMessage,
                         timeout: Duration = NO_WAIT) -> TransformStamped:
        """Pose of ``source_frame`` in ``target_frame``.

        :param target_frame: in which frame
        :param source_frame: of which frame; the same one is the identity, whether it exists or not
        :param time: when; 0 is the latest time at which all frames on the way are known
        :param timeout: how long to wait; sleeps, so data must come from another thread
        :raises LookupException: when a frame does not exist
        :raises ConnectivityException: when no way leads from one to the other
        :raises ExtrapolationException: when the time lies outside of the buffer
        :raises InvalidArgumentException: for a name that is empty or begins with a slash
        """
        if timeout.nanoseconds > 0:
            self.can_transform(target_frame, source_frame, time, timeout)
        stamp_ns, translation, rotation = self._lookup(target_frame, source_frame, _to_ns(time))
        message = TransformStamped(child_frame_id=source_frame)
        message.header.frame_id = target_frame
        message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        into = message.transform
        into.translation.x, into.translation.y, into.translation.z = translation
        into.rotation.x, into.rotation.y, into.rotation.z, into.rotation.w = normalize(rotation)
        return message

    def _insert(self, transform: TransformStamped, *, static: bool) -> None:
        parent, child = transform.header.frame_id.removeprefix("/"), transform.child_frame_id.removeprefix("/")
        shift, turn = transform.transform.translation, transform.transform.rotation
        translation = shift.x, shift.y, shift.z
        rotation = normalize((turn.x, turn.y, turn.z, turn.w))
        if not parent or not child or parent == child or any(map(math.isnan, (*translation, *rotation))):
            return
        with self._lock:
            cache = self._caches.get(child)
            if cache is None or cache.static != static:
                cache = self._caches[child] = _Cache(self._cache_ns, static=static)
            cache.insert(_to_ns(transform.header.stamp), _Step(parent, (translation, rotation)))
            self._names.update((parent, child))

    def _lookup(self, target: str, source: str, stamp_ns: int) -> tuple[int, Vector, Quaternion]:
        with self._lock:
            if target == source:
                cache = self._caches.get(source)
                latest_ns = cache.latest_ns if cache is not None else None
                return stamp_ns or latest_ns or 0, *IDENTITY
            for role, frame in (("target_frame", target), ("source_frame", source)):
                self._check_name(role, frame)
            return self._find_way(target, source, stamp_ns or self._latest_common_ns(target, source))

    def _check_name(self, role: str, frame: str) -> None:
        if not frame or frame.startswith("/"):
            raise InvalidArgumentException(f'Invalid argument "{frame}" passed to lookupTransform argument {role} '
                                           "- in tf2 frame_ids cannot be empty or start with a '/'")
        if frame not in self._names:
            raise LookupException(f'"{frame}" passed to lookupTransform argument {role} does not exist. ')

    def _find_way(self, target: str, source: str, stamp_ns: int) -> tuple[int, Vector, Quaternion]:
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
                    return stamp_ns, *compose(invert(pose), upward[parent])
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
            pose, frame = compose(step.pose, pose), step.parent
            yield frame, pose
        raise LookupException("The tf tree is invalid because it contains a loop.")

    def _latest_common_ns(self, target: str, source: str) -> int:
        # The way is that of the newest poses; static frames have no time, so a static way has time 0.
        upward = self._newest_way(source, {target})
        downward = self._newest_way(target, set(upward))
        if downward[-1] not in upward:
            raise self._not_connected(target, source)
        moving = [self._caches[frame].latest_ns for frame in upward[:upward.index(downward[-1])] + downward[:-1]]
        return min((stamp for stamp in moving if stamp), default=0)

    def _newest_way(self, frame: str, until: set[str]) -> list[str]:
        way = [frame]
        while way[-1] not in until and way[-1] in self._caches:
            parent = self._caches[way[-1]].latest_parent
            if parent is None:
                break
            way.append(parent)
            if len(way) > MAX_GRAPH_DEPTH:
                raise LookupException("The tf tree is invalid because it contains a loop.")
        return way

    def _not_connected(self, target: str, source: str) -> ConnectivityException:
        return ConnectivityException(f"Could not find a connection between '{target}' and '{source}' because they are "
                                     "not part of the same tree. Tf has two or more unconnected trees.")


def _to_ns(time: Time | TimeMessage) -> int:
    if isinstance(time, Time):
        return int(time.nanoseconds)
    return time.sec * 1_000_000_000 + time.nanosec


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // 1_000_000_000}.{stamp_ns % 1_000_000_000:09d}"
