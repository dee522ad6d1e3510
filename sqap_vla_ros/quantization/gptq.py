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

"""GPTQ: rounding that compensates its own error (Frantar et al., arXiv 2210.17323).

The columns of a weight are rounded one after another. What rounding one costs the layer's output is taken back, as far
as the inputs allow it, by changing the columns that are still to come; how, the inverse Hessian of the inputs says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.integer import FLOAT_BITS, largest_code, quantize_tokens, search_scale

# Columns whose errors are gathered before they are passed on to the columns behind (section 3.3, step 2).
_LAZY_COLUMNS = 128
# Share of the mean diagonal; pivots below are what rounding left of zero in the products of float32 tokens.
_SMALLEST_PIVOT_RATIO = 1e-7


class Hessian:
    """2 X^T X over all tokens X that a linear reads, rounded as the linear will round them.

    :param columns: K
    :param act_bits: 4 or 8; 16 takes the tokens as they are
    :param act_clip_ratio: see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`
    :param device: where the tokens are
    """

    def __init__(self, columns: int, act_bits: int, act_clip_ratio: float, device: torch.device) -> None:
        self.act_bits, self.act_clip_ratio = act_bits, act_clip_ratio
        self.tokens = 0
        # One observation is multiplied in its own precision; the sum of many would lose digits there.
        self.matrix = torch.zeros(columns, columns, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take the tokens of one observation, (..., K)."""
        if self.act_bits == FLOAT_BITS:
            rows = x if x.dtype == torch.float64 else x.float()
        else:
            tokens = quantize_tokens(x, self.act_bits, self.act_clip_ratio)
            rows = tokens.codes * tokens.scale
        rows = rows.reshape(-1, x.shape[-1])
        self.tokens += rows.shape[0]
        self.matrix.add_(rows.T @ rows, alpha=2.0)


@dataclass(frozen=True)
class HessianFactor:
    """What rounding needs of a Hessian; linears that read the same tokens share it.

    :param order: (K,) int64, the columns in the order of rounding
    :param upper: (K, K) float64, U with U^T U the inverse of the damped Hessian in that order
    """

    order: Tensor
    upper: Tensor


def factorize(hessian: Hessian, name: str, *, damping_ratio: float = 0.01,
              order_by_activation: bool = True) -> HessianFactor:
    """Damp, order and invert a Hessian.

    Columns with the largest inputs are rounded first, while there are many left to take their errors back. A column
    that was always zero costs nothing and is left out of the compensation; it is rounded to nearest all the same,
    since it may speak on another day.

    :param hessian: of the inputs of one or several linears
    :param name: of those linears, for errors
    :param damping_ratio: share of the mean diagonal that is added to the diagonal
    :param order_by_activation: round by falling diagonal; False rounds from the first column to the last
    :raises ConfigError: when there were no tokens, one was not finite, or the damped Hessian is not positive definite
    """
    if not hessian.tokens:
        raise ConfigError(f"no observation of the calibration runs '{name}'; leave it out with weight_bits_by_pattern "
                          "(16 bits), or calibrate with observations that do")
    if not torch.isfinite(hessian.matrix).all():
        raise ConfigError(f"the calibration gives '{name}' inputs that are not finite; leave out the observation that "
                          "does, or mend the checkpoint")
    diagonal = hessian.matrix.diagonal().clone()
    silent = diagonal == 0
    mean = diagonal.sum() / (~silent).sum().clamp_min(1)
    columns = diagonal.shape[0]
    order = (torch.argsort(diagonal, descending=True, stable=True) if order_by_activation
             else torch.arange(columns, device=diagonal.device))
    damped = hessian.matrix[order][:, order]
    damped.diagonal().add_(damping_ratio * mean + torch.where(silent, mean.clamp_min(1.0), 0.0)[order])
    # H = R R^T with R upper is Cholesky from the last column to the first, and U = R^-1: H itself is never inverted.
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed or lower.diagonal().min().square() <= _SMALLEST_PIVOT_RATIO * mean:
        raise ConfigError(f"the Hessian of '{name}' is not positive definite with damping_ratio {damping_ratio}; raise "
                          "damping_ratio, for example to 0.01, or calibrate with more observations")
    identity = torch.eye(columns, dtype=damped.dtype, device=damped.device)
    upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return HessianFactor(order, upper)


def round_with_compensation(weight: Tensor, factor: HessianFactor, bits: int, *, group_size: int | None = None,
                            smallest_clip_ratio: float = 1.0, steps: int = 1) -> tuple[Tensor, Tensor]:
    """Round a weight so that the layer's output, not the weight, is kept.

    Scales are fixed beforehand, each group's from the columns that lie side by side in storage, so that the order of
    rounding leaves no trace in the layout. They are searched for the weight's least squared error, as for rounding to
    nearest. To weigh it by the Hessian's diagonal would be right without compensation only: it clips weights of quiet
    columns, and what they lose has to be taken up by others. On correlated random inputs that made the output's error
    3 to 23 % larger.

    :param weight: (N, K) float
    :param factor: of the layer's inputs
    :param bits: 4 or 8
    :param group_size: columns that share a scale, a divisor of K; None is one scale per output channel
    :param smallest_clip_ratio: see :func:`~sqap_vla_ros.quantization.integer.search_scale`
    :param steps: see :func:`~sqap_vla_ros.quantization.integer.search_scale`
    :return: codes (N, K) int8 and scales (N, G) float32, as of
        :func:`~sqap_vla_ros.quantization.integer.quantize_weight`
    """
    scale = search_scale(weight, bits, group_size=group_size, smallest_clip_ratio=smallest_clip_ratio, steps=steps)
    # Columns become rows, since a column is what is read and written at a time: (K, N) in the order of rounding.
    remaining = weight.detach().double().T[factor.order]
    scales = scale.double().T.contiguous()
    groups = (factor.order // (weight.shape[1] // scale.shape[1])).tolist()
    codes = torch.empty(weight.shape[::-1], dtype=torch.int8, device=weight.device)
    codes[factor.order] = _round_rows_(remaining, scales, groups, factor.upper, largest_code(bits))
    return codes.T.contiguous(), scale


def _round_rows_(remaining: Tensor, scales: Tensor, groups: list[int], upper: Tensor, largest: int) -> Tensor:
    # (K, N) is used up; row i is rounded by scales[groups[i]], (N,). To (K, N) int8.
    codes = torch.empty_like(remaining, dtype=torch.int8)
    for start in range(0, len(groups), _LAZY_COLUMNS):
        stop = min(start + _LAZY_COLUMNS, len(groups))
        block, local = remaining[start:stop], upper[start:stop, start:stop]
        errors = torch.empty_like(block)
        for index in range(stop - start):
            step = scales[groups[start + index]]
            code = (block[index] / step).round_().clamp_(-largest, largest)
            codes[start + index] = code
            errors[index] = (block[index] - code * step) / local[index, index]
            block[index + 1:].addr_(local[index, index + 1:], errors[index], alpha=-1.0)
        remaining[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)
    return codes
