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

"""The simulated robot and its table, with no ROS: velocities and a gripper opening in, pictures and poses out."""

from __future__ import annotations

import os

import numpy as np

from sqap_vla_ros.geometry.camera import Camera
from sqap_vla_ros.simulation.goals import State, goal_reached
from sqap_vla_ros.simulation.layout import COLORS, Layout
from sqap_vla_ros.simulation.mjcf import ARM_JOINTS, FINGER_JOINTS, FINGER_TRAVEL_M, build_mjcf, twin_body
from sqap_vla_ros.simulation.scene import Scene, draw_scene
from sqap_vla_ros.simulation.tasks import Task

os.environ.setdefault("MUJOCO_GL", "osmesa")
import mujoco  # reads MUJOCO_GL when imported

CONTROL_PERIOD_S = 0.1
TICK_S = 0.02
_SUBSTEPS = 5
_DAMPING = 1e-3
_DOWN = np.diag([1.0, -1.0, -1.0])
_HOME = np.array([0.0, 0.1, 0.0, -2.2, 0.0, 2.3, 0.785])
_TARGET_LOW, _TARGET_HIGH = np.array([0.25, -0.35, 0.012]), np.array([0.72, 0.35, 0.45])
_LINKS = tuple(f"panda_link{i}" for i in range(8)) + ("panda_hand", "panda_leftfinger", "panda_rightfinger")
_OPTICAL = np.diag([1.0, -1.0, -1.0])  # MuJoCo cameras look along -z with y up; REP-103 optical along +z with y down


