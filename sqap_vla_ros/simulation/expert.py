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

"""A scripted expert without memory: any state and any task give the step to take now.

Having no memory, it can label any frame for any task, which is what makes relabelling and DAgger free.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from sqap_vla_ros.simulation.goals import REACH_HEIGHT_M, State, is_stacked
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.mjcf import FINGER_TRAVEL_M
from sqap_vla_ros.simulation.tasks import Task

Goal = tuple[np.ndarray, float, float]  # where to, m; yaw, rad; gripper 0 (closed) or 1 (open)
MAX_STEP_M = 0.04
MAX_TURN_RAD = 0.1
_TURN_GAIN = 0.25  # smooth where it could be a jump: whoever learns it need not know the sign of a small angle
_OPEN_M = 2 * FINGER_TRAVEL_M
_CARRY_Z = 0.14
_TRAY_RELEASE_M = 0.020
_STACK_RELEASE_M = 0.004
_FUNNEL_SLOPE = 1.5
_TRAVEL_BELOW_M = 0.07
_RELEASE_ASIDE_M = 0.010
_LIFTED_M = 0.03
_TO_TRAY = ("place", "pick-place", "place-reach")
_WIDEST_YAW_RAD = math.radians(60)


def act(state: State, task: Task, layout: Layout) -> np.ndarray:
    """The step to take now: (7,) translation m, rotation rad, gripper 0 (closed) or 1 (open)."""
    name = find_target(state, task, layout)
    goal, yaw, gripper = _goal(state, task, name, layout)
    step = goal - state.tcp
    length = float(np.linalg.norm(step))
    if length > MAX_STEP_M:
        step = step * (MAX_STEP_M / length)
    turn = np.clip(_TURN_GAIN * (yaw - state.yaw), -MAX_TURN_RAD, MAX_TURN_RAD)
    return np.array([*step, 0.0, 0.0, turn, gripper])


def plan(state: State, task: Task, layout: Layout, steps: int) -> np.ndarray:
    """The next (steps, 7) actions, by rolling the expert through a kinematic guess of the world."""
    actions = np.zeros((steps, 7))
    for index in range(steps):
        actions[index] = act(state, task, layout)
        state = _foresee(state, actions[index], layout)
    return actions


def find_target(state: State, task: Task, layout: Layout) -> str:
    """Name of the block that ``task`` is about, as far as this moment tells.

    Of two blocks of one color it is the one that is carried or was delivered, else the one on the side named: a wrong
    one is let go as long as it has not been lifted.
    """
    meant = [name for name in state.blocks if name.split("_")[0] == task.color]
    for name in meant:
        if len(meant) > 1 and (is_lifted(state, name, layout) or _is_delivered(state, name, task, layout)):
            return name
    meant.sort(key=lambda name: float(np.dot(state.blocks[name][:2], layout.rightward)))
    return meant[-1 if task.side == "right" else 0]


def is_lifted(state: State, name: str, layout: Layout) -> bool:
    """Whether a block is carried, so that it no longer tells which side it came from."""
    return _holding(state, name, layout) and bool(state.blocks[name][2] > layout.block_size_m / 2 + _LIFTED_M)


def _is_delivered(state: State, name: str, task: Task, layout: Layout) -> bool:
    if task.kind == "stack":
        return is_stacked(state.blocks[name], state.blocks[task.other], layout)
    return task.kind in _TO_TRAY and _in_tray(state.blocks[name], state, layout)


def grasp_yaw(state: State, name: str) -> float:
    """Yaw of the gripper that puts its fingers on two faces of a block, the nearest to the gripper's own."""
    quarter = math.pi / 2
    yaw = state.yaws[name] + quarter * round((state.yaw - state.yaws[name]) / quarter)
    if abs(yaw) > _WIDEST_YAW_RAD:
        yaw -= math.copysign(quarter, yaw)
    return yaw


def _goal(state: State, task: Task, name: str, layout: Layout) -> Goal:
    block = state.blocks[name]
    if task.kind == "reach":
        return _hover(state, name)
    if task.kind in _TO_TRAY and _in_tray(block, state, layout):
        if task.kind == "place-reach" and not _leaving(state, block, layout):
            return _hover(state, task.other)
        return _leave(state, block, layout)
    if task.kind == "stack" and is_stacked(block, state.blocks[task.other], layout) \
            and not _holding_aloft(state, block, layout):
        return _leave(state, block, layout)
    if _holding(state, name, layout):
        if task.kind == "pick":
            return np.array([state.tcp[0], state.tcp[1], _CARRY_Z]), state.yaw, 0.0
        if task.kind == "stack":
            lower = state.blocks[task.other]
            return _deliver(state, block, lower[:2], lower[2] + layout.block_size_m + _STACK_RELEASE_M, 0.010)
        return _deliver(state, block, state.tray[:2], layout.block_size_m / 2 + _TRAY_RELEASE_M, 0.015)
    return _approach(state, name, layout)


