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

"""The tabletop as a MuJoCo model: a Panda-like arm from the published DH table, drawn with primitive shapes."""

from __future__ import annotations

import math

from sqap_vla_ros.simulation.layout import COLORS, Layout

ARM_JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
FINGER_JOINTS = ("panda_finger_joint1", "panda_finger_joint2")
FINGER_TRAVEL_M = 0.045
TCP_OFFSET_M = 0.1034
# Craig's convention, a (m), d (m), alpha (rad): Franka Emika, "Denavit-Hartenberg parameters" of the Panda.
DH = ((0.0, 0.333, 0.0), (0.0, 0.0, -math.pi / 2), (0.0, 0.316, math.pi / 2), (0.0825, 0.0, math.pi / 2),
      (-0.0825, 0.384, -math.pi / 2), (0.0, 0.0, math.pi / 2), (0.088, 0.0, math.pi / 2))
_FLANGE_M = 0.107
_LIMITS = ((-2.8973, 2.8973), (-1.7628, 1.7628), (-2.8973, 2.8973), (-3.0718, -0.0698), (-2.8973, 2.8973),
           (-0.0175, 3.7525), (-2.8973, 2.8973))
_STIFFNESS = (4000, 4000, 4000, 4000, 2000, 2000, 1000)
# One capsule per link, from and to in the link's frame, and its radius.
_LINK_SHAPES = ("0 0 -.18 0 0 -.04", "0 0 -.04 0 0 .04", "0 0 -.14 0 0 -.06", "0 0 -.04 0 0 .04",
                "0 0 -.26 0 .05 -.06", "0 0 -.03 0 0 .03", "0 0 .01 0 0 .05")
_LINK_RADII = (0.055, 0.055, 0.05, 0.045, 0.035, 0.032, 0.030)


def build_mjcf(layout: Layout) -> str:
    """The whole scene as MJCF text; a block of every colour exists, those not in a scene are parked out of sight."""
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.004" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="{_gray(layout.ambient_intensity)}" diffuse=".25 .25 .25" specular="0 0 0"/>
    <quality shadowsize="512" offsamples="2"/>
    <map znear=".05" zfar="6"/>
    <global offwidth="{layout.camera_width_px}" offheight="{layout.camera_height_px}"/>
  </visual>
  <worldbody>
    <light directional="true" pos=".45 0 2" dir="0 0 -1" diffuse="{_gray(layout.light_intensity)}"
           specular="0 0 0" castshadow="true"/>
    <geom name="table" type="plane" size="3 3 .1" rgba=".62 .56 .48 1" friction="1 .01 .001"/>
    {_camera(layout)}
    {_arm()}
    {_tray(layout)}
    {"".join(_block(name, rgb, layout) for name, rgb in COLORS.items())}
    {"".join(_block(twin_body(index), (1.0, 1.0, 1.0), layout) for index in range(layout.twin_blocks))}
  </worldbody>
  <contact><exclude body1="panda_leftfinger" body2="panda_rightfinger"/></contact>
  <actuator>
    {"".join(_servo(name, _STIFFNESS[i]) for i, name in enumerate(ARM_JOINTS))}
    {"".join(f'<position joint="{name}" kp="500" kv="25" forcerange="-15 15" ctrlrange="0 {FINGER_TRAVEL_M}"/>'
             for name in FINGER_JOINTS)}
  </actuator>
