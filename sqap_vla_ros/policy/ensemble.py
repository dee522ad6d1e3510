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

"""Several chunks that speak of the same moment, blended into one: the adaptive action ensemble of CogACT.

A chunk's steps agree with those of the chunks before it the more, the more alike they are, so that a change of mind is
followed rather than averaged away. Li et al. 2024, "CogACT", section 3.4.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import numpy as np

from sqap_vla_ros.data import ACTION_NAMES, ActionChunk
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.knobs import ControlKnobs
from sqap_vla_ros.policy.safety import check_finite

_GRIPPER = ACTION_NAMES.index("gripper")


def blend_predictions(predictions: np.ndarray, alpha: float) -> np.ndarray:
    """Weighted mean of what several chunks say of the same moments.

    The weight is exp(alpha cos), with the angle between a prediction and the newest one.

    :param predictions: (K, T, D) un-normalised actions, the newest last; NaN in all of a prediction that is not there,
        never of the newest
    :param alpha: how much likeness counts; 0 is the plain mean
    :return: (T, D)
    """
    there = ~np.isnan(predictions).any(axis=-1)
    predictions = np.where(there[..., None], predictions, 0.0)
    newest = predictions[-1]
    lengths = np.linalg.norm(predictions, axis=-1)
    likeness = (predictions * newest).sum(axis=-1) / (lengths * lengths[-1] + 1e-7)
    weights = np.where(there, np.exp(alpha * likeness), 0.0)
    return (weights[..., None] * predictions).sum(axis=0) / weights.sum(axis=0)[:, None]


class AdaptiveEnsemble:
    """Blends each new chunk with those before it; the first step of the blend is CogACT's ensembled action.

    Steps of different chunks are matched by their stamps, so inference may take any number of steps. Where the robot
    stands still at times, stamps are of a clock that runs only while it moves.

    :param horizon: how many chunks count, the new one included; CogACT takes 7 for WidowX on Bridge, 2 for the Google
        robot and where it is deployed
    :param alpha: how much likeness counts
    :param gripper_is_binary: whether the blended gripper is 1 above 0.5 and 0 otherwise, or stays between
    :raises ConfigError: when a knob is out of its range
    """

    def __init__(self, horizon: int = 2, alpha: float = 0.1, *, gripper_is_binary: bool = True) -> None:
        if horizon < 1:
            raise ConfigError(f"the ensemble's horizon is {horizon} chunks; it must be at least 1, and 1 blends "
                              "nothing")
        if not math.isfinite(alpha):
            raise ConfigError(f"the ensemble's alpha is {alpha}; it must be finite, CogACT's is 0.1")
        self.alpha = alpha
        self.gripper_is_binary = gripper_is_binary
        self._chunks: deque[ActionChunk] = deque(maxlen=horizon)
        self._task: str | None = None

    def reset(self) -> None:
        """Forget every chunk."""
        self._chunks.clear()
        self._task = None

    def blend(self, chunk: ActionChunk, task: str) -> ActionChunk:
        """Take up a new chunk.

        Those before it are forgotten when they were for another task, or when they bear later stamps, which means
        that the clock was set back.

        :param chunk: as the policy gives it
        :param task: the instruction it follows
        :return: as ``chunk``, each step blended with what the chunks before say of its time
        :raises InferenceError: when a value is not finite; the chunk is not taken up then
        """
        check_finite("a chunk of the ensemble", chunk.steps)
        if task != self._task or (self._chunks and chunk.stamp_ns < self._chunks[-1].stamp_ns):
            self.reset()
        self._task = task
        self._chunks.append(chunk)
        steps = blend_predictions(np.stack([_steps_at(older, chunk) for older in self._chunks]), self.alpha)
        if self.gripper_is_binary:
            steps[:, _GRIPPER] = steps[:, _GRIPPER] > 0.5
        return replace(chunk, steps=steps)


def build_ensemble(knobs: ControlKnobs) -> AdaptiveEnsemble | None:
    """The ensemble of the knobs; None when they blend nothing."""
    return None if knobs.ensemble_horizon == 1 else AdaptiveEnsemble(knobs.ensemble_horizon, knobs.ensemble_alpha)


def _steps_at(older: ActionChunk, newer: ActionChunk) -> np.ndarray:
    # What the older chunk says of the newer one's steps: of each, the step that overlaps it most; NaN beyond its end.
    period_ns = older.step_period_ns
    first = (newer.stamp_ns - older.stamp_ns + period_ns // 2) // period_ns
    steps = np.full(newer.steps.shape, math.nan)
    known = older.steps[first:first + len(steps)]
    steps[:len(known)] = known
    return steps
