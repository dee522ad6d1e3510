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

"""A linear layer whose output channels have 0, 2, 4, 8 or 16 bits each.

Rows of one width are stored together, each at what its width costs; all integer rows are multiplied as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.quantization.integer import (
    CLIP_STEPS,
    FLOAT_BITS,
    SMALLEST_CLIP_RATIO,
    QuantizedTokens,
    pack,
    quantize_tokens,
    quantize_weight,
    unpack,
)
from sqap_vla_ros.quantization.kernels.engine import Engine
from sqap_vla_ros.quantization.row_widths import INTEGER_WIDTHS, WIDTHS, check_row_bits


def quantize_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round rows to codes of the least squared error, a scale each.

    :param weight: (N, K) float
    :param bits: 2, 4 or 8; 2 are the codes -1, 0 and 1, whose best scale needs no search
    :return: codes (N, K) int8 and scales (N, 1) float32
    """
    if bits == 2:
        return _quantize_ternary(weight)
    return quantize_weight(weight, bits, smallest_clip_ratio=SMALLEST_CLIP_RATIO, steps=CLIP_STEPS)


def round_rows(weight: Tensor, bits: int) -> Tensor:
    """What rows of a width stand for: zeros, codes times scales, or bfloat16.

    :param weight: (N, K) float
    :param bits: one of ``WIDTHS``
    :return: (N, K) float32
    """
    if bits == 0:
        return torch.zeros_like(weight, dtype=torch.float32)
    if bits == 16:
        return weight.detach().to(torch.bfloat16).float()
    codes, scale = quantize_rows(weight, bits)
    return codes * scale


def _quantize_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    # With its t largest magnitudes at +-1 a row's best scale is their mean, and the squared error is the row's square
    # less (their sum)^2 / t. The best t is consistent with rounding: a value on the wrong side of half the scale could
    # change sides and lower the error.
    wide = weight.detach().float()
    sums = wide.abs().sort(1, descending=True).values.cumsum(1)
    counts = torch.arange(1, wide.shape[1] + 1, device=wide.device)
    best = (sums.square() / counts).argmax(1, keepdim=True)
    scale = (sums.gather(1, best) / (best + 1)).clamp_min_(torch.finfo(torch.float32).tiny)
    return (wide / scale).round_().clamp_(-1, 1).to(torch.int8), scale