</mujoco>"""


def twin_body(index: int) -> str:
    """Name, less 'block_', of the body of a second block of some colour; the scene paints it."""
    return f"twin_{index}"


def _gray(value: float) -> str:
    return f"{value} {value} {value}"


def _servo(joint: str, stiffness: float) -> str:
    return f'<position joint="{joint}" kp="{stiffness}" kv="{stiffness * 0.02}"/>'


def _camera(layout: Layout) -> str:
    x, y, z = layout.camera_position
    yaw, pitch = math.radians(layout.camera_yaw_deg), math.radians(layout.camera_pitch_deg)
    right = f"{-math.sin(yaw)} {math.cos(yaw)} 0"
    up = f"{-math.sin(pitch) * math.cos(yaw)} {-math.sin(pitch) * math.sin(yaw)} {math.cos(pitch)}"
    return (f'<camera name="camera" pos="{x} {y} {z}" xyaxes="{right} {up}" fovy="{layout.camera_fovy_deg}"/>')


def _arm() -> str:
    text, closing = '<body name="panda_link0"><geom type="cylinder" size=".07 .07" pos="0 0 .07" ' \
                    'rgba=".92 .92 .92 1" contype="0" conaffinity="0"/>', "</body>"
    for index, (a, d, alpha) in enumerate(DH):
        low, high = _LIMITS[index]
        y, z = -d * math.sin(alpha), d * math.cos(alpha)
        text += f"""
<body name="panda_link{index + 1}" pos="{a} {y} {z}" quat="{math.cos(alpha / 2)} {math.sin(alpha / 2)} 0 0"
      gravcomp="1">
  <joint name="{ARM_JOINTS[index]}" type="hinge" axis="0 0 1" range="{low} {high}" armature=".1" damping="1"/>
  <geom type="capsule" fromto="{_LINK_SHAPES[index]}" size="{_LINK_RADII[index]}" mass="1.5" rgba=".92 .92 .92 1"
        contype="0" conaffinity="0"/>"""
        closing += "</body>"
    return text + _hand() + closing


def _hand() -> str:
    eighth = math.pi / 8
    fingers = ""
    for name, joint, side in (("panda_leftfinger", FINGER_JOINTS[0], 1), ("panda_rightfinger", FINGER_JOINTS[1], -1)):
        fingers += f"""
<body name="{name}" pos="0 0 {TCP_OFFSET_M}" gravcomp="1">
  <joint name="{joint}" type="slide" axis="0 {side} 0" range="0 {FINGER_TRAVEL_M}" armature=".05" damping="2"/>
  <geom type="box" size=".010 .006 .026" pos="0 {side * 0.006} -.016" mass=".05" rgba=".05 .85 .85 1" condim="4"
        friction="1.6 .02 .001" solref=".006 1"/>
</body>"""
    return f"""
<body name="panda_hand" pos="0 0 {_FLANGE_M}" quat="{math.cos(eighth)} 0 0 {-math.sin(eighth)}" gravcomp="1">
  <geom type="box" size=".016 .054 .020" pos="0 0 .041" mass=".5" rgba=".22 .22 .24 1"/>
  <geom type="box" size=".017 .056 .005" pos="0 0 .066" mass=".05" rgba=".98 .55 .05 1" contype="0" conaffinity="0"/>
  <site name="tool0" pos="0 0 {TCP_OFFSET_M}" size=".004" rgba="0 0 0 0"/>{fingers}
</body>"""


def _tray(layout: Layout) -> str:
    half, wall = layout.tray_half_size_m, 0.006
    outer = half + wall
    walls = ((outer - wall / 2, 0, wall / 2, outer), (-outer + wall / 2, 0, wall / 2, outer),
             (0, outer - wall / 2, outer, wall / 2), (0, -outer + wall / 2, outer, wall / 2))
    sides = "".join(f'<geom type="box" pos="{x} {y} .010" size="{sx} {sy} .010" rgba=".16 .16 .18 1"/>'
                    for x, y, sx, sy in walls)
    return (f'<body name="tray" pos="{layout.tray_center[0]} {layout.tray_center[1]} 0">'
            f'<geom type="box" pos="0 0 .002" size="{outer} {outer} .002" rgba=".30 .30 .33 1"/>{sides}</body>')


def _block(name: str, rgb: tuple[float, float, float], layout: Layout) -> str:
    half = layout.block_size_m / 2
    color = " ".join(str(value) for value in rgb)
    return (f'<body name="block_{name}" pos="-1 0 {half}"><freejoint name="block_{name}"/>'
            f'<geom type="box" size="{half} {half} {half}" mass=".05" rgba="{color} 1" condim="4" '
            f'friction="1.2 .02 .001" solref=".006 1"/></body>')