def _hover(state: State, name: str) -> Goal:
    return state.blocks[name] + [0.0, 0.0, REACH_HEIGHT_M], grasp_yaw(state, name), 1.0


def _approach(state: State, name: str, layout: Layout) -> Goal:
    # A funnel: the further off to the side or turned away, the higher; close enough means down; down means close.
    block, yaw = state.blocks[name], grasp_yaw(state, name)
    aside = float(np.linalg.norm(state.tcp[:2] - block[:2]))
    turned = abs(yaw - state.yaw)
    height = max(np.clip((aside - 0.006) * 3.0, 0.0, 0.075), np.clip((turned - 0.15) * 0.4, 0.0, 0.06))
    there = aside < 0.010 and abs(state.tcp[2] - block[2]) < 0.010
    return np.array([block[0], block[1], block[2] + height]), yaw, 0.0 if there else 1.0


def _deliver(state: State, block: np.ndarray, spot: np.ndarray, release_z: float, slack_m: float) -> Goal:
    # The same funnel, wider. Below it the block is lifted before it travels, so that blocks in between stay where they
    # are. Nowhere does the goal jump: who is unsure of the way learns the mean of what lies around, which must lead on.
    aside = float(np.linalg.norm(block[:2] - spot))
    height = min(release_z - 0.005 + max(aside - slack_m, 0.0) * _FUNNEL_SLOPE, _CARRY_Z)
    share = np.clip(1.0 - (height - state.tcp[2]) / _TRAVEL_BELOW_M, 0.0, 1.0)
    above = aside < slack_m + _RELEASE_ASIDE_M and state.tcp[2] < release_z + 0.010
    goal = np.array([*(state.tcp[:2] + share * (spot - block[:2])), height])
    return goal, state.yaw, 1.0 if above else 0.0


def _leave(state: State, block: np.ndarray, layout: Layout) -> Goal:
    if state.opening < layout.block_size_m + 0.02 and np.linalg.norm(state.tcp - block) < 0.03:
        return state.tcp, state.yaw, 1.0
    return np.array([state.tcp[0], state.tcp[1], max(_CARRY_Z, block[2] + 0.06)]), state.yaw, 1.0


def _leaving(state: State, block: np.ndarray, layout: Layout) -> bool:
    return bool(np.linalg.norm(state.tcp[:2] - block[:2]) < 0.03 and state.tcp[2] < block[2] + 0.05)


def _in_tray(block: np.ndarray, state: State, layout: Layout) -> bool:
    return bool(np.abs(block[:2] - state.tray[:2]).max() < layout.tray_half_size_m - 0.015
                and block[2] < layout.block_size_m / 2 + 0.012)


def _holding_aloft(state: State, block: np.ndarray, layout: Layout) -> bool:
    return bool(np.linalg.norm(state.tcp - block) < 0.025 and state.opening < layout.block_size_m + 0.010
                and state.tcp[2] > 1.5 * layout.block_size_m + 0.010)


def _holding(state: State, name: str, layout: Layout) -> bool:
    block = state.blocks[name]
    return bool(np.linalg.norm(state.tcp[:2] - block[:2]) < 0.02 and abs(state.tcp[2] - block[2]) < 0.02
                and state.opening < layout.block_size_m + 0.010)


def _foresee(state: State, action: np.ndarray, layout: Layout) -> State:
    held = next((name for name in state.blocks if _holding(state, name, layout)), None)
    between = next((name for name, block in state.blocks.items() if np.linalg.norm(state.tcp - block) < 0.02), None)
    closed = layout.block_size_m if between else 0.0
    wanted = _OPEN_M if action[6] > 0.5 else closed
    opening = state.opening + np.clip(wanted - state.opening, -0.06, 0.06)
    blocks, yaws = dict(state.blocks), dict(state.yaws)
    if held is not None and action[6] < 0.5:
        blocks[held] = blocks[held] + action[:3]
        yaws[held] = yaws[held] + action[5]
    return dataclasses.replace(state, tcp=state.tcp + action[:3], yaw=state.yaw + action[5], opening=opening,
                               blocks=blocks, yaws=yaws)
