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

"""The vision towers of Prismatic models: DINOv2 with registers, and SigLIP, side by side over the same patches.

What is read of a tower is what its last block but one puts out, without the final norm, so the last block is not built.
Names of parameters are timm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one tower.

    :param image_size: side of the square input, px
    :param patch_size: side of the patch one token sees, px; what is left over at the right and below is not seen
    :param hidden_size: width
    :param mlp_size: width inside the MLP
    :param num_blocks: blocks that are built, one less than the checkpoint holds
    :param num_attention_heads: of each block
    :param register_tokens: learned tokens beside the patches, behind the class token; None for a tower without either
    :param has_layer_scale: whether what a block adds is first multiplied by a gain per channel
    """

    image_size: int
    patch_size: int
    hidden_size: int
    mlp_size: int
    num_blocks: int
    num_attention_heads: int
    register_tokens: int | None
    has_layer_scale: bool

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches."""
        return 0 if self.register_tokens is None else 1 + self.register_tokens


class TowerAttention(nn.Module):
    """Full self-attention with one fused projection."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))


class TowerMLP(nn.Module):
    """Two linears around the exact (erf) GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A gain per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return x * self.gamma


class TowerBlock(nn.Module):
    """Pre-norm attention and MLP, each added to what came in; the two halves can be called apart."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        width, scaled = config.hidden_size, config.has_layer_scale
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = TowerAttention(width, config.num_attention_heads)
        self.ls1: nn.Module = LayerScale(width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = TowerMLP(width, config.mlp_size)
        self.ls2: nn.Module = LayerScale(width) if scaled else nn.Identity()

    def add_attention(self, x: Tensor) -> Tensor:
        """The first half, (B, S, C) to (B, S, C)."""
        return x + self.ls1(self.attn(self.norm1(x)))

    def add_mlp(self, x: Tensor) -> Tensor:
        """The second half, (B, S, C) to (B, S, C)."""
        return x + self.ls2(self.mlp(self.norm2(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        return self.add_mlp(self.add_attention(x))


class PatchEmbed(nn.Module):
    """Patches that touch, each to one token."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N, C), row by row from the top left."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTower(nn.Module):
    """Patch embedding, learned positions, learned tokens beside the patches where the tower has some, and blocks."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size**2, width))
        if config.register_tokens is not None:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.reg_token = nn.Parameter(torch.zeros(1, config.register_tokens, width))
        self.blocks = nn.ModuleList(TowerBlock(config) for _ in range(config.num_blocks))

    def embed(self, pixels: Tensor) -> Tensor:
        """What the first block reads: (B, 3, H, W) normalised pixels to (B, prefix + N, C)."""
        # Only patches have a position; the learned tokens go in front of them, the class token first.
        x = self.patch_embed(pixels) + self.pos_embed
        if self.config.register_tokens is None:
            return x
        prefix = torch.cat((self.cls_token, self.reg_token), dim=1).expand(len(x), -1, -1)
        return torch.cat((prefix, x), dim=1)

    def take_patches(self, x: Tensor) -> Tensor:
        """(B, prefix + N, C) behind the last block to (B, N, C)."""
        return x[:, self.config.prefix_tokens:]

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels to (B, N, C), row by row from the top left."""
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        return self.take_patches(x)


class FusedVision(nn.Module):
    """Towers that see the same picture, each normalised in its own way; their features lie side by side."""

    def __init__(self, configs: dict[str, TowerConfig]) -> None:
        super().__init__()
        for name, config in configs.items():
            self.add_module(name, VisionTower(config))

    @property
    def towers(self) -> list[VisionTower]:
        """In the order of their channels."""
        return cast(list[VisionTower], list(self.children()))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3 * towers, H, W) normalised pixels to (B, N, sum of widths)."""
        shares = pixels.split(3, dim=1)
        return torch.cat([tower(share) for tower, share in zip(self.towers, shares, strict=True)], dim=2)
