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

"""Poses as plain tuples: a look-up is a dozen products of four numbers, for which arrays are ten times slower."""

from __future__ import annotations

import math

Vector = tuple[float, float, float]  # m
Quaternion = tuple[float, float, float, float]  # x, y, z, w
Pose = tuple[Vector, Quaternion]
IDENTITY: Pose = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def compose(outer: Pose, inner: Pose) -> Pose:
    """Pose in the frame that ``outer`` is in, of what ``inner`` is in the frame of ``outer``."""
    x, y, z = _rotate(outer[1], inner[0])
    return (outer[0][0] + x, outer[0][1] + y, outer[0][2] + z), _multiply(outer[1], inner[1])


def invert(pose: Pose) -> Pose:
    """The other frame's pose in this one."""
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


def normalize(rotation: Quaternion) -> Quaternion:
    """Of length 1; of the two that say the same the one whose w, or else whose largest part, is positive.

    :return: all NaN for what is no rotation
    """
    norm = math.sqrt(_dot(rotation, rotation))
    if not 0.0 < norm < math.inf:
        return (math.nan,) * 4
    x, y, z, w = (part / norm for part in rotation)
    leading = w if w * w > 0.25 else max(x, y, z, key=abs)
    return (x, y, z, w) if leading > 0.0 else (-x, -y, -z, -w)


def interpolate(first: Pose, second: Pose, ratio: float) -> Pose:
    """Pose between two, straight in position and the short way round in rotation.

    :param ratio: 0 is the first, 1 the second
    """
    (a, b, c), (u, v, t) = first[0], second[0]
    position = (a + ratio * (u - a), b + ratio * (v - b), c + ratio * (t - c))
    cosine = _dot(first[1], second[1])
    angle = math.acos(min(abs(cosine), 1.0))
    if angle < 1e-9:
        return position, first[1]
    weight, other = math.sin((1 - ratio) * angle), math.copysign(math.sin(ratio * angle), cosine)
    sine = math.sin(angle)
    x, y, z, w = ((weight * p + other * q) / sine for p, q in zip(first[1], second[1], strict=True))
    return position, (x, y, z, w)
