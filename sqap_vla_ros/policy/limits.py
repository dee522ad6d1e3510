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

"""How a commanded velocity may change, where it may lead, and the pose that it leads to.

Speed caps and the walls of the workspace hold at every moment; the cap on acceleration yields to them and to a halt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sqap_vla_ros.errors import InferenceError
from sqap_vla_ros.knobs import SafetyKnobs
from sqap_vla_ros.policy.safety import age_s, check_finite, limit_step

# At its speed towards a wall, the tool would take at least this long to get there.
HORIZON_S = 0.1
# After a pause of so many horizons a robot has stopped by itself.
_PAUSE_HORIZONS = 5


@dataclass(frozen=True)
class Limited:
    """A velocity that may be commanded.

    :param velocity: (6,) float64, linear in m/s then angular in rad/s
    :param reasons: what changed it, of 'speed', 'acceleration', 'workspace' and 'ramp' in this order; empty when it is
        as asked
    """

    velocity: np.ndarray
    reasons: tuple[str, ...]


class MotionLimiter:
    """Limits one velocity after the other; all are in the base frame.

    :param tick_s: time between two commands, s
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        # Two ticks, so that each tick ends short of the wall and braking can follow.
        self._horizon_s = max(HORIZON_S, 2.0 * tick_s)
        self._began_ns: int | None = None
        self._now_ns = 0
        self.rest()

    def begin(self, now_ns: int) -> None:
        """The robot stands still, and the ramp starts.

        :param now_ns: the node's clock
        """
        self._began_ns = self._now_ns = now_ns
        self.rest()

    def rest(self) -> None:
        """A velocity of zero was commanded; the ramp goes on."""
        # The velocity of the moment, and from which one it was reached in which time.
        self._velocity, self._before, self._dt_s = np.zeros(6), np.zeros(6), self._tick_s
        self._resting = True

    def limit(self, velocity: np.ndarray, now_ns: int, knobs: SafetyKnobs, position: np.ndarray | None,
              late_s: float = 0.0) -> Limited:
        """Limit speed, ramp, way to the walls and acceleration, in this order.

        Six zeros are a halt and come out at once. A second velocity for the same moment replaces the first. A clock
        that jumped back is a new beginning.

        :param velocity: (6,) what is asked for, linear in m/s then angular in rad/s
        :param now_ns: the node's clock
        :param knobs: the limits, which may differ from call to call
        :param position: (3,) where the tool is, m; needed with ``knobs.workspace`` only
        :param late_s: how long ago it was there, s; it may have come nearer to a wall by what the cap allows
        :raises InferenceError: when a value is not finite, or the workspace is on and ``position`` is None
        """
        check_finite("the commanded velocity", velocity)
        walls = self._walls(position, knobs, max(late_s, 0.0) * knobs.max_linear_m_s)
        ramp = self._follow_clock(now_ns, knobs.ramp_in_s)
        if not np.any(velocity):
            self.rest()
            return Limited(np.zeros(6), ())
        caps = {"max_linear_m_s": knobs.max_linear_m_s, "max_angular_rad_s": knobs.max_angular_rad_s}
        asked, fast = limit_step(np.asarray(velocity, dtype=np.float64), **caps)
        ramped = asked * ramp
        aim = _clip_linear(ramped, walls)
        # Where caps or walls have come closer, what was commanded before is no longer a place to start from.
        start = _clip_linear(limit_step(self._before, **caps)[0], walls)
        parts = [_approach(self._before[part], start[part], aim[part], cap * self._dt_s)
                 for part, cap in ((slice(0, 3), knobs.max_linear_m_s2), (slice(3, 6), knobs.max_angular_rad_s2))]
        self._velocity = np.concatenate([reached for reached, _ in parts])
        found = {"speed": fast, "acceleration": any(slowed for _, slowed in parts),
                 "workspace": not np.array_equal(aim, ramped), "ramp": ramp < 1.0}
        return Limited(self._velocity.copy(), tuple(name for name, changed in found.items() if changed))

    def _follow_clock(self, now_ns: int, ramp_in_s: float) -> float:
        # How far the ramp has risen, 0 to 1.
        if self._began_ns is None or now_ns < self._now_ns:
            self.begin(now_ns)
        assert self._began_ns is not None
        elapsed_s = age_s(self._now_ns, now_ns)
        if elapsed_s > _PAUSE_HORIZONS * self._horizon_s:
            self.rest()
        if elapsed_s > 0 and not self._resting:
            self._before, self._dt_s = self._velocity, min(elapsed_s, self._horizon_s)
        self._now_ns, self._resting = now_ns, False
        since_s = age_s(self._began_ns, now_ns)
        return since_s / ramp_in_s if since_s < ramp_in_s else 1.0

    def _walls(self, position: np.ndarray | None, knobs: SafetyKnobs,
               moved_m: float) -> tuple[np.ndarray, np.ndarray] | None:
        # Lowest and highest linear velocity that the walls allow, (3,) each; None without walls.
        if not knobs.workspace:
            return None
        if position is None:
            raise InferenceError("safety.workspace is on and the tool's position is not known; check TF from "
                                 "control.base_frame to control.tool_frame, or turn safety.workspace off")
        check_finite("the tool's position", position)
        return (-self._speed_towards(position - moved_m - np.array(knobs.workspace_min_m), knobs.max_linear_m_s2),
                self._speed_towards(np.array(knobs.workspace_max_m) - position - moved_m, knobs.max_linear_m_s2))

    def _speed_towards(self, distance_m: np.ndarray, max_linear_m_s2: float) -> np.ndarray:
        # A horizon away from the wall, and slow enough to brake before it in ticks of up to half a horizon; in a corner
        # three walls share the deceleration. Beyond the wall it is zero.
        distance_m, horizon_s = np.maximum(distance_m, 0.0), self._horizon_s
        braking_m_s2 = max_linear_m_s2 / math.sqrt(3.0)
        braked = np.sqrt(0.25 * horizon_s ** 2 + 2.0 * distance_m / braking_m_s2) - 0.5 * horizon_s
        return np.minimum(distance_m / horizon_s, braking_m_s2 * braked)


