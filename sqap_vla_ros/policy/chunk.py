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

"""Which step of a chunk is due now.

A chunk counts from its stamp: that of its image, when the robot moved on while the policy thought, so that the time of
inference is made up for by starting later in it. Steps are deltas: they are indexed, never interpolated.
"""

from __future__ import annotations

import numpy as np

from sqap_vla_ros.data import ActionChunk


def step_at(chunk: ActionChunk, now_ns: int) -> int | None:
    """Index of the step that is due.

    :param chunk: the actions in force
    :param now_ns: the node's clock, ns
    :return: 0 to T - 1; None before the chunk's stamp and after the last step
    """
    index = (now_ns - chunk.stamp_ns) // chunk.step_period_ns
    return index if 0 <= index < len(chunk.steps) else None


def executed_steps(chunk: ActionChunk, now_ns: int) -> int:
    """Number of steps whose time is over, 0 to T, whether or not a command was sent for them."""
    return min(max((now_ns - chunk.stamp_ns) // chunk.step_period_ns, 0), len(chunk.steps))


def step_velocity(chunk: ActionChunk, index: int) -> np.ndarray:
    """One step's motion as a velocity.

    :param chunk: the actions in force
    :param index: as :func:`step_at` gives it
    :return: (6,) float64, linear in m/s then angular in rad/s, in the robot's base frame
    """
    return chunk.steps[index, :6] * (1e9 / chunk.step_period_ns)
