"""What happens to the rows of a matrix between two integer products, each in one pass, compiled for the CPU by numba.

In torch's own operations the same takes three to ten passes through memory, and on a CPU that is what is left once the
products are integers. The results are those of the torch operations beside which these are called, but for the last
bit of a float. Everything here is float32 on the CPU, and nothing is differentiable: :func:`is_fused_for` tells.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Integers = NDArray[Any]

# Products may be fused and rows summed in any order; NaN and infinity stay what they are.
_compile = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
_ONE, _EXPONENT_BIAS, _MANTISSA_BITS = np.float32(1.0), np.int32(127), np.int32(23)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LOG2_E, _LARGEST_EXPONENT = np.float32(1.4426950408889634), np.float32(126.0)
# 2^f for f from -1/2 to 1/2, highest power first: ln(2)^n / n! but for the last two, which take up the rest.
_C6, _C5, _C4, _C3, _C2, _C1 = (np.float32(value) for value in (
    1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1,
    6.931472028550421e-1))


def is_fused_for(x: Tensor) -> bool:
    """Whether the functions here take it: float32 on the CPU, of which nobody wants a gradient."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not x.requires_grad


def round_tokens(x: Tensor, largest: int, clip_ratio: float, smallest_scale: float) -> tuple[Tensor, Tensor]:
    """Round each row with a scale of its own; see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`.

    :param x: (..., K)
    :param largest: code
    :return: codes (..., K) int8 and scales (..., 1)
    """
    rows, codes, scale = _prepare(x)
    _round_rows(_floats(rows), codes.view(rows.shape).numpy(), _floats(scale.view(-1)), np.float32(largest),
                np.float32(clip_ratio / largest), np.float32(smallest_scale))
    return codes, scale


def round_normalized(x: Tensor, eps: float, largest: int, clip_ratio: float,
                     smallest_scale: float) -> tuple[Tensor, Tensor]:
    """The same of each row over its root mean square.

    :param x: (..., K)
    :param eps: added to the mean square
    :param largest: code
    """
    rows, codes, scale = _prepare(x)
    scales = _floats(scale.view(-1))
    _round_rows(_floats(rows), codes.view(rows.shape).numpy(), scales, np.float32(largest),
                np.float32(clip_ratio / largest), np.float32(smallest_scale))
    _divide_by_rms(_floats(rows), np.float32(eps), scales)
    return codes, scale


