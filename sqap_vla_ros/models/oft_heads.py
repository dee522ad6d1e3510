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

"""OpenVLA-OFT's heads: hidden states at the places of a chunk to actions, or to the noise in actions.

Both have one form. An action of D dimensions is read from D hidden states side by side.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return x + F.relu(self.linear(self.norm(x)))


class ChunkHead(nn.Module):
    """Actions by L1 regression, or the noise in them for diffusion.

    :param action_dims: D
    :param hidden_width: C, the decoder's
    :param width: the head's own; the published ones have C
    :param blocks: residual blocks; the published ones have 2
    """

    def __init__(self, action_dims: int, hidden_width: int, width: int, blocks: int = 2) -> None:
        super().__init__()
        self.action_dims, self.hidden_width = action_dims, hidden_width
        self.norm_in = nn.LayerNorm(action_dims * hidden_width)
        self.fc_in = nn.Linear(action_dims * hidden_width, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width)
        self.fc_out = nn.Linear(width, action_dims)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T D, C) hidden states, the D of one step side by side, to (B, T, D)."""
        batch, places, width = hidden.shape
        x = hidden.reshape(batch, places // self.action_dims, self.action_dims * width)
        x = F.relu(self.fc_in(self.norm_in(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc_out(self.norm_out(x))
