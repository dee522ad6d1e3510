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

"""A plain vision transformer: patches in, one feature per patch out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# How far beyond its own pixel a feature of the stem sees: 2 px by the first convolution, 2 more by the second.
_STEM_REACH_PX = 4


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a vision transformer.

    :param image_size: side of the square input, px
    :param patch_size: side of the field one token sees, px
    :param patch_stride: distance between neighbouring fields, px; smaller than ``patch_size`` makes them overlap
    :param stem_channels: channels of two convolutions before the patches, which halve the picture; 0 leaves them out
    """

    image_size: int
    patch_size: int
    patch_stride: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: int = 4
    stem_channels: int = 0

    def __post_init__(self) -> None:
        if self.stem_channels and (self.image_size % 2 or self.patch_size % 2 or self.patch_stride % 2):
            raise ValueError(f"a stem halves the picture, so image_size {self.image_size}, patch_size "
                             f"{self.patch_size} and patch_stride {self.patch_stride} must be even")

    @property
    def shrink(self) -> int:
        """Pixels of the picture to one of what is cut into patches, along one side."""
        return 2 if self.stem_channels else 1

    @property
    def border(self) -> tuple[int, int]:
        """Zeros before and after what is cut into patches, so that fields are centred on their cells."""
        spare = (self.patch_size - self.patch_stride) // self.shrink
        return spare // 2, spare - spare // 2

    @property
    def field(self) -> tuple[int, int]:
        """First pixel that the first token sees (negative: in the border), and how many in a row each sees."""
        reach = _STEM_REACH_PX if self.stem_channels else 0
        return -self.shrink * self.border[0] - reach, self.patch_size - self.shrink + 1 + 2 * reach

    @property
    def grid_size(self) -> int:
        """Tokens along one side."""
        return self.image_size // self.patch_stride


class VitBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, config.mlp_ratio * width)
        self.fc2 = nn.Linear(config.mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(out.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Stem, patch embedding, learned positions, blocks and a final norm.

    A flat projection of a 28 px field tells where edges are, but hardly how they are turned; two small convolutions
    before it do (Xiao et al. 2021, "Early Convolutions Help Transformers See Better").
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _stem(config.stem_channels) if config.stem_channels else nn.Identity()
        self.patch_embed = nn.Conv2d(config.stem_channels or 3, config.hidden_size, config.patch_size // config.shrink,
                                     config.patch_stride // config.shrink)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size**2, config.hidden_size))
        self.blocks = nn.ModuleList(VitBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels to (B, N, C), row by row from the top left."""
        x = self.patch_embed(F.pad(self.stem(pixels), self.config.border * 2)).flatten(2).transpose(1, 2)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def _stem(channels: int) -> nn.Sequential:
    # (B, 3, H, W) to (B, channels, H / 2, W / 2); feature i lies on pixel 2 i.
    return nn.Sequential(nn.Conv2d(3, channels, 5, 2, 2), nn.GELU(), nn.Conv2d(channels, channels, 3, 1, 1), nn.GELU())