def _clip_linear(velocity: np.ndarray, walls: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    if walls is None:
        return velocity
    return np.concatenate([np.clip(velocity[:3], *walls), velocity[3:]])


def _approach(before: np.ndarray, start: np.ndarray, aim: np.ndarray, reach: float) -> tuple[np.ndarray, bool]:
    """Go from ``start`` to ``aim`` as far as it is within ``reach`` of ``before``.

    :param before: (3,) the last velocity
    :param start: (3,) the velocity nearest to it that is still allowed
    :param aim: (3,) an allowed velocity
    :param reach: largest change since ``before``
    :return: (3,) velocity, and whether it is not ``aim``
    """
    way, gap = aim - start, start - before
    length2, along = float(way @ way), float(way @ gap)
    root = along ** 2 - length2 * (float(gap @ gap) - reach ** 2)
    if length2 == 0.0:
        return aim, False
    # Without a root no point of the way is within reach; the nearest allowed one it is then.
    factor = (math.sqrt(root) - along) / length2 if root >= 0.0 else 0.0
    return (aim, False) if factor >= 1.0 else (start + max(factor, 0.0) * way, True)


class PoseTarget:
    """The pose to which velocities lead, both in the base frame."""

    def __init__(self) -> None:
        self._pose: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def started(self) -> bool:
        """Whether there is a pose to go on from."""
        return self._pose is not None

    def start(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """Take the pose to go on from.

        :param position: (3,) m
        :param quaternion: (4,) x, y, z, w, of any length but 0
        :raises InferenceError: when a value is not finite, or the quaternion is zero
        """
        check_finite("the target's position", position)
        check_finite("the target's quaternion", quaternion)
        if not np.any(quaternion):
            raise InferenceError("the target's quaternion is zero; it must be a rotation, no rotation is 0, 0, 0, 1")
        self._pose = np.array(position, dtype=np.float64), np.array(quaternion, dtype=np.float64)

    def advance(self, velocity: np.ndarray, dt_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Move on with a velocity that is constant in the base frame.

        :param velocity: (6,) linear in m/s then angular in rad/s, limited
        :param dt_s: how long, s
        :return: position (3,) in m, and quaternion (4,) x, y, z, w of length 1
        :raises InferenceError: when a value is not finite; the pose stays
        """
        assert self._pose is not None, "the target was not started"
        check_finite("the target's motion", np.append(velocity, dt_s))
        position, quaternion = self._pose
        self._pose = position + velocity[:3] * dt_s, _turn(quaternion, velocity[3:] * dt_s)
        return self._pose[0].copy(), self._pose[1].copy()

    def clear(self) -> None:
        """Forget the pose."""
        self._pose = None


def _turn(quaternion: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    # After a rotation vector (3,) in rad of the frame in which the quaternion is.
    half_rad = 0.5 * float(np.linalg.norm(rotation))
    vector, scalar = quaternion[:3], quaternion[3]
    # NumPy's sinc has a pi in it.
    turn, cosine = 0.5 * np.sinc(half_rad / math.pi) * rotation, math.cos(half_rad)
    turned = np.append(cosine * vector + scalar * turn + np.cross(turn, vector), cosine * scalar - turn @ vector)
    return turned / np.linalg.norm(turned)
