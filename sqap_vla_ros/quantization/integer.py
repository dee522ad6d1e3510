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

"""Numbers as few bits: value = code x scale, codes symmetric around 0, no zero point.

Four bits are the codes -7..7 and eight bits -127..127: the mirror image of a code is a code, and a rotation leaves
nothing for a zero point to correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqap_vla_ros import fused_rows

# Some tokens of each sequence of a batch: (B, R) int64 indices, ascending, or how many of the last.
Rows = Tensor | int
# What recipes call numbers that are not rounded.
FLOAT_BITS = 16
# The search for the scales of weights: its lowest share of a row's largest magnitude, and how many shares are tried.
SMALLEST_CLIP_RATIO, CLIP_STEPS = 0.5, 26
_SEARCHED_WEIGHTS = 2**18
# Scales stop here, so that their inverse is finite and a row of zeros stays one.
SMALLEST_SCALE = 1e-30


@dataclass(frozen=True, slots=True)
class QuantizedTokens:
    """Activations as integers, one scale per token.

    :param codes: (..., K) int8
    :param scale: (..., 1) float32, or float64 for float64 activations
    :param dtype: of the activations they stand for
    """

    codes: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Shape of the activations they stand for."""
        return self.codes.shape

    def take(self, rows: Rows) -> QuantizedTokens:
        """Some of (B, S, K) tokens; see :func:`take_rows`."""
        return QuantizedTokens(take_rows(self.codes, rows), take_rows(self.scale, rows), self.dtype)

    def dequantize(self) -> Tensor:
        """Back to activations."""
        return (self.codes * self.scale).to(self.dtype)


def take_rows(x: Tensor, rows: Rows) -> Tensor:
    """Tokens of a batch, each sequence its own: whole rows are copied, where ``gather`` copies single numbers.

    :param x: (B, S, C)
    :param rows: which R of them
    :return: (B, R, C)
    """
    if isinstance(rows, int):
        return x[:, -rows:]
    batch, length, width = x.shape
    if batch > 1:
        rows = rows + torch.arange(0, batch * length, length, device=x.device)[:, None]
    return x.reshape(-1, width).index_select(0, rows.flatten()).view(batch, -1, width)


def largest_code(bits: int) -> int:
    """7 for 4 bits, 127 for 8."""
    return 2 ** (bits - 1) - 1