class Tabletop:
    """One robot, one table. Seeds fully determine a scene; stepping is deterministic."""

    control_period_s = CONTROL_PERIOD_S

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout()
        self._model = mujoco.MjModel.from_xml_string(build_mjcf(self.layout))
        self._data = mujoco.MjData(self._model)
        self._plan = mujoco.MjData(self._model)  # commanded posture, kinematics only
        self._renderer: mujoco.Renderer | None = None
        self._arm = np.array([self._model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self._arm_dof = np.array([self._model.joint(name).dofadr[0] for name in ARM_JOINTS])
        self._fingers = np.array([self._model.joint(name).qposadr[0] for name in FINGER_JOINTS])
        self._tool = self._model.site("tool0").id
        self._linear: np.ndarray = np.zeros(3)
        self._angular: np.ndarray = np.zeros(3)
        self._opening = 1.0
        self._target: np.ndarray = np.zeros(3)
        self._target_rotation: np.ndarray = _DOWN.copy()
        self._bodies: dict[str, str] = {}  # block names to bodies
        self._camera_quaternion = self._model.camera("camera").quat.copy()
        self._headlight_diffuse = self._model.vis.headlight.diffuse.copy()
        self.reset(0)

    def reset(self, seed: int) -> Scene:
        """Lay out a new scene and put the arm at its start.

        :raises ConfigError: when the layout's blocks do not fit
        """
        scene = draw_scene(self.layout, seed)
        mujoco.mj_resetData(self._model, self._data)
        self._model.body("tray").pos[:2] = scene.tray
        self._place_blocks(scene)
        self._set_view(scene)
        self._move_arm_to(np.array(scene.start))
        self._scene = scene
        self._linear, self._angular, self._opening = np.zeros(3), np.zeros(3), 1.0
        self.advance(CONTROL_PERIOD_S)
        return scene

    @property
    def scene(self) -> Scene:
        """What is on the table."""
        return self._scene

    def set_twist(self, linear: np.ndarray, angular: np.ndarray) -> None:
        """Velocity of the tool centre point in the base frame, m/s and rad/s; it lasts until the next call."""
        self._linear, self._angular = np.array(linear, float), np.array(angular, float)

    def set_gripper(self, opening: float) -> None:
        """Wanted opening, 0 (closed) to 1 (open)."""
        self._opening = float(np.clip(opening, 0.0, 1.0))

    def advance(self, seconds: float) -> None:
        """Let time pass, in ticks of 20 ms."""
        for _ in range(round(seconds / TICK_S)):
            self._target = np.clip(self._target + self._linear * TICK_S, _TARGET_LOW, _TARGET_HIGH)
            self._target_rotation = _rotation(self._angular * TICK_S) @ self._target_rotation
            self._solve_posture(1)
            self._data.ctrl[:7] = self._plan.qpos[self._arm]
            self._data.ctrl[7:9] = self._opening * FINGER_TRAVEL_M
            mujoco.mj_step(self._model, self._data, _SUBSTEPS)
        mujoco.mj_forward(self._model, self._data)

    def step(self, action: np.ndarray) -> None:
        """Carry out one (7,) step of a chunk over one control period."""
        self.set_twist(action[:3] / CONTROL_PERIOD_S, action[3:6] / CONTROL_PERIOD_S)
        self.set_gripper(action[6])
        self.advance(CONTROL_PERIOD_S)

    def render(self) -> np.ndarray:
        """The camera's picture, (H, W, 3) uint8 RGB."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._model, self.layout.camera_height_px, self.layout.camera_width_px)
        self._renderer.update_scene(self._data, camera="camera")
        return self._renderer.render().copy()

    def segment(self) -> np.ndarray:
        """Name index of the body seen in each pixel, (H, W) int32, -1 for none; see :meth:`body_name`."""
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._model, self.layout.camera_height_px, self.layout.camera_width_px)
        self._renderer.enable_segmentation_rendering()
        self._renderer.update_scene(self._data, camera="camera")
        ids = self._renderer.render()[..., 0].copy()
        self._renderer.disable_segmentation_rendering()
        return np.where(ids >= 0, self._model.geom_bodyid[np.maximum(ids, 0)], -1).astype(np.int32)

    def body_name(self, index: int) -> str:
        """Name of a body in :meth:`segment`; blocks are called 'block_' and their name."""
        body = str(self._model.body(index).name)
        return next((f"block_{name}" for name, own in self._bodies.items() if own == body), body)

    def camera(self) -> Camera:
        """The pinhole that :meth:`render` uses; the centre of the first pixel is (0, 0)."""
        layout = self.layout
        matrix = np.array([[layout.focal_px, 0.0, (layout.camera_width_px - 1) / 2],
                           [0.0, layout.focal_px, (layout.camera_height_px - 1) / 2], [0.0, 0.0, 1.0]])
        return Camera(matrix, np.zeros(5), "plumb_bob", layout.camera_width_px, layout.camera_height_px)

    def state(self) -> State:
        """Where everything is."""
        rotation = self.tool_rotation()
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self._model, self._data, mujoco.mjtObj.mjOBJ_SITE, self._tool, velocity, 0)
        bodies = {name: self._data.body(body) for name, body in self._bodies.items()}
        return State(self._data.site_xpos[self._tool].copy(), float(np.linalg.norm(velocity[3:])),
                     float(np.arctan2(rotation[1, 0], rotation[0, 0])), float(self._data.qpos[self._fingers].sum()),
                     {name: body.xpos.copy() for name, body in bodies.items()},
                     {name: _yaw_of(body.xmat.reshape(3, 3)) for name, body in bodies.items()},
                     self._model.body("tray").pos.copy())

    def succeeded(self, task: Task) -> bool:
        """Whether the task is done at this moment."""
        if any(color not in self._scene.colors for color in task.colors):
            return False
        return goal_reached(self.state(), task, self._scene.target(task), self.layout)

    def link_poses(self) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        """Moving frames as (parent, child, translation (3,) m, quaternion xyzw)."""
        poses = []
        for parent, child in zip((*_LINKS[:-3], _LINKS[-3], _LINKS[-3]), _LINKS[1:], strict=False):
            above, below = self._data.body(parent), self._data.body(child)
            rotation = above.xmat.reshape(3, 3)
            poses.append((parent, child, rotation.T @ (below.xpos - above.xpos),
                          _quaternion(rotation.T @ below.xmat.reshape(3, 3))))
        return poses

    def static_poses(self) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
        """Frames that never move: the base in the world, the tool on the hand, the camera's optical frame."""
        position, rotation = self.camera_pose()
        identity = np.array([0.0, 0.0, 0.0, 1.0])
        return [("world", "panda_link0", np.zeros(3), identity),
                ("panda_hand", "tool0", self._model.site("tool0").pos.copy(), identity),
                ("panda_link0", "camera_optical_frame", position, _quaternion(rotation))]

    def camera_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3) of the camera's optical frame in the base frame."""
        camera = self._data.camera("camera")
        return camera.xpos.copy(), camera.xmat.reshape(3, 3) @ _OPTICAL

    def tool_rotation(self) -> np.ndarray:
        """Rotation (3, 3) of the tool in the base frame."""
        return self._data.site_xmat[self._tool].reshape(3, 3).copy()

    def joint_state(self) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Names, positions (rad, m) and velocities of arm and fingers."""
        names = ARM_JOINTS + FINGER_JOINTS
        dofs = [self._model.joint(name).dofadr[0] for name in names]
        return names, self._data.qpos[np.r_[self._arm, self._fingers]].copy(), self._data.qvel[dofs].copy()

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _place_blocks(self, scene: Scene) -> None:
        spare = [twin_body(index) for index in range(self.layout.twin_blocks)]
        for index, name in enumerate((*COLORS, *spare)):
            self._set_block(name, (-1.0, -0.5 + 0.2 * index), 0.0)
        self._bodies = {}
        for block in scene.blocks:
            body = block.name if block.name in COLORS else spare.pop(0)
            self._bodies[block.name] = f"block_{body}"
            self._set_block(body, block.position, block.yaw)
            if body != block.name:
                self._model.geom_rgba[self._model.body(f"block_{body}").geomadr[0], :3] = COLORS[block.color]

    def _set_block(self, body: str, place: tuple[float, float], yaw: float) -> None:
        joint = self._data.joint(f"block_{body}")
        joint.qpos[:] = [*place, self.layout.block_size_m / 2, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]

    def _set_view(self, scene: Scene) -> None:
        camera, model, layout = self._model.camera("camera"), self._model, self.layout
        camera.pos[:] = np.array(layout.camera_position) + scene.camera_shift
        turned = np.zeros(4)
        mujoco.mju_mulQuat(turned, _turn_quaternion(np.array(scene.camera_turn)), self._camera_quaternion)
        camera.quat[:] = turned
        model.light_dir[0], model.light_diffuse[0] = scene.light_direction, layout.light_intensity * scene.light_scale
        model.vis.headlight.ambient[:] = layout.ambient_intensity * scene.light_scale
        model.vis.headlight.diffuse[:] = self._headlight_diffuse * scene.light_scale

    def _move_arm_to(self, position: np.ndarray) -> None:
        self._target, self._target_rotation = position, _DOWN.copy()
        self._plan.qpos[self._arm] = _HOME
        self._solve_posture(60)
        self._data.qpos[self._arm] = self._plan.qpos[self._arm]
        self._data.qpos[self._fingers] = FINGER_TRAVEL_M

    def _solve_posture(self, iterations: int) -> None:
        # Damped least squares on the commanded posture, so that the arm's own lag never feeds back.
        jacobian = np.zeros((6, self._model.nv))
        for _ in range(iterations):
            mujoco.mj_kinematics(self._model, self._plan)
            mujoco.mj_comPos(self._model, self._plan)
            mujoco.mj_jacSite(self._model, self._plan, jacobian[:3], jacobian[3:], self._tool)
            rotation = self._plan.site_xmat[self._tool].reshape(3, 3)
            error = np.concatenate([self._target - self._plan.site_xpos[self._tool],
                                    _rotation_vector(self._target_rotation @ rotation.T)])
            if np.abs(error).max() < 1e-7:
                return
            arm = jacobian[:, self._arm_dof]
            delta = arm.T @ np.linalg.solve(arm @ arm.T + _DAMPING * np.eye(6) * 0.1, error)
            self._plan.qpos[self._arm] += np.clip(delta, -0.2, 0.2)


def _rotation(vector: np.ndarray) -> np.ndarray:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, _turn_quaternion(vector))
    return matrix.reshape(3, 3)


def _turn_quaternion(vector: np.ndarray) -> np.ndarray:
    # wxyz, as MuJoCo has it.
    quaternion, angle = np.zeros(4), float(np.linalg.norm(vector))
    mujoco.mju_axisAngle2Quat(quaternion, vector / angle if angle > 0 else np.array([0.0, 0.0, 1.0]), angle)
    return quaternion


def _yaw_of(matrix: np.ndarray) -> float:
    # A block may lie on any face: the axis nearest to upright is up, and one of the others tells the yaw.
    up = int(np.abs(matrix[2]).argmax())
    level = matrix[:, (up + 1) % 3]
    return float(np.arctan2(level[1], level[0]))


def _rotation_vector(matrix: np.ndarray) -> np.ndarray:
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, matrix.flatten())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def _quaternion(matrix: np.ndarray) -> np.ndarray:
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix).flatten())
    return np.array([*quaternion[1:], quaternion[0]])
