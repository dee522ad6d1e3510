"""A product of rounded tokens and rounded weights, and what makes floats of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from sqap_vla_ros import fused_rows
from sqap_vla_ros.quantization.integer import QuantizedTokens


@dataclass(frozen=True, slots=True)
class IntegerSums:
    """value[m, n] = sums[m, n] x token scale[m] x weight scale[n].

    The memory of the sums becomes that of the floats, so floats can be had once.

    :param sums: (M, N) int32
    :param tokens: the M tokens that were multiplied
    :param weight_scale: (N,) float32
    """

    sums: Tensor
    tokens: QuantizedTokens
    weight_scale: Tensor

    def scaled(self, bias: Tensor | None = None) -> Tensor:
        """The values, (..., N), and a bias (N,) on top."""
        scale = self.tokens.scale
        if fused_rows.is_fused_for(scale):
            out = fused_rows.scale_sums_(self.sums, scale, self.weight_scale).view(*self.tokens.shape[:-1], -1)
        else:
            out = self.sums.to(scale.dtype).view(*self.tokens.shape[:-1], -1).mul_(scale).mul_(self.weight_scale)
        return self._give(out if bias is None else out.add_(bias))

    def turned(self, cos: Tensor, sin: Tensor, count: int) -> Tensor | None:
        """The values with the rotary embedding of the first ``count`` heads; None where that takes more than one pass.

        :param cos: (M, head size) in order of the tokens, the same for each head
        :param sin: the same, its first half negative
        """
        scale = self.tokens.scale
        if not (fused_rows.is_fused_for(scale) and fused_rows.is_fused_for(cos)):
            return None
        return self._give(fused_rows.scale_and_turn_(self.sums, scale, self.weight_scale, cos, sin, count))

    def gated(self) -> Tensor:
        """SwiGLU, (..., N / 2): silu of the first half of the outputs, times the second half."""
        scale = self.tokens.scale
        if fused_rows.is_fused_for(scale):
            return self._give(fused_rows.gate_sums(self.sums, scale, self.weight_scale))
        gate, up = self.scaled().chunk(2, dim=-1)
        return F.silu(gate) * up

    def _give(self, out: Tensor) -> Tensor:
        return out.view(*self.tokens.shape[:-1], -1).to(self.tokens.dtype)
