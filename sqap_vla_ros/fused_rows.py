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

"""What happens to the rows of a matrix between two integer products, each in one pass, in C.

In torch's own operations the same takes several passes through memory and as many calls, and on a CPU that is what is
left once the products are integers. The results are those of the torch operations beside which these are called, but
for the last bit of a float. All take float32 on the CPU of which nobody wants a gradient; :func:`is_fused_for` tells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sqap_vla_ros.compiled import dense, empty_bytes, empty_floats, load_library
from sqap_vla_ros.errors import InferenceError

LANES = 16


class Rounding(NamedTuple):
    """How rows are rounded, as :func:`round_tokens` is told it.

    :param largest: code
    :param clip_ratio: share of a row's largest magnitude that it stands for
    """

    largest: int
    clip_ratio: float


_LIBRARY = load_library()
HAS_INTEGER_PRODUCT = bool(_LIBRARY.has_integer_product())


def is_fused_for(x: Tensor) -> bool:
    """Whether the functions here take it: float32 on the CPU, of which nobody wants a gradient."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and not x.requires_grad


def round_tokens(x: Tensor, largest: int, clip_ratio: float, smallest_scale: float) -> tuple[Tensor, Tensor]:
    """Round each row with a scale of its own; see :func:`~sqap_vla_ros.quantization.integer.quantize_tokens`.

    :param x: (..., K)
    :param largest: code
    :return: codes (..., K) int8 and scales (..., 1)
    """
    x, codes, scale = _prepare(x)
    _LIBRARY.round_rows(x.data_ptr(), codes.data_ptr(), scale.data_ptr(), scale.numel(), x.shape[-1], largest,
                        clip_ratio / largest, smallest_scale)
    return codes, scale


def round_normalized(x: Tensor, eps: float, largest: int, clip_ratio: float,
                     smallest_scale: float) -> tuple[Tensor, Tensor]:
    """The same of each row over its root mean square.

    :param x: (..., K)
    :param eps: added to the mean square
    :param largest: code
    """
    x, codes, scale = _prepare(x)
    _LIBRARY.round_normalized_rows(x.data_ptr(), codes.data_ptr(), scale.data_ptr(), scale.numel(), x.shape[-1],
                                   largest, clip_ratio / largest, smallest_scale, eps)
    return codes, scale


