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

"""What crosses a border between the parts: plain frozen values, NumPy only.

Time is integer nanoseconds on the node's clock. Lengths are metres, angles radians, pixels are camera
pixels with the centre of the first pixel at (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


class TokenRule(IntEnum):
    """Why a visual token stayed: one of the three pruning rules, because nothing was pruned at all, or by chance."""

    ATTENTION = 0
    ROBOT = 1
    COVERAGE = 2
    UNPRUNED = 3
    RANDOM = 4


@dataclass(frozen=True)
class RobotFootprint:
    """Where the protected frames of the robot are in one camera's picture.

    :param frames: names of the TF frames, in order
    :param centers_px: (P, 2) float64, pixel (u, v) of each disc: of a frame's sphere, or of a part of what lies between
        two frames, so there may be more discs than frames; may lie off the image; NaN where nothing shows, and
        between discs that are not joined by a segment
    :param radii_px: (P,) float64, pixel radius of each disc; 0 where ``centers_px`` is NaN
    """

    frames: tuple[str, ...]
    centers_px: np.ndarray
    radii_px: np.ndarray


@dataclass(frozen=True)
class Observation:
    """All that one inference sees.

    :param stamp_ns: the image's stamp
    :param images: one (H, W, 3) uint8 RGB picture per camera
    :param instruction: what to do, in words
    :param footprints: one entry per camera: the robot's footprint, or None when TF could not give it
    :param footprint_reason: why a footprint is None; empty when all are there
    :param state: (D,) the robot's own state, m and rad, for a model that reads it
    """

    stamp_ns: int
    images: tuple[np.ndarray, ...]
    instruction: str
    footprints: tuple[RobotFootprint | None, ...]
    footprint_reason: str = ""
    state: np.ndarray | None = None


@dataclass(frozen=True)
class ActionChunk:
    """The next T steps.

    :param stamp_ns: the moment from which steps count. As the policy gives it, the image's stamp; in force, later by
        as long as the robot has stood still since the image
    :param step_period_ns: how long one step lasts
    :param steps: (T, D) float64; columns are ``ACTION_NAMES``: translation in m and rotation in rad for one step,
        in the robot's base frame, then the gripper from 0 (closed) to 1 (open)
    """

    stamp_ns: int
    step_period_ns: int
    steps: np.ndarray


@dataclass(frozen=True)
class TokenUse:
    """What became of the visual tokens of one image.

    :param grid: rows and columns of the token grid
    :param kept: (K,) int64, ascending token indices that stayed
    :param rules: (K,) int8, the ``TokenRule`` that kept each
    """

    grid: tuple[int, int]
    kept: np.ndarray
    rules: np.ndarray

    def count(self, rule: TokenRule) -> int:
        """Number of tokens that ``rule`` kept."""
        return int(np.count_nonzero(self.rules == int(rule)))


@dataclass(frozen=True)
class StageTimes:
    """Wall time of one inference by stage.

    :param milliseconds: stage name to ms, in the order run: preprocess, vision, llm, head;
        a model that goes on decoding behind the prefill, llm, has decode before head
    """

    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def total_ms(self) -> float:
        """Sum over the stages."""
        return float(sum(self.milliseconds.values()))


@dataclass(frozen=True)
class Inference:
    """What one inference gives back.

    :param chunk: the actions
    :param times: wall time by stage
    :param tokens: one entry per camera
    """

    chunk: ActionChunk
    times: StageTimes
    tokens: tuple[TokenUse, ...]


@dataclass(frozen=True)
class Episode:
    """One task in one scene.

    :param seed: the scene
    :param task: reach, pick or place
    :param color: which block
    :param instruction: the task in words
    """

    seed: int
    task: str
    color: str
    instruction: str


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode went.

    :param episode: which
    :param success: whether the task was done in time
    :param steps: control steps until then, or all that were allowed
    :param times: one entry per inference
    :param kept_tokens: visual tokens that stayed, one entry per inference
    """

    episode: Episode
    success: bool
    steps: int
    times: tuple[StageTimes, ...]
    kept_tokens: tuple[int, ...]
