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

"""Everything about the tabletop that can be chosen: camera, light, table, blocks, tray.

Lengths are metres; angles are what their names say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.06, 0.06),
    "green": (0.05, 0.62, 0.12),
    "blue": (0.07, 0.16, 0.85),
    "yellow": (0.93, 0.82, 0.05),
    "purple": (0.55, 0.10, 0.70),
}


@dataclass(frozen=True)
class Layout:
    """Parameters of the scene; angles in degrees, lengths in metres, in the frame of the robot's base.

    :param camera_target: point the camera looks at
    :param camera_distance_m: distance from that point
    :param camera_pitch_deg: how far the view is tilted down from horizontal
    :param camera_yaw_deg: how far the camera stands round the table from straight in front of the robot
    :param camera_fovy_deg: vertical field of view
    :param camera_width_px: image width
    :param camera_height_px: image height
    :param camera_shift_m: the camera stands off its place by from, to, in a direction that the scene chooses
    :param camera_turn_deg: and is turned by from, to about an axis that the scene chooses
    :param light_intensity: brightness of the overhead light, 0 to 1
    :param ambient_intensity: brightness of the light from everywhere, 0 to 1
    :param light_scale: both are multiplied by from, to
    :param light_tilt_deg: the overhead light leans by from, to in a direction that the scene chooses
    :param block_size_m: edge of a block
    :param block_area: x from, x to, y from, y to of block centres
    :param block_gap_m: least distance between block centres
    :param block_yaw_rad: blocks are turned by at most this
    :param block_counts: fewest and most blocks in a scene
    :param twin_blocks: so many of them have the colour of another block
    :param twin_gap_m: least distance between two blocks of one colour, measured across the picture
    :param tray_center: x, y of the tray's middle
    :param tray_jitter_m: the tray moves by at most this along x and y
    :param tray_half_size_m: half the tray's inner edge
    :param start_area: x from, x to, y from, y to, z from, z to of the gripper at the start
    """

    camera_target: tuple[float, float, float] = (0.425, 0.0, 0.045)
    camera_distance_m: float = 0.86
    camera_pitch_deg: float = 54.0
    camera_yaw_deg: float = 0.0
    camera_fovy_deg: float = 30.0
    camera_width_px: int = 224
    camera_height_px: int = 224
    camera_shift_m: tuple[float, float] = (0.0, 0.0)
    camera_turn_deg: tuple[float, float] = (0.0, 0.0)
    light_intensity: float = 0.55
    ambient_intensity: float = 0.38
    light_scale: tuple[float, float] = (1.0, 1.0)
    light_tilt_deg: tuple[float, float] = (0.0, 0.0)
    block_size_m: float = 0.05
    block_area: tuple[float, float, float, float] = (0.37, 0.56, -0.16, 0.03)
    block_gap_m: float = 0.085
    block_yaw_rad: float = 0.35
    block_counts: tuple[int, int] = (3, 4)
    twin_blocks: int = 0
    twin_gap_m: float = 0.06
    tray_center: tuple[float, float] = (0.465, 0.14)
    tray_jitter_m: float = 0.015
    tray_half_size_m: float = 0.065
    start_area: tuple[float, ...] = (0.40, 0.53, -0.12, 0.08, 0.14, 0.20)

    @property
    def camera_position(self) -> tuple[float, float, float]:
        """Where the camera stands."""
        pitch, yaw = math.radians(self.camera_pitch_deg), math.radians(self.camera_yaw_deg)
        x, y, z = self.camera_target
        reach = self.camera_distance_m * math.cos(pitch)
        return (x + reach * math.cos(yaw), y + reach * math.sin(yaw), z + self.camera_distance_m * math.sin(pitch))

    @property
    def rightward(self) -> tuple[float, float]:
        """x and y of the direction on the table that points to the right in the picture."""
        yaw = math.radians(self.camera_yaw_deg)
        return -math.sin(yaw), math.cos(yaw)

    @property
    def focal_px(self) -> float:
        """Focal length in pixels; pixels are square."""
        return self.camera_height_px / 2 / math.tan(math.radians(self.camera_fovy_deg) / 2)