class MixedLinear(nn.Module):
    """Rows of several widths times activations of one width.

    out[m, n] = (sum over k of a[m, k] w[n, k]) x token scale[m] x row scale[n] + bias[n]

    Rows of 2, 4 and 8 bits are integers. Rows of 16 are bfloat16, without a scale, and see the same rounded tokens as
    the others: activations have one width. A row of 0 bits is not stored and its output is its bias. With ``act_bits``
    16 tokens are not rounded; tokens that come rounded stand for their values.

    :param row_bits: (N,) uint8, each one of ``WIDTHS``, in the order of the outputs
    :param packed: by integer width, its rows in the order of the outputs, (rows, W) int32, see
        :func:`~sqap_vla_ros.quantization.integer.pack`; a width without rows is left out
    :param weight_scale: (integer rows, 1) float32, by rising width; None without such rows
    :param wide: (rows of 16 bits, K) bfloat16; None without such rows
    :param bias: (N,) or None
    :param columns: K
    :param act_bits: 4, 8 or 16
    :param act_clip_ratio: see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`
    :param engine: what multiplies integers
    :raises ConfigError: for other ``act_bits``
    :raises CheckpointError: when the rows held are not those that ``row_bits`` tells of; also when a state is loaded
    """

    row_bits: Tensor
    packed_2: Tensor | None
    packed_4: Tensor | None
    packed_8: Tensor | None
    weight_scale: Tensor | None
    wide: Tensor | None
    bias: Tensor | None
    prepared: Tensor | None
    places: Tensor

    def __init__(self, row_bits: Tensor, packed: Mapping[int, Tensor], weight_scale: Tensor | None,
                 wide: Tensor | None, bias: Tensor | None, *, columns: int, act_bits: int, act_clip_ratio: float,
                 engine: Engine) -> None:
        super().__init__()
        if act_bits not in (4, 8, FLOAT_BITS):
            raise ConfigError(f"act_bits is {act_bits}; rows of mixed widths take activations of 4, 8 or 16 bits")
        self.in_features, self.out_features = columns, row_bits.shape[0]
        self.act_bits, self.act_clip_ratio = act_bits, act_clip_ratio
        self.engine = engine
        self.register_buffer("row_bits", row_bits)
        for bits in INTEGER_WIDTHS:
            self.register_buffer(f"packed_{bits}", packed.get(bits))
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("wide", wide)
        self.register_buffer("bias", bias)
        self.register_buffer("prepared", None, persistent=False)
        self.register_buffer("places", None, persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.prepare_())
        self.prepare_()

    @classmethod
    def from_linear(cls, linear: nn.Linear, row_bits: Tensor, *, act_bits: int, engine: Engine,
                    act_clip_ratio: float = 1.0) -> MixedLinear:
        """Round each row of a float layer to its bits, as :func:`round_rows` does.

        :param linear: float
        :param row_bits: (N,) integers, each one of ``WIDTHS``
        :param act_bits: 4, 8 or 16
        :param engine: what multiplies integers
        :param act_clip_ratio: see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`
        :raises ConfigError: for another width, or another number of rows
        """
        row_bits = check_row_bits(row_bits, linear.out_features).to(linear.weight.device)
        weight = linear.weight.detach()
        rows = {bits: weight[row_bits == bits] for bits in WIDTHS}
        quantized = {bits: quantize_rows(rows[bits], bits) for bits in INTEGER_WIDTHS if rows[bits].numel()}
        return cls(row_bits, {bits: pack(codes, bits) for bits, (codes, _) in quantized.items()},
                   torch.cat([scale for _, scale in quantized.values()]) if quantized else None,
                   rows[16].to(torch.bfloat16) if rows[16].numel() else None,
                   None if linear.bias is None else linear.bias.detach().clone(),
                   columns=linear.in_features, act_bits=act_bits, act_clip_ratio=act_clip_ratio, engine=engine)

    @classmethod
    def empty(cls, row_bits: Tensor, *, columns: int, with_bias: bool, act_bits: int, act_clip_ratio: float,
              engine: Engine) -> MixedLinear:
        """A layer to load a state into: of the shapes that the state's ``row_bits`` ask for, its numbers without sense.

        :raises ConfigError: for a row of another width than ``WIDTHS``
        """
        row_bits = check_row_bits(row_bits, row_bits.shape[0])
        counts = {bits: int((row_bits == bits).sum()) for bits in WIDTHS}
        integer_rows = sum(counts[bits] for bits in INTEGER_WIDTHS)

        def zeros(rows: int, width: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(rows, width, dtype=dtype, device=row_bits.device)

        packed = {bits: zeros(counts[bits], -(-columns * bits // 32), torch.int32) for bits in INTEGER_WIDTHS
                  if counts[bits]}
        return cls(row_bits, packed, zeros(integer_rows, 1, torch.float32) if integer_rows else None,
                   zeros(counts[16], columns, torch.bfloat16) if counts[16] else None,
                   torch.zeros(row_bits.shape[0], device=row_bits.device) if with_bias else None,
                   columns=columns, act_bits=act_bits, act_clip_ratio=act_clip_ratio, engine=engine)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> MixedLinear:
        # As in QuantLinear: each device has a layout of its own; the meta device has no rows to look at.
        device = self.row_bits.device
        super()._apply(fn, recurse)
        if self.row_bits.device != device and not self.row_bits.is_meta:
            self.prepare_()
        return self

    def prepare_(self) -> None:
        """Bring the rows into the form that is multiplied; needed again whenever what is stored changes.

        Codes of all integer widths are given to the engine as 8 bits. Float activations have no use for an engine:
        with ``act_bits`` 16 the codes stay plain (rows, K) int8.
        """
        packed = self._packed()
        self._check_rows(packed)
        # As stored: by rising width, pruned rows behind all others.
        order = torch.where(self.row_bits == 0, 32, self.row_bits).argsort(stable=True)
        self.places = order.argsort().to(torch.int32)
        self.prepared = None
        if packed:
            codes = torch.cat([unpack(words, bits, self.in_features) for bits, words in packed.items()])
            if self.act_bits != FLOAT_BITS:
                codes = self.engine.prepare(pack(codes, 8), 8, self.in_features)
            self.prepared = codes

    def forward(self, x: Tensor | QuantizedTokens) -> Tensor:
        """(..., K) to (..., N)."""
        if self.act_bits == FLOAT_BITS:
            out = self._multiply_values(x.dequantize() if isinstance(x, QuantizedTokens) else x)
        else:
            out = self._multiply_tokens(x if isinstance(x, QuantizedTokens)
                                        else quantize_tokens(x, self.act_bits, self.act_clip_ratio))
        out = out.index_select(1, self.places)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def _multiply_tokens(self, tokens: QuantizedTokens) -> Tensor:
        # To (M, N), by width as stored.
        codes, scale = tokens.codes.reshape(-1, self.in_features), tokens.scale.reshape(-1, 1)
        parts = []
        if self.prepared is not None and self.weight_scale is not None:
            sums = self.engine.int_matmul(codes, self.prepared)
            parts.append(sums.to(scale.dtype).mul_(scale).mul_(self.weight_scale.T))
        if self.wide is not None:
            parts.append(F.linear(codes.to(scale.dtype), self.wide.to(scale.dtype)).mul_(scale))
        return self._with_pruned(parts, scale)

    def _multiply_values(self, x: Tensor) -> Tensor:
        values = (x if x.dtype == torch.float64 else x.float()).reshape(-1, self.in_features)
        parts = []
        if self.prepared is not None and self.weight_scale is not None:
            parts.append(F.linear(values, self.prepared.to(values.dtype)).mul_(self.weight_scale.T))
        if self.wide is not None:
            parts.append(F.linear(values, self.wide.to(values.dtype)))
        return self._with_pruned(parts, values)

    def _with_pruned(self, parts: list[Tensor], like: Tensor) -> Tensor:
        pruned = self.out_features - sum(part.shape[1] for part in parts)
        return torch.cat([*parts, like.new_zeros(like.shape[0], pruned)], dim=1)

    def dequantize(self) -> Tensor:
        """The weight it stands for, (N, K) float32."""
        parts = []
        packed = self._packed()
        if packed and self.weight_scale is not None:
            codes = torch.cat([unpack(words, bits, self.in_features) for bits, words in packed.items()])
            parts.append(codes * self.weight_scale)
        if self.wide is not None:
            parts.append(self.wide.float())
        pruned = self.out_features - sum(part.shape[0] for part in parts)
        parts.append(torch.zeros(pruned, self.in_features, device=self.row_bits.device))
        return torch.cat(parts).index_select(0, self.places)

    @property
    def width(self) -> str:
        """Mean bits of a row, and bits of activations, such as 'W3.97A8'."""
        return f"W{float(self.row_bits.double().mean()):.2f}A{self.act_bits}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of rows, scales, widths and bias: what a checkpoint holds."""
        stored = (*self._packed().values(), self.row_bits, self.weight_scale, self.wide, self.bias)
        return sum(tensor.nbytes for tensor in stored if tensor is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of rows, scales and widths over the number of weights."""
        rest = 0 if self.bias is None else self.bias.nbytes
        return 8 * (self.stored_bytes - rest) / (self.in_features * self.out_features)

    @property
    def prepared_bytes(self) -> int:
        """Bytes that exist beside the stored ones while the layer runs."""
        return self.places.nbytes + (0 if self.prepared is None else self.prepared.nbytes)

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{self.in_features}, {self.out_features}, {self.width}, engine={self.engine.name}"

    def _packed(self) -> dict[int, Tensor]:
        buffers = {bits: getattr(self, f"packed_{bits}") for bits in INTEGER_WIDTHS}
        return {bits: words for bits, words in buffers.items() if words is not None}

    def _check_rows(self, packed: dict[int, Tensor]) -> None:
        held = {bits: words.shape[0] for bits, words in packed.items()}
        held[16] = 0 if self.wide is None else self.wide.shape[0]
        scales = 0 if self.weight_scale is None else self.weight_scale.shape[0]
        told = {bits: int((self.row_bits == bits).sum()) for bits in WIDTHS}
        if (sum(told.values()) != self.out_features or any(held.get(bits, 0) != told[bits] for bits in WIDTHS[1:])
                or scales != sum(told[bits] for bits in INTEGER_WIDTHS)):
            raise CheckpointError(f"row_bits tells of {told} rows by width in {self.out_features}, but {held} and "
                                  f"{scales} scales are held; the checkpoint is damaged, or was loaded into a layer "
                                  "made for other row_bits")
