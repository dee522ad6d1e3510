"""A SwiGLU whose three linears are rounded, in one call where that is possible."""

from __future__ import annotations

from torch import Tensor, nn

from sqap_vla_ros import fused_rows
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.integer import FLOAT_BITS, SMALLEST_SCALE, QuantizedTokens, largest_code
from sqap_vla_ros.quantization.linear import QuantLinear, Siblings


def feed_forward(siblings: Siblings, gate: nn.Module, up: nn.Module, online: nn.Module, down: nn.Module,
                 x: Tensor | QuantizedTokens) -> Tensor | None:
    """down(online(silu(gate(x)) up(x))), or None where that takes a call for each step.

    :param siblings: of gate and up
    :param online: a rotation or nothing
    :param x: (..., C)
    """
    if not (isinstance(x, QuantizedTokens) and isinstance(down, QuantLinear) and fused_rows.is_fused_for(x.scale)):
        return None
    rotation = online.fused_form if isinstance(online, HadamardRotation) else None
    if (rotation is None and not isinstance(online, nn.Identity)) or down.prepared.dim() < 4 or down.bias is not None:
        return None
    joined = siblings.join((gate, up))
    if joined is None or joined[0].dim() < 4 or down.group_size is not None or down.act_bits == FLOAT_BITS:
        return None
    if down.out_features != x.shape[-1] or not all(map(fused_rows.is_fused_for, (joined[1], down.weight_scale))):
        return None
    out = fused_rows.feed_forward(
        x.codes.view(-1, x.shape[-1]), x.scale, *joined, down.prepared, down.weight_scale, rotation,
        largest_code(down.act_bits), down.act_clip_ratio, SMALLEST_SCALE)
    return out.view(*x.shape[:-1], -1).to(x.dtype)