def quantize_tokens(x: Tensor, bits: int, clip_ratio: float = 1.0) -> QuantizedTokens:
    """Round every token to nearest with a scale taken from the token itself.

    A token that holds a NaN or infinity has a non-finite scale, so that what is computed from it is not finite.

    :param x: (..., K) float
    :param bits: 4 or 8
    :param clip_ratio: share of the token's largest magnitude that the largest code stands for, 0 to 1
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    largest = largest_code(bits)
    if fused_rows.is_fused_for(wide):
        return QuantizedTokens(*fused_rows.round_tokens(wide, largest, clip_ratio, SMALLEST_SCALE), x.dtype)
    scale = wide.abs().amax(-1, keepdim=True) * (clip_ratio / largest)
    codes = (wide * scale.clamp_min_(SMALLEST_SCALE).reciprocal()).round_()
    return QuantizedTokens(codes.clamp_(-largest, largest).to(torch.int8), scale, x.dtype)


def quantize_normalized(x: Tensor, bits: int, clip_ratio: float, eps: float) -> QuantizedTokens:
    """Round every token over its root mean square, as RMSNorm without gain would give it.

    Rounding with a token's own scale does not see the division, so only the scale is divided.

    :param x: (..., K) float
    :param bits: 4 or 8
    :param clip_ratio: see :func:`quantize_tokens`
    :param eps: of the norm
    """
    if fused_rows.is_fused_for(x):
        largest = largest_code(bits)
        return QuantizedTokens(*fused_rows.round_normalized(x, eps, largest, clip_ratio, SMALLEST_SCALE), x.dtype)
    tokens = quantize_tokens(x, bits, clip_ratio)
    mean_square = x.to(tokens.scale.dtype).square().mean(-1, keepdim=True)
    return QuantizedTokens(tokens.codes, tokens.scale * torch.rsqrt(mean_square + eps), tokens.dtype)


def quantize_weight(weight: Tensor, bits: int, *, group_size: int | None = None, smallest_clip_ratio: float = 1.0,
                    steps: int = 1) -> tuple[Tensor, Tensor]:
    """Round a weight to nearest, with scales searched for the least squared error.

    :param weight: (N, K) float
    :param bits: 4 or 8
    :param group_size: columns that share a scale, a divisor of K; None is one scale per output channel
    :param smallest_clip_ratio: see :func:`search_scale`
    :param steps: see :func:`search_scale`
    :return: codes (N, K) int8 and scales (N, G) float32, G = K / group_size
    """
    scale = search_scale(weight, bits, group_size=group_size, smallest_clip_ratio=smallest_clip_ratio, steps=steps)
    largest = largest_code(bits)
    rows = weight.detach().float().reshape(scale.numel(), -1)
    codes = (rows / scale.reshape(-1, 1)).round_().clamp_(-largest, largest)
    return codes.to(torch.int8).view(weight.shape), scale


def search_scale(weight: Tensor, bits: int, *, group_size: int | None = None, smallest_clip_ratio: float = 1.0,
                 steps: int = 1) -> Tensor:
    """Find the scale of each output channel, or of each group of its columns, with the least error to nearest.

    :param weight: (N, K) float
    :param bits: 4 or 8
    :param group_size: columns that share a scale, a divisor of K; None is one scale per output channel
    :param smallest_clip_ratio: lower end of the searched shares of the largest magnitude; the upper is 1
    :param steps: how many shares are tried
    :return: (N, G) float32, G = K / group_size
    """
    size = group_size or weight.shape[1]
    # Every group is a row of its own from here on; so few at a time that all passes find them near the processor.
    rows = weight.detach().float().reshape(-1, size).split(max(1, _SEARCHED_WEIGHTS // size))
    clip_ratios = torch.linspace(1.0, smallest_clip_ratio, steps).tolist()
    return torch.cat([_search_rows(some, bits, clip_ratios) for some in rows]).view(weight.shape[0], -1)


def _search_rows(wide: Tensor, bits: int, clip_ratios: list[float]) -> Tensor:
    largest = largest_code(bits)
    peak = wide.abs().amax(1, keepdim=True).clamp_min(SMALLEST_SCALE)
    best_error = torch.full_like(peak, float("inf"))
    best_scale = peak / largest
    for clip_ratio in clip_ratios:
        scale = peak * (clip_ratio / largest)
        rounded = (wide / scale).round_().clamp_(-largest, largest).mul_(scale)
        error = rounded.sub_(wide).square_().sum(1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes into 32-bit words as compressed-tensors' pack-quantized format does.

    Column j of a row stands in word j // (32 / bits), bits (j mod (32 / bits)) x bits and up, as code + 2^(bits - 1).
    So with 4 bits each byte holds two columns, the even one in its low nibble. The last word is filled with zeros.

    :param codes: (N, K) int8
    :param bits: 4 or 8
    :return: (N, ceil(K bits / 32)) int32
    """
    per_word = 32 // bits
    unsigned = codes.to(torch.int64) + 2 ** (bits - 1)
    padded = torch.nn.functional.pad(unsigned, (0, -codes.shape[1] % per_word))
    shifts = torch.arange(0, 32, bits, device=codes.device)
    words = (padded.view(codes.shape[0], -1, per_word) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Inverse of :func:`pack`.

    :param packed: (N, W) int32
    :param bits: 4 or 8
    :param columns: K, at most W x 32 / bits
    :return: (N, K) int8
    """
    shifts = torch.arange(0, 32, bits, device=packed.device, dtype=torch.int32)
    unsigned = (packed[..., None] >> shifts) & (2**bits - 1)
    return (unsigned - 2 ** (bits - 1)).to(torch.int8).flatten(1)[:, :columns].contiguous()