def scale_sums_(sums: Tensor, token_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """Turn the sums of an integer product into floats, where they are.

    :param sums: (M, N) int32, not to be used any more
    :param token_scale: of its rows, M numbers
    :param weight_scale: (N,), of its columns
    :return: (M, N) in the memory of ``sums``
    """
    out, token_scale = sums.view(torch.float32), dense(token_scale)
    _LIBRARY.scale_rows(sums.data_ptr(), token_scale.data_ptr(), weight_scale.data_ptr(), out.data_ptr(), *sums.shape)
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
    cos, sin, token_scale = dense(cos), dense(sin), dense(token_scale)
    _LIBRARY.scale_and_turn_rows(sums.data_ptr(), token_scale.data_ptr(), weight_scale.data_ptr(), cos.data_ptr(),
                                 sin.data_ptr(), out.data_ptr(), *sums.shape, cos.shape[1], turned)
    return out


def gate_sums(sums: Tensor, token_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """SwiGLU of a product's sums: silu of the first half of each row, times the second.

    :param sums: (M, 2 I) int32
    :param token_scale: of its rows, M numbers
    :param weight_scale: (2 I,), of its columns
    :return: (M, I) float32
    """
    out, token_scale = empty_floats(sums.shape[0], sums.shape[1] // 2), dense(token_scale)
    _LIBRARY.gate_rows(sums.data_ptr(), token_scale.data_ptr(), weight_scale.data_ptr(), out.data_ptr(), *out.shape)
    return out


def rotate(x: Tensor, signs: Tensor, base: Tensor, right: int) -> Tensor:
    """(x with signs) (H (x) base (x) H) in blocks, H the Hadamard matrices of powers of two.

    :param x: (..., a whole number of blocks)
    :param signs: (n,), n the size of a block, with the factor that makes the rotation orthonormal
    :param base: (b, b)
    :param right: order of the last of the three, a multiple of ``LANES``; n is a power of two times b times it
    """
    x, out, other = dense(x), empty_floats(*x.shape), torch.empty_like(signs)
    _LIBRARY.rotate_rows(x.data_ptr(), signs.data_ptr(), base.data_ptr(), out.data_ptr(), other.data_ptr(),
                         x.numel() // signs.numel(), signs.numel(), base.shape[0], right)
    return out


def can_attend(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether :func:`attend` takes them. On several threads torch's own attention is quicker."""
    return (all(is_fused_for(x) and x.stride(-1) == 1 for x in (q, k, v)) and q.shape[-1] % LANES == 0
            and torch.get_num_threads() == 1)


def attend(q: Tensor, k: Tensor, v: Tensor, last: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention in which each query sees the keys up to one of its own; no time is spent on those that it does not see.

    :param q: (B, H, Q, D), D a multiple of ``LANES`` whose numbers lie side by side
    :param k: (B, H / G, S, D); G heads of q share one
    :param v: as k
    :param last: (B, Q) int64, the last key that each query sees, rising
    :param bias: (B, S) added to the logits of each key
    :return: (B, Q, H D)
    """
    batch, heads, queries, size = q.shape
    out, scratch = empty_floats(batch, queries, heads * size), empty_floats((size + k.shape[2]) * LANES)
    last, bias = dense(last), None if bias is None else dense(bias.float())
    for one, (one_q, one_k, one_v) in enumerate(zip(q, k, v, strict=True)):
        _LIBRARY.attend(one_q.data_ptr(), *one_q.stride()[:2], one_k.data_ptr(), *one_k.stride()[:2],
                        one_v.data_ptr(), *one_v.stride()[:2], last[one].data_ptr(),
                        None if bias is None else bias[one].data_ptr(), out[one].data_ptr(),
                        scratch.data_ptr(), heads, heads // k.shape[1], queries, size, size**-0.5)
    return out


def cosine_steps(rows: Tensor, steps: int) -> Tensor:
    """steps x (1 - cosine) between every two rows, to the nearest whole number and at least 0.

    :param rows: (N, C)
    :return: (N, N), 2 x steps where a row is not a number
    """
    rows, (count, width) = dense(rows), rows.shape
    out, scratch = empty_floats(count, count), empty_floats(count * width + (width + count) * LANES)
    _LIBRARY.cosine_steps(rows.data_ptr(), out.data_ptr(), scratch.data_ptr(), count, width, steps)
    return out


def pick_farthest_(nearest: Tensor, table: Tensor, count: int) -> Tensor:
    """Take the token that is farthest from all that is kept, again and again.

    :param nearest: (N,) distance of each token to the nearest kept one; changed
    :param table: (N, N) distances between tokens
    :return: (count,) int64 in the order taken, ties to the lower index
    """
    table, picks = dense(table), torch.empty(count, dtype=torch.int64, device="cpu")
    _LIBRARY.pick_farthest(nearest.data_ptr(), table.data_ptr(), picks.data_ptr(), nearest.numel(), count)
    return picks


def lay_out_weight(weight: Tensor) -> Tensor:
    """A weight as :func:`multiply_integers` reads it.

    :param weight: (N, K) int8, N a multiple of ``LANES`` and K of 4
    :return: (N / LANES, K / 4, LANES, 4) int8
    """
    outputs, columns = weight.shape
    unsigned = (weight.to(torch.int16) + 128).to(torch.uint8).view(torch.int8)
    return unsigned.view(outputs // LANES, LANES, columns // 4, 4).transpose(1, 2).contiguous()


def multiply_integers(activations: Tensor, weight: Tensor) -> Tensor:
    """An exact integer product, where ``HAS_INTEGER_PRODUCT``.

    :param activations: (M, K) int8
    :param weight: as :func:`lay_out_weight` gives it, or some of its first dimension
    :return: (M, N) int32
    """
    if not (HAS_INTEGER_PRODUCT and activations.device.type == weight.device.type == "cpu"):
        raise InferenceError("a weight that is laid out for AVX-512 VNNI came to another processor or device; load the "
                             "checkpoint there")
    activations, (rows, columns) = dense(activations), activations.shape
    out = torch.empty(rows, weight.shape[0] * LANES, dtype=torch.int32, device="cpu")
    offsets = torch.empty(rows, dtype=torch.int32, device="cpu")
    _LIBRARY.multiply_integers(activations.data_ptr(), weight.data_ptr(), out.data_ptr(), offsets.data_ptr(), rows,
                               columns, out.shape[1])
    return out


def multiply_scaled(codes: Tensor, token_scale: Tensor, weight: Tensor, weight_scale: Tensor,
                    rope: tuple[Tensor, Tensor] | None = None, turned: int = 0) -> Tensor:
    """:func:`multiply_integers`, then :func:`scale_sums_`, or :func:`scale_and_turn_` with tables.

    :param codes: (M, K) int8
    :param token_scale: M numbers
    :param weight: as for :func:`multiply_integers`
    :param weight_scale: (N,)
    :param rope: cos and sin, (M, D) each
    :param turned: how many heads are turned
    :return: (M, N) float32
    """
    (rows, columns), outputs = codes.shape, weight.shape[0] * LANES
    cos, sin = (None, None) if rope is None else (dense(rope[0]), dense(rope[1]))
    out, codes, token_scale = empty_floats(rows, outputs), dense(codes), dense(token_scale)
    _LIBRARY.multiply_scaled(
        codes.data_ptr(), token_scale.data_ptr(), weight.data_ptr(), weight_scale.data_ptr(),
        None if cos is None else cos.data_ptr(), None if sin is None else sin.data_ptr(), out.data_ptr(), rows, columns,
        outputs, 0 if cos is None else cos.shape[1], turned)
    return out


def attend_and_project(q: Tensor, k: Tensor, v: Tensor, last: Tensor, bias: Tensor | None, weight: Tensor,
                       weight_scale: Tensor, onto: Tensor, rounding: Rounding, smallest_scale: float) -> Tensor:
    """:func:`attend` and a rounded linear behind it, on top of the residual stream, where ``HAS_INTEGER_PRODUCT``.

    :param q: q, k, v, last and bias as in :func:`attend`
    :param weight: (N, H D) as :func:`lay_out_weight` gives it
    :param weight_scale: (N,)
    :param onto: (B, Q, N)
    :param rounding: of the input of the linear
    :param smallest_scale: of that input
    :return: (B, Q, N)
    """
    _, heads, queries, size = q.shape
    onto, out = dense(onto), empty_floats(*onto.shape)
    scratch = empty_bytes(_LIBRARY.attention_scratch(heads * size, onto.shape[2], size, k.shape[2]))
    last, bias = dense(last), None if bias is None else dense(bias.float())
    for one, (one_q, one_k, one_v) in enumerate(zip(q, k, v, strict=True)):
        _LIBRARY.attend_and_project(
            one_q.data_ptr(), *one_q.stride()[:2], one_k.data_ptr(), *one_k.stride()[:2], one_v.data_ptr(),
            *one_v.stride()[:2], last[one].data_ptr(), None if bias is None else bias[one].data_ptr(),
            weight.data_ptr(), weight_scale.data_ptr(), onto[one].data_ptr(), out[one].data_ptr(), scratch.data_ptr(),
            heads, heads // k.shape[1], queries, size, onto.shape[2], size**-0.5, rounding.largest,
            rounding.clip_ratio / rounding.largest, smallest_scale)
    return out


def feed_forward(x: Tensor, eps: float, wide: Tensor, wide_scale: Tensor, wide_rounding: Rounding, narrow: Tensor,
                 narrow_scale: Tensor, narrow_rounding: Rounding, rotation: tuple[Tensor, Tensor, int] | None,
                 smallest_scale: float) -> Tensor:
    """A norm and a SwiGLU of rounded tokens, on top of the residual stream, where ``HAS_INTEGER_PRODUCT``.

    :param x: (..., C), the stream
    :param eps: of the norm
    :param wide: gate and up as :func:`lay_out_weight` gives them, (2 I, C)
    :param wide_scale: (2 I,)
    :param wide_rounding: of the norm's output
    :param narrow: down, (C, I), laid out
    :param narrow_scale: (C,)
    :param narrow_rounding: of the input of down
    :param rotation: signs, base and right of :func:`rotate`, for the input of down; None leaves it as it is
    :param smallest_scale: of both inputs
    :return: (..., C)
    """
    x, columns, width = dense(x), x.shape[-1], wide.shape[0] * LANES // 2
    signs, base, right = rotation or (None, None, 1)
    n = width if signs is None else signs.numel()
    out, scratch = empty_floats(*x.shape), empty_bytes(_LIBRARY.feed_forward_scratch(columns, width, n))
    _LIBRARY.feed_forward(
        x.data_ptr(), wide.data_ptr(), wide_scale.data_ptr(), None if signs is None else signs.data_ptr(),
        None if base is None else base.data_ptr(), narrow.data_ptr(), narrow_scale.data_ptr(), out.data_ptr(),
        scratch.data_ptr(), x.numel() // columns, columns, width, n, 1 if base is None else base.shape[0], right, eps,
        wide_rounding.largest, wide_rounding.clip_ratio / wide_rounding.largest, narrow_rounding.largest,
        narrow_rounding.clip_ratio / narrow_rounding.largest, smallest_scale)
    return out


def _prepare(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return dense(x), torch.empty(x.shape, dtype=torch.int8, device="cpu"), empty_floats(*x.shape[:-1], 1)
