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

"""The robot's own state as one token, and the numbers-to-token projection that it shares with noisy actions."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.models.dataset_statistics import OFT_SPAN_OFFSET, Bounds


def normalize_proprio(state: np.ndarray, bounds: Bounds) -> np.ndarray:
    """A state as OpenVLA-OFT reads it: 2 (x - low) / (high - low + 1e-8) - 1, then cut to [-1, 1] in all dimensions.

    :param state: (D,) metres, radians
    :param bounds: of the training data's states
    :return: (D,) float64
    :raises InputError: when it has another size, or values that are not finite
    """
    state, wanted = np.asarray(state, dtype=np.float64), len(bounds.low)
    if state.shape != (wanted,):
        raise InputError(f"a robot state must be {wanted} numbers in a row, got shape {state.shape}")
    if not np.isfinite(state).all():
        raise InputError(f"a robot state must be finite, got {state.tolist()}")
    low, high = np.array(bounds.low), np.array(bounds.high)
    scaled = 2.0 * (state - low) / (high - low + OFT_SPAN_OFFSET) - 1.0
    return np.clip(np.where(np.array(bounds.mask), scaled, state), -1.0, 1.0)


class TokenProjector(nn.Module):
    """A few numbers to one token; OpenVLA-OFT has one for the robot's state and one for each number of noisy actions.

    :param inputs: numbers per token: D of a state, 1 of noisy actions
    :param width: C, the decoder's
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, M, inputs) to (B, M, C)."""
        return self.fc2(F.gelu(self.fc1(numbers)))
