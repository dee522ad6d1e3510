"""What happens to the rows of a matrix between two integer products, each in one pass, in C.

In torch's own operations the same takes several passes through memory and as many calls, and on a CPU that is what is
left once the products are integers. The results are those of the torch operations beside which these are called, but
for the last bit of a float. All take float32 on the CPU of which nobody wants a gradient; :func:`is_fused_for` tells.
"""

from __future__ import annotations

import ctypes
import hashlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from sqap_vla_ros.errors import InferenceError

LANES = 16
_POINTER, _LENGTH, _NUMBER = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "round_rows": [_POINTER] * 3 + [_LENGTH] * 2 + [_NUMBER] * 3,
    "round_normalized_rows": [_POINTER] * 3 + [_LENGTH] * 2 + [_NUMBER] * 4,
    "scale_rows": [_POINTER] * 4 + [_LENGTH] * 2,
    "scale_and_turn_rows": [_POINTER] * 6 + [_LENGTH] * 4,
    "gate_rows": [_POINTER] * 4 + [_LENGTH] * 2,
    "rotate_rows": [_POINTER] * 5 + [_LENGTH] * 4,
    "attend": ([_POINTER] + [_LENGTH] * 2) * 3 + [_POINTER] * 4 + [_LENGTH] * 4 + [_NUMBER],
    "pick_farthest": [_POINTER] * 3 + [_LENGTH] * 2,
    "multiply_integers": [_POINTER] * 4 + [_LENGTH] * 3,
    "multiply_scaled": [_POINTER] * 7 + [_LENGTH] * 5,
    "feed_forward": [_POINTER] * 10 + [_LENGTH] * 6 + [_NUMBER] * 3,
}


def _load() -> ctypes.CDLL:
    folder = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        path = folder / f"_fused_rows{suffix}"
        if path.exists():
            library = ctypes.CDLL(str(path))
            _check_sources(library, folder, path)
            for name, arguments in _SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
            library.feed_forward_scratch.argtypes = [_LENGTH] * 2
            library.feed_forward_scratch.restype = _LENGTH
            return library
    raise ImportError(f"_fused_rows.c in {folder} is not compiled; install the package with `make`, pip or colcon, "
                      "each of which does that with a C compiler")


def _check_sources(library: ctypes.CDLL, folder: Path, path: Path) -> None:
    # Beside the sources, as in an editable install, the library must be theirs: another would read other arguments.
    sources = sorted(folder.glob("*.c"))
    if sources:
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
        library.fused_sources.restype = ctypes.c_char_p
        if library.fused_sources().decode() != digest:
            raise ImportError(f"{path} was compiled from other sources than those beside it; run `make`, or install "
                              "the package again")


