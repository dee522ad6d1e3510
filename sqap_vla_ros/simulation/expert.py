"""A scripted expert without memory: any state and any task give the step to take now.

Having no memory, it can label any frame for any task, which is what makes relabelling and DAgger free.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.mjcf import FINGER_TRAVEL_M
from sqap_vla_ros.simulation.tabletop import REACH_HEIGHT_M, State
from sqap_vla_ros.simulation.tasks import Task

MAX_STEP_M = 0.04
MAX_TURN_RAD = 0.1
_OPEN_M = 2 * FINGER_TRAVEL_M
_CARRY_Z = 0.14
_RELEASE_Z = 0.045


def act(state: State, task: Task, layout: Layout) -> np.ndarray:
    """The step to take now: (7,) translation m, rotation rad, gripper 0 (closed) or 1 (open)."""
    goal, gripper = _goal(state, task, layout)
    step = goal - state.tcp
    length = float(np.linalg.norm(step))
    if length > MAX_STEP_M:
        step = step * (MAX_STEP_M / length)
    turn = np.clip(-state.yaw, -MAX_TURN_RAD, MAX_TURN_RAD)
    return np.array([*step, 0.0, 0.0, turn, gripper])


def plan(state: State, task: Task, layout: Layout, steps: int) -> np.ndarray:
    """The next (steps, 7) actions, by rolling the expert through a kinematic guess of the world."""
    actions = np.zeros((steps, 7))
    for index in range(steps):
        actions[index] = act(state, task, layout)
        state = _foresee(state, actions[index], layout)
    return actions


def _goal(state: State, task: Task, layout: Layout) -> tuple[np.ndarray, float]:
    block = state.blocks[task.color]
    if task.kind == "reach":
        return block + [0.0, 0.0, REACH_HEIGHT_M], 1.0
    if task.kind == "place" and _in_tray(block, state, layout):
        return _leave(state, block)
    if _holding(state, block, layout):
        return _carry(state, task, block), 0.0 if not _over_release(state, task, block) else 1.0
    return _approach(state, block, layout)


def _approach(state: State, block: np.ndarray, layout: Layout) -> tuple[np.ndarray, float]:
    # A funnel: the further off to the side, the higher; close enough means down; down means close the fingers.
    aside = float(np.linalg.norm(state.tcp[:2] - block[:2]))
    height = np.clip((aside - 0.006) * 3.0, 0.0, 0.075)
    goal = np.array([block[0], block[1], block[2] + height])
    if state.opening < layout.block_size_m + 0.02 and aside > 0.012:
        goal[2] = max(goal[2], block[2] + 0.06)
    there = aside < 0.010 and abs(state.tcp[2] - block[2]) < 0.010
    return goal, 0.0 if there else 1.0


def _carry(state: State, task: Task, block: np.ndarray) -> np.ndarray:
    if task.kind == "pick":
        return np.array([state.tcp[0], state.tcp[1], _CARRY_Z])
    aside = float(np.linalg.norm(block[:2] - state.tray[:2]))
    if aside < 0.02:
        return np.array([state.tray[0], state.tray[1], _RELEASE_Z - 0.005])
    # Lift before travelling, so that blocks in between stay where they are.
    reach = np.clip((state.tcp[2] - 0.05) / (0.10 - 0.05), 0.0, 1.0)
    sideways = (state.tray[:2] - state.tcp[:2]) * reach
    return np.array([*(state.tcp[:2] + sideways), _CARRY_Z])


def _over_release(state: State, task: Task, block: np.ndarray) -> bool:
    return (task.kind == "place" and float(np.linalg.norm(block[:2] - state.tray[:2])) < 0.025
            and state.tcp[2] < _RELEASE_Z + 0.01)


def _leave(state: State, block: np.ndarray) -> tuple[np.ndarray, float]:
    if state.opening < 0.07 and np.linalg.norm(state.tcp - block) < 0.03:
        return state.tcp, 1.0
    return np.array([state.tcp[0], state.tcp[1], _CARRY_Z]), 1.0


def _in_tray(block: np.ndarray, state: State, layout: Layout) -> bool:
    return bool(np.abs(block[:2] - state.tray[:2]).max() < layout.tray_half_size_m - 0.015
                and block[2] < layout.block_size_m / 2 + 0.012)


def _holding(state: State, block: np.ndarray, layout: Layout) -> bool:
    return bool(np.linalg.norm(state.tcp[:2] - block[:2]) < 0.02 and abs(state.tcp[2] - block[2]) < 0.02
                and state.opening < layout.block_size_m + 0.010)


def _foresee(state: State, action: np.ndarray, layout: Layout) -> State:
    held = next((color for color, block in state.blocks.items() if _holding(state, block, layout)), None)
    between = next((color for color, block in state.blocks.items()
                    if np.linalg.norm(state.tcp - block) < 0.02), None)
    closed = layout.block_size_m if between else 0.0
    wanted = _OPEN_M if action[6] > 0.5 else closed
    opening = state.opening + np.clip(wanted - state.opening, -0.06, 0.06)
    blocks = dict(state.blocks)
    if held is not None and action[6] < 0.5:
        blocks[held] = blocks[held] + action[:3]
    return dataclasses.replace(state, tcp=state.tcp + action[:3], yaw=state.yaw + action[5], opening=opening,
                               blocks=blocks)
