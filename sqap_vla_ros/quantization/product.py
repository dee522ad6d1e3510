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

"""A product of rounded tokens and rounded weights that is still to be made, in as few passes as possible."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from sqap_vla_ros import fused_rows
from sqap_vla_ros.quantization.integer import QuantizedTokens
from sqap_vla_ros.quantization.kernels.engine import Engine


@dataclass(frozen=True, slots=True)
class IntegerProduct:
    """value[m, n] = (sum over k of a[m, k] w[n, k]) x token scale[m] x weight scale[n].

    :param tokens: the M tokens
    :param weight: as the engine prepared it
    :param weight_scale: (N,) float32
    :param engine: what multiplies
    """

    tokens: QuantizedTokens
    weight: Tensor
    weight_scale: Tensor
    engine: Engine

    def scaled(self, bias: Tensor | None = None) -> Tensor:
        """The values, (..., N), and a bias (N,) on top."""
        scale = self.tokens.scale
        if self._is_laid_out:
            out = fused_rows.multiply_scaled(self._codes, scale, self.weight, self.weight_scale)
        elif self._is_fused:
            out = fused_rows.scale_sums_(self._sums, scale, self.weight_scale)
        else:
            out = self._sums.to(scale.dtype).mul_(scale.reshape(-1, 1)).mul_(self.weight_scale)
        return self._give(out if bias is None else out.add_(bias))

    def turned(self, cos: Tensor, sin: Tensor, count: int) -> Tensor | None:
        """The values with the rotary embedding of the first ``count`` heads; None where that takes more than one pass.

        :param cos: (M, head size) in order of the tokens, the same for each head
        :param sin: the same, its first half negative
        """
        scale = self.tokens.scale
        if not (self._is_fused and fused_rows.is_fused_for(cos) and cos.shape[0] == scale.numel()):
            return None
        if self._is_laid_out:
            return self._give(fused_rows.multiply_scaled(self._codes, scale, self.weight, self.weight_scale, (cos, sin),
                                                         count))
        return self._give(fused_rows.scale_and_turn_(self._sums, scale, self.weight_scale, cos, sin, count))

    def gated(self) -> Tensor:
        """SwiGLU, (..., N / 2): silu of the first half of the outputs, times the second half."""
        if self._is_fused:
            return self._give(fused_rows.gate_sums(self._sums, self.tokens.scale, self.weight_scale))
        gate, up = self.scaled().chunk(2, dim=-1)
        return F.silu(gate) * up

    @property
    def _is_fused(self) -> bool:
        return fused_rows.is_fused_for(self.tokens.scale) and fused_rows.is_fused_for(self.weight_scale)

    @property
    def _is_laid_out(self) -> bool:
        return self.weight.dim() > 2 and fused_rows.HAS_INTEGER_PRODUCT and self._is_fused

    @property
    def _codes(self) -> Tensor:
        return self.tokens.codes.reshape(-1, self.tokens.shape[-1])

    @property
    def _sums(self) -> Tensor:
        return self.engine.int_matmul(self._codes, self.weight)

    def _give(self, out: Tensor) -> Tensor:
        return out.view(*self.tokens.shape[:-1], -1).to(self.tokens.dtype)