_LIBRARY = _load()
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
    out, token_scale = sums.view(torch.float32), _dense(token_scale)
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
    cos, sin, token_scale = _dense(cos), _dense(sin), _dense(token_scale)
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
    out, token_scale = _empty(sums.shape[0], sums.shape[1] // 2), _dense(token_scale)
    _LIBRARY.gate_rows(sums.data_ptr(), token_scale.data_ptr(), weight_scale.data_ptr(), out.data_ptr(), *out.shape)
    return out


def rotate(x: Tensor, signs: Tensor, base: Tensor, right: int) -> Tensor:
    """(x with signs) (H (x) base (x) H) in blocks, H the Hadamard matrices of powers of two.

    :param x: (..., a whole number of blocks)
    :param signs: (n,), n the size of a block, with the factor that makes the rotation orthonormal
    :param base: (b, b)
    :param right: order of the last of the three, a multiple of ``LANES``; n is a power of two times b times it
    """
    x, out, other = _dense(x), _empty(*x.shape), torch.empty_like(signs)
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
    :param bias: (B, S) float32 added to the logits of each key
    :return: (B, Q, H D)
    """
    batch, heads, queries, size = q.shape
    out, scratch = _empty(batch, queries, heads * size), _empty((size + k.shape[2]) * LANES)
    last, bias = _dense(last), None if bias is None else _dense(bias)
    for one, (one_q, one_k, one_v) in enumerate(zip(q, k, v, strict=True)):
        _LIBRARY.attend(one_q.data_ptr(), *one_q.stride()[:2], one_k.data_ptr(), *one_k.stride()[:2],
                        one_v.data_ptr(), *one_v.stride()[:2], last[one].data_ptr(),
                        None if bias is None else bias[one].data_ptr(), out[one].data_ptr(),
                        scratch.data_ptr(), heads, heads // k.shape[1], queries, size, size**-0.5)
    return out


def pick_farthest_(nearest: Tensor, table: Tensor, count: int) -> Tensor:
    """Take the token that is farthest from all that is kept, again and again.

    :param nearest: (N,) distance of each token to the nearest kept one; changed
    :param table: (N, N) distances between tokens
    :return: (count,) int64 in the order taken, ties to the lower index
    """
    table, picks = _dense(table), torch.empty(count, dtype=torch.int64, device="cpu")
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
    activations, (rows, columns) = _dense(activations), activations.shape
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
    cos, sin = (None, None) if rope is None else (_dense(rope[0]), _dense(rope[1]))
    out, codes, token_scale = _empty(rows, outputs), _dense(codes), _dense(token_scale)
    _LIBRARY.multiply_scaled(
        codes.data_ptr(), token_scale.data_ptr(), weight.data_ptr(), weight_scale.data_ptr(),
        None if cos is None else cos.data_ptr(), None if sin is None else sin.data_ptr(), out.data_ptr(), rows, columns,
        outputs, 0 if cos is None else cos.shape[1], turned)
    return out


def feed_forward(codes: Tensor, token_scale: Tensor, wide: Tensor, wide_scale: Tensor, narrow: Tensor,
                 narrow_scale: Tensor, rotation: tuple[Tensor, Tensor, int] | None, largest: int, clip_ratio: float,
                 smallest_scale: float) -> Tensor:
    """SwiGLU of rounded tokens, whole, where ``HAS_INTEGER_PRODUCT``.

    :param codes: (M, C) int8
    :param token_scale: M numbers
    :param wide: gate and up as :func:`lay_out_weight` gives them, (2 I, C)
    :param wide_scale: (2 I,)
    :param narrow: down, (C, I), laid out
    :param narrow_scale: (C,)
    :param rotation: signs, base and right of :func:`rotate`, for the input of down; None leaves it as it is
    :param largest: code of the input of down; it and the next two as in :func:`round_tokens`
    :return: (M, C)
    """
    (rows, columns), width = codes.shape, wide.shape[0] * LANES // 2
    signs, base, right = rotation or (None, None, 1)
    n = width if signs is None else signs.numel()
    scratch = torch.empty(_LIBRARY.feed_forward_scratch(width, n), dtype=torch.int8, device="cpu")
    out, codes, token_scale = _empty(rows, columns), _dense(codes), _dense(token_scale)
    _LIBRARY.feed_forward(
        codes.data_ptr(), token_scale.data_ptr(), wide.data_ptr(), wide_scale.data_ptr(),
        None if signs is None else signs.data_ptr(), None if base is None else base.data_ptr(), narrow.data_ptr(),
        narrow_scale.data_ptr(), out.data_ptr(), scratch.data_ptr(), rows, columns, width, n,
        1 if base is None else base.shape[0], right, largest, clip_ratio / largest, smallest_scale)
    return out


def _dense(x: Tensor) -> Tensor:
    # To be given a name: what has none may be gone before its address is used.
    return x if x.is_contiguous() else x.contiguous()


def _prepare(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _dense(x), torch.empty(x.shape, dtype=torch.int8, device="cpu"), _empty(*x.shape[:-1], 1)


def _empty(*shape: int) -> Tensor:
    # Whatever torch's defaults are: C writes float32 to the CPU's memory.
    return torch.empty(shape, dtype=torch.float32, device="cpu")
