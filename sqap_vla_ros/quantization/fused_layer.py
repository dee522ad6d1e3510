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

"""The halves of a Llama layer whose linears are rounded, each in one call where that is possible.

Such a call goes past the modules that it stands for, and so past hooks on them.
"""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from sqap_vla_ros import fused_rows
from sqap_vla_ros.fused_rows import Rounding
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.integer import FLOAT_BITS, SMALLEST_SCALE, largest_code
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, Siblings


def attend(q: Tensor, k: Tensor, v: Tensor, last: Tensor, bias: Tensor | None, out: nn.Module,
           onto: Tensor) -> Tensor | None:
    """onto + out(attention), or None where that takes a call for each step.

    :param q: q, k, v, last and bias as in :func:`~sqap_vla_ros.fused_rows.attend`, which takes them
    :param out: linear
    :param onto: (B, Q, C) residual stream
    """
    if not (_is_laid_out(out, q.shape[1] * q.shape[3], onto.shape[-1]) and fused_rows.is_fused_for(onto)):
        return None
    return fused_rows.attend_and_project(q, k, v, last, bias, out.prepared, out.weight_scale, onto, _rounding(out),
                                         SMALLEST_SCALE)


def feed_forward(norm: nn.Module, siblings: Siblings, gate: nn.Module, up: nn.Module, online: nn.Module,
                 down: nn.Module, x: Tensor) -> Tensor | None:
    """x + down(online(silu(gate(norm(x))) up(norm(x)))), or None where that takes a call for each step.

    :param siblings: of gate and up
    :param online: a rotation or nothing
    :param x: (..., C) residual stream
    """
    width = x.shape[-1]
    if not (isinstance(norm, QuantRMSNorm) and fused_rows.is_fused_for(x) and _is_laid_out(gate, width)
            and _is_laid_out(up, width, gate.out_features) and _is_laid_out(down, gate.out_features, width)):
        return None
    rotation = online.fused_form if isinstance(online, HadamardRotation) else None
    if rotation is None and not isinstance(online, nn.Identity):
        return None
    joined = siblings.join((gate, up))
    if joined is None or (rotation is not None and gate.out_features % rotation[0].numel()):
        return None
    wide = Rounding(largest_code(norm.bits), norm.clip_ratio)
    return fused_rows.feed_forward(x, norm.eps, *joined, wide, down.prepared, down.weight_scale, _rounding(down),
                                   rotation, SMALLEST_SCALE)


def _is_laid_out(linear: nn.Module, inputs: int, outputs: int | None = None) -> TypeGuard[QuantLinear]:
    # Whether C can multiply it, and it has so many inputs and outputs.
    return (isinstance(linear, QuantLinear) and fused_rows.HAS_INTEGER_PRODUCT and linear.prepared.dim() == 4
            and linear.bias is None and linear.group_size is None and linear.act_bits != FLOAT_BITS
            and fused_rows.is_fused_for(linear.weight_scale)
            and linear.in_features == inputs and outputs in (None, linear.out_features))


def _rounding(linear: QuantLinear) -> Rounding:
    return Rounding(largest_code(linear.act_bits), linear.act_clip_ratio)
