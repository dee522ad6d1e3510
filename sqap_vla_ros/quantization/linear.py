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

"""A linear layer in integers: round the tokens, multiply codes exactly, scale once.

Tokens may come rounded already: one norm's output is read by several layers and needs rounding only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.quantization.integer import (
    FLOAT_BITS,
    QuantizedTokens,
    pack,
    quantize_normalized,
    quantize_tokens,
    quantize_weight,
    unpack,
)
from sqap_vla_ros.quantization.kernels.engine import Engine
from sqap_vla_ros.quantization.product import IntegerProduct


class QuantLinear(nn.Module):
    """Integer weights times integer activations; W4A4, W4A8 or W8A8 by the bits given.

    out[m, n] = sum over groups g of (sum over k in g of a[m, k] w[n, k]) x weight scale[n, g]
                x token scale[m] + bias[n]

    With 16 activation bits tokens are not rounded, and the weight is multiplied as the floats that its codes stand for.

    :param weight_packed: (N, W) int32, see :func:`~sqap_vla_ros.quantization.integer.pack`
    :param weight_scale: (N, G) float32, each for K / G columns; G = 1 is one scale per output channel
    :param bias: (N,) or None
    :param columns: K
    :param weight_bits: 4 or 8
    :param act_bits: 4, 8 or 16
    :param act_clip_ratio: see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`
    :param engine: what multiplies

    ``changes`` counts how often its tensors were replaced.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    prepared: Tensor

    def __init__(self, weight_packed: Tensor, weight_scale: Tensor, bias: Tensor | None, *, columns: int,
                 weight_bits: int, act_bits: int, act_clip_ratio: float, engine: Engine) -> None:
        super().__init__()
        self.in_features, self.out_features = columns, weight_packed.shape[0]
        self.weight_bits, self.act_bits, self.act_clip_ratio = weight_bits, act_bits, act_clip_ratio
        self.group_size = None if weight_scale.shape[1] == 1 else columns // weight_scale.shape[1]
        self.engine = engine
        self.changes = 0
        self.register_buffer("weight_packed", weight_packed)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("bias", bias)
        self.register_buffer("prepared", None, persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.prepare_())
        self.prepare_()

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, weight_bits: int, act_bits: int, engine: Engine,
                    act_clip_ratio: float = 1.0, group_size: int | None = None, smallest_clip_ratio: float = 1.0,
                    clip_steps: int = 1) -> QuantLinear:
        """Round a float layer to nearest; see :func:`~sqap_vla_ros.quantization.integer.quantize_weight`."""
        codes, scale = quantize_weight(linear.weight, weight_bits, group_size=group_size,
                                       smallest_clip_ratio=smallest_clip_ratio, steps=clip_steps)
        return cls.from_codes(linear, codes, scale, weight_bits=weight_bits, act_bits=act_bits,
                              act_clip_ratio=act_clip_ratio, engine=engine)

    @classmethod
    def from_codes(cls, linear: nn.Linear, codes: Tensor, scale: Tensor, *, weight_bits: int, act_bits: int,
                   act_clip_ratio: float, engine: Engine) -> QuantLinear:
        """Take the place of a float layer whose weight was rounded already.

        :param linear: gives the bias
        :param codes: (N, K) int8
        :param scale: (N, G) float32
        """
        return cls(pack(codes, weight_bits), scale, None if linear.bias is None else linear.bias.detach().clone(),
                   columns=linear.in_features, weight_bits=weight_bits, act_bits=act_bits,
                   act_clip_ratio=act_clip_ratio, engine=engine)

    def prepare_(self) -> None:
        """Give the engine the weight in the form it multiplies; needed again whenever the packed weight changes."""
        self.changes += 1
        if self.act_bits == FLOAT_BITS:
            self.prepared = self.dequantize()
        elif self.group_size is None:
            self.prepared = self.engine.prepare(self.weight_packed, self.weight_bits, self.in_features)
        else:
            # A group is a whole number of words; to the engine it is a matrix of its own.
            words = self.group_size * self.weight_bits // 32
            self.prepared = torch.stack([self.engine.prepare(packed, self.weight_bits, self.group_size)
                                         for packed in self.weight_packed.split(words, dim=1)])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> QuantLinear:
        # What moves a module to another device comes through here; each has a layout of its own.
        device = self.weight_packed.device
        super()._apply(fn, recurse)
        self.changes += 1
        if self.weight_packed.device != device:
            self.prepare_()
        return self

    def forward(self, x: Tensor | QuantizedTokens) -> Tensor:
        """(..., K) to (..., N)."""
        if self.act_bits == FLOAT_BITS:
            return self._multiply_floats(x.dequantize() if isinstance(x, QuantizedTokens) else x)
        tokens = x if isinstance(x, QuantizedTokens) else quantize_tokens(x, self.act_bits, self.act_clip_ratio)
        if self.group_size is None:
            return IntegerProduct(tokens, self.prepared, self.weight_scale.view(-1), self.engine).scaled(self.bias)
        codes = tokens.codes.reshape(-1, self.in_features)
        out = self._sum_groups(codes, tokens.scale.dtype).view(*tokens.shape[:-1], -1).mul_(tokens.scale)
        if self.bias is not None:
            out += self.bias
        return out.to(tokens.dtype)

    def _sum_groups(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        # Always from the first group to the last, so that engines agree to the bit.
        out = torch.zeros(codes.shape[0], self.out_features, dtype=dtype, device=codes.device)
        groups = zip(codes.split(self.group_size, dim=1), self.prepared, self.weight_scale.T, strict=True)
        for part, weight, scale in groups:
            out += self.engine.int_matmul(part, weight).to(dtype).mul_(scale)
        return out

    def _multiply_floats(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.prepared.to(x.dtype), bias)

    def dequantize(self) -> Tensor:
        """The weight it stands for, (N, K) float32."""
        codes = unpack(self.weight_packed, self.weight_bits, self.in_features)
        groups = codes.view(self.out_features, self.weight_scale.shape[1], -1)
        return (groups * self.weight_scale[..., None]).view(codes.shape)

    @property
    def width(self) -> str:
        """Bits of weight and activations, such as 'W4A8'."""
        return f"W{self.weight_bits}A{self.act_bits}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of packed weight, scales and bias: what a checkpoint holds."""
        return sum(tensor.nbytes for tensor in (self.weight_packed, self.weight_scale, self.bias) if tensor is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of packed weight and scales over the number of weights."""
        return 8 * (self.weight_packed.nbytes + self.weight_scale.nbytes) / (self.in_features * self.out_features)

    @property
    def prepared_bytes(self) -> int:
        """Bytes of the form of the weight that is multiplied, which exists beside the packed one while it runs."""
        return self.prepared.nbytes

    def extra_repr(self) -> str:
        """For ``print``."""
        groups = "" if self.group_size is None else f", groups of {self.group_size}"
        return f"{self.in_features}, {self.out_features}, {self.width}{groups}, engine={self.engine.name}"


class Siblings:
    """Linears that read the same tokens, multiplied as one where all are quantized alike; the numbers are the same.

    That rounds the tokens once, and saves of each further layer what its calls cost beside the product. The joined
    weight is made at the first call, and again when a layer's own has changed; the layers then multiply parts of it,
    so that it exists once.
    """

    def __init__(self) -> None:
        self._linears: tuple[nn.Module, ...] = ()
        self._alike: list[QuantLinear] = []
        self._changes: list[int] = []
        self._joined: tuple[Tensor, Tensor] | None = None
        self._begins: list[int] = []
        self._together = 1  # outputs that lie together in prepared weights

    def multiply(self, linears: Sequence[nn.Module], x: Tensor | QuantizedTokens, first: int = 0,
                 end: int | None = None) -> IntegerProduct | None:
        """(..., K) to outputs side by side, (..., sum of N); None when the linears cannot be multiplied as one.

        :param linears: the same at every call
        :param first: of those that are wanted
        :param end: behind the last of those; None is behind all
        """
        joined = self.join(linears)
        if joined is None:
            return None
        one, (weight, scale) = self._alike[0], joined
        tokens = x if isinstance(x, QuantizedTokens) else quantize_tokens(x, one.act_bits, one.act_clip_ratio)
        begin, stop = self._begins[first], self._begins[len(self._alike) if end is None else end]
        if stop - begin < len(scale):
            weight, scale = weight[begin // self._together:stop // self._together], scale[begin:stop]
        return IntegerProduct(tokens, weight, scale, one.engine)

    def join(self, linears: Sequence[nn.Module]) -> tuple[Tensor, Tensor] | None:
        """The joined prepared weight and its (sum of N,) scales; None when they cannot be multiplied as one."""
        if tuple(linears) != self._linears or self._changes != [linear.changes for linear in self._alike]:
            self._join_(linears)
        return self._joined

    def forget(self) -> None:
        """Let go of the joined weight; it is made again when it is asked for."""
        self._linears, self._alike, self._changes, self._joined = (), [], [], None

    def _join_(self, linears: Sequence[nn.Module]) -> None:
        alike = [linear for linear in linears if isinstance(linear, QuantLinear)]
        self.forget()
        if len(alike) < len(linears):
            return  # float ones are not kept, since they may be replaced
        self._linears, self._alike, one = tuple(linears), alike, alike[0]
        self._changes = [linear.changes for linear in alike]
        ways = {(linear.act_bits, linear.act_clip_ratio, linear.engine.name, linear.prepared.shape[1:],
                 linear.group_size, linear.bias is None) for linear in alike}
        if len(ways) > 1 or one.act_bits == FLOAT_BITS or one.group_size is not None or one.bias is not None:
            return
        with torch.inference_mode(False):
            weight = torch.cat([linear.prepared for linear in alike])
            self._joined = weight, torch.cat([linear.weight_scale for linear in alike]).view(-1)
            parts = weight.split([len(linear.prepared) for linear in alike])
        self._begins = [0, *accumulate(linear.out_features for linear in alike)]
        self._together = one.out_features // len(one.prepared)
        for linear, part in zip(alike, parts, strict=True):
            linear.prepared = part


class QuantRMSNorm(nn.Module):
    """RMSNorm without gain whose output is rounded tokens, for layers that all round alike.

    :param eps: of the norm
    :param bits: 4 or 8
    :param clip_ratio: see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`
    """

    def __init__(self, eps: float, bits: int, clip_ratio: float) -> None:
        super().__init__()
        self.eps, self.bits, self.clip_ratio = eps, bits, clip_ratio

    def forward(self, x: Tensor) -> QuantizedTokens:
        """(..., C) to as many tokens."""
        return quantize_normalized(x, self.bits, self.clip_ratio, self.eps)

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"eps={self.eps}, bits={self.bits}, clip_ratio={self.clip_ratio}"


class RoundedQueries(nn.Module):
    """Queries or keys as their rounded values, each head of each token with its own scale.

    :param bits: 4 or 8
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, S, D) to the same shape."""
        return quantize_tokens(x, self.bits).dequantize()
