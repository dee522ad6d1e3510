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

"""Orientations as the three numbers that models read, from a unit quaternion x, y, z, w."""

from __future__ import annotations

import math

import numpy as np

# Sine of the pitch beyond which roll and yaw turn about the same axis, as far as double precision tells.
_UPRIGHT = 1.0 - 1e-12


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle, rad.

    Of the two that mean the same it is the one whose w, or near half a turn whose axis' largest part, is positive. So
    a tool that points down does not flip between the two as it trembles; its angle passes pi instead.

    :param quaternion: (4,) x, y, z, w of length 1
    :return: (3,) float64
    """
    parts = np.asarray(quaternion, dtype=np.float64)
    leading = parts[3] if parts[3] ** 2 > 0.25 else parts[np.argmax(np.abs(parts[:3]))]
    parts = parts if leading > 0.0 else -parts
    sine = float(np.linalg.norm(parts[:3]))
    if sine < 1e-12:
        return 2.0 * parts[:3]
    return parts[:3] / sine * (2.0 * math.atan2(sine, parts[3]))


def roll_pitch_yaw(quaternion: np.ndarray) -> np.ndarray:
    """Turns about the fixed axes x, then y, then z, rad; where roll and yaw are one turn, yaw is 0.

    :param quaternion: (4,) x, y, z, w of length 1
    :return: (3,) float64, pitch within pi/2
    """
    x, y, z, w = (float(part) for part in quaternion)
    sine = 2.0 * (w * y - x * z)
    if abs(sine) > _UPRIGHT:
        roll = math.atan2(2.0 * (w * x - y * z), 1.0 - 2.0 * (x * x + z * z))
        return np.array([roll, math.copysign(math.pi / 2, sine), 0.0])
    return np.array([math.atan2(2.0 * (w * x + y * z), 1.0 - 2.0 * (x * x + y * y)), math.asin(sine),
                     math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))])