def scale_sums_(sums: Tensor, token_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """Turn the sums of an integer product into floats, where they are.

    :param sums: (M, N) int32, not to be used any more
    :param token_scale: of its rows, M numbers
    :param weight_scale: (N,), of its columns
    :return: (M, N) in the memory of ``sums``
    """
    out = sums.view(torch.float32)
    _scale_rows(sums.numpy(), _floats(token_scale.reshape(-1)), _floats(weight_scale), _floats(out))
    return out


def scale_and_turn_(sums: Tensor, token_scale: Tensor, weight_scale: Tensor, cos: Tensor, sin: Tensor,
                    turned: int) -> Tensor:
    """As :func:`scale_sums_`, with the rotary embedding of some heads.

    :param sums: (M, N) int32, not to be used any more; N is a whole number of heads
    :param cos: (M, D) for one head; the same for all
    :param sin: (M, D), its first half negative
    :param turned: how many of the heads, the first ones, are turned
    :return: (M, N) in the memory of ``sums``
    """
    out = sums.view(torch.float32)
    _scale_and_turn_rows(sums.numpy(), _floats(token_scale.reshape(-1)), _floats(weight_scale), _floats(cos),
                         _floats(sin), turned, _floats(out))
    return out


def gate_sums(sums: Tensor, token_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """SwiGLU of a product's sums: silu of the first half of each row, times the second.

    :param sums: (M, 2 I) int32
    :param token_scale: of its rows, M numbers
    :param weight_scale: (2 I,), of its columns
    :return: (M, I) float32
    """
    out = torch.empty(sums.shape[0], sums.shape[1] // 2)
    _gate_rows(sums.numpy(), _floats(token_scale.reshape(-1)), _floats(weight_scale), _floats(out))
    return out


def _prepare(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    return (rows if rows.is_contiguous() else rows.contiguous(), torch.empty(x.shape, dtype=torch.int8),
            torch.empty(*x.shape[:-1], 1))


def _floats(x: Tensor) -> Floats:
    array: Floats = (x if x.is_contiguous() else x.contiguous()).numpy()
    return array


@_compile
def _round_rows(x: Floats, codes: Integers, scale: Floats, largest: np.float32, step: np.float32,
                smallest: np.float32) -> None:
    bits = np.empty(1, np.int32)
    peak = bits.view(np.float32)
    for m in range(x.shape[0]):
        row, row_bits, row_codes = x[m], x[m].view(np.int32), codes[m]
        # Magnitudes are ordered as their bits are, and NaN stands above all of them.
        top = np.int32(0)
        for k in range(row.shape[0]):
            top = max(top, row_bits[k] & _MAGNITUDE)
        bits[0] = top
        scale[m] = max(peak[0] * step, smallest)
        inverse = _ONE / scale[m]
        for k in range(row.shape[0]):
            row_codes[k] = np.int8(min(max(np.rint(row[k] * inverse), -largest), largest))


@_compile
def _divide_by_rms(x: Floats, eps: np.float32, scale: Floats) -> None:
    for m in range(x.shape[0]):
        row, total = x[m], np.float32(0.0)
        for k in range(row.shape[0]):
            total += row[k] * row[k]
        scale[m] /= np.sqrt(total / np.float32(row.shape[0]) + eps)


@_compile
def _scale_rows(sums: Integers, token_scale: Floats, weight_scale: Floats, out: Floats) -> None:
    for m in range(sums.shape[0]):
        row, row_out, token = sums[m], out[m], token_scale[m]
        for n in range(row.shape[0]):
            row_out[n] = np.float32(row[n]) * token * weight_scale[n]


@_compile
def _scale_and_turn_rows(sums: Integers, token_scale: Floats, weight_scale: Floats, cos: Floats, sin: Floats,
                         turned: int, out: Floats) -> None:
    size = cos.shape[1]
    half = size // 2
    head = np.empty(size, np.float32)
    for m in range(sums.shape[0]):
        token, row_cos, row_sin = token_scale[m], cos[m], sin[m]
        for first in range(0, turned * size, size):
            row, row_out = sums[m, first:first + size], out[m, first:first + size]
            scale = weight_scale[first:first + size]
            for d in range(size):
                head[d] = np.float32(row[d]) * token * scale[d]
            for d in range(half):
                row_out[d] = head[d] * row_cos[d] + head[d + half] * row_sin[d]
            for d in range(half):
                row_out[d + half] = head[d + half] * row_cos[d + half] + head[d] * row_sin[d + half]
        rest, rest_out, rest_scale = sums[m, turned * size:], out[m, turned * size:], weight_scale[turned * size:]
        for n in range(rest.shape[0]):
            rest_out[n] = np.float32(rest[n]) * token * rest_scale[n]


@_compile
def _gate_rows(sums: Integers, token_scale: Floats, weight_scale: Floats, out: Floats) -> None:
    width = out.shape[1]
    gate, power = np.empty(width, np.float32), np.empty(width, np.int32)
    two_to_power = power.view(np.float32)
    for m in range(out.shape[0]):
        token, row, row_out = token_scale[m], sums[m], out[m]
        for n in range(width):
            gate[n] = np.float32(row[n]) * token * weight_scale[n]
        # exp(-gate) = 2^whole x 2^part; loops of one kind each, which is what becomes vector instructions.
        for n in range(width):
            exponent = min(max(-gate[n] * _LOG2_E, -_LARGEST_EXPONENT), _LARGEST_EXPONENT)
            whole = np.rint(exponent)
            part = exponent - whole
            row_out[n] = (((((_C6 * part + _C5) * part + _C4) * part + _C3) * part + _C2) * part + _C1) * part + _ONE
            power[n] = (np.int32(whole) + _EXPONENT_BIAS) << _MANTISSA_BITS
        for n in range(width):
            up = np.float32(row[width + n]) * token * weight_scale[width + n]
            row_out[n] = gate[n] / (_ONE + row_out[n] * two_to_power[n]) * up
