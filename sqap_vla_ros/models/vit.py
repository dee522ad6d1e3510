"""A plain vision transformer: patches in, one feature per patch out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a vision transformer.

    :param image_size: side of the square input, px
    :param patch_size: side of the field one token sees, px
    :param patch_stride: distance between neighbouring fields, px; smaller than ``patch_size`` makes them overlap
    """

    image_size: int
    patch_size: int
    patch_stride: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: int = 4

    @property
    def padding(self) -> int:
        """Border added on every side so that fields are centred on their cells."""
        return (self.patch_size - self.patch_stride) // 2

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
    """Patch embedding, learned positions, blocks and a final norm."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_stride, config.padding)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size**2, config.hidden_size))
        self.blocks = nn.ModuleList(VitBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        nn.init.normal_(self.pos_embed, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels to (B, N, C), row by row from the top left."""
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
