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

"""A policy without a model: it moves at once, however weak the computer."""

from __future__ import annotations

import numpy as np

from sqap_vla_ros.config import Config
from sqap_vla_ros.data import ActionChunk, Inference, Observation, StageTimes, TokenRule, TokenUse
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.image_map import ImageMap, resize_map
from sqap_vla_ros.knobs import PruneKnobs

# What `model.checkpoint` is called to take it.
STAND_IN = "stand-in"
STEPS = 6
SPEED_M_S = 0.05
# Each answer is faster than the one before by this, so that a command tells which answer it is.
MARK_M_S, MARKS = 1e-6, 10_000
_SIDE_PX, _GRID = 32, 4


def read_mark(speed_m_s: float) -> int:
    """Which answer, from 0, a commanded speed belongs to."""
    return round((speed_m_s - SPEED_M_S) / MARK_M_S)


class StandInPolicy:
    """Moves forward slowly.

    :param config: as the node has it
    """

    image_size = _SIDE_PX

    def __init__(self, config: Config) -> None:
        self._limit = config.safety.max_instruction_chars
        self._step_ns = int(config.control.step_period_s * 1e9)
        self._count = 0

    def warm_up(self) -> None:
        """Nothing is cold."""

    def check_instruction(self, text: str) -> None:
        """Any sentence will do that is not too long.

        :raises InputError: when it is
        """
        if len(text) > self._limit:
            raise InputError(f"the instruction has {len(text)} characters; allowed are {self._limit}")

    def check_itself(self) -> str:
        """There is nothing to compare."""
        return "self-check: a stand-in has nothing to compare"

    def adapt(self, prune: PruneKnobs) -> None:
        """It prunes nothing."""

    def describe(self) -> dict[str, str | int | float]:
        """What runs."""
        return {"family": STAND_IN, "recipe": "none"}

    def image_map(self, width: int, height: int) -> ImageMap:
        """Camera pixels to model pixels."""
        return resize_map(width, height, _SIDE_PX)

    def infer(self, observation: Observation) -> Inference:
        """Six steps forward."""
        speed = SPEED_M_S + MARK_M_S * self._count
        self._count = (self._count + 1) % MARKS
        steps = np.zeros((STEPS, 7))
        steps[:, 0], steps[:, 6] = speed * self._step_ns * 1e-9, 1.0
        tokens = TokenUse((_GRID, _GRID), np.arange(_GRID * _GRID),
                          np.full(_GRID * _GRID, TokenRule.UNPRUNED, dtype=np.int8))
        return Inference(ActionChunk(observation.stamp_ns, self._step_ns, steps), StageTimes({"head": 0.0}), (tokens,))
