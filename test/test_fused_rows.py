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

"""What one pass over rows gives is what torch's operations give."""

import ctypes
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sqap_vla_ros import compiled, fused_rows
from sqap_vla_ros.models.llama import RMSNorm
from sqap_vla_ros.models.rope import apply_rope, rope_tables
from sqap_vla_ros.pruning.coverage import TokenDistances
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.integer import pack, quantize_normalized, quantize_tokens
from sqap_vla_ros.quantization.kernels import get_engine
from sqap_vla_ros.quantization.product import IntegerProduct

SHAPES = [(1,), (5,), (3, 1), (1, 7, 33), (2, 3, 256), (112, 768)]


@pytest.fixture
def unfused(monkeypatch):
    """Nothing is fused, as on another device."""
    def turn_off():
        monkeypatch.setattr(fused_rows, "is_fused_for", lambda x: False)
    return turn_off


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request, monkeypatch):
    """What decides who multiplies, and so how a weight is laid out."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


def make_product(dtype: torch.dtype = torch.float32) -> IntegerProduct:
    torch.manual_seed(3)
    tokens = quantize_tokens(torch.randn(1, 9, 160, dtype=dtype), 8)
    codes = torch.randint(-7, 8, (48, 160), dtype=torch.int8)
    engine = get_engine("cpu")
    return IntegerProduct(tokens, engine.prepare(pack(codes, 4), 4, 160), torch.rand(48) * 1e-2, engine)


def values_of(product: IntegerProduct) -> Tensor:
    """In float64, (1, 9, 48)."""
    sums = product.engine.int_matmul(product.tokens.codes[0], product.weight)
    return sums[None] * product.tokens.scale.double() * product.weight_scale.double()


def test_it_takes_what_is_float32_on_the_cpu_and_needs_no_gradient() -> None:
    x = torch.randn(3, 4)
    assert fused_rows.is_fused_for(x)
    assert not any(fused_rows.is_fused_for(other) for other in (
        x.double(), x.bfloat16(), x.to("meta"), x.clone().requires_grad_()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "clip_ratio"), [(4, 1.0), (4, 0.9), (8, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_rounded_alike(shape, bits, clip_ratio, dtype, unfused) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 10 ** torch.randn(*shape[:-1], 1)).to(dtype)
    fused = quantize_tokens(x, bits, clip_ratio), quantize_normalized(x, bits, clip_ratio, 1e-6)
    unfused()
    plain = quantize_tokens(x, bits, clip_ratio), quantize_normalized(x, bits, clip_ratio, 1e-6)
    for found, expected in zip(fused, plain, strict=True):
        # torch's reciprocal is a bit off now and then, so that a value halfway between two codes may go to the other.
        differs = found.codes != expected.codes
        assert found.codes.shape == shape and (found.codes - expected.codes).abs().max() <= 1
        assert differs.float().mean() < 1e-3 and (dtype == torch.bfloat16 or not differs.any())
        assert (found.dtype, found.scale.shape) == (dtype, expected.scale.shape)
        torch.testing.assert_close(found.scale, expected.scale, rtol=2e-6, atol=0.0)
    assert torch.equal(fused[0].scale, plain[0].scale)


def test_halves_go_to_the_even_code_and_zeros_stay() -> None:
    x = torch.tensor([[7.0, 0.5, 1.5, -2.5, -0.5], [0.0] * 5])
    assert quantize_tokens(x, 4).codes.tolist() == [[7, 0, 2, -2, 0], [0] * 5]
    assert torch.isfinite(quantize_normalized(x, 4, 1.0, 1e-6).scale).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_leaves_a_scale_that_is_not(value) -> None:
    x = torch.randn(2, 40)
    x[1, 17] = value
    for tokens in (quantize_tokens(x, 4, 0.9), quantize_normalized(x, 4, 0.9, 1e-6)):
        assert torch.isfinite(tokens.dequantize()[0]).all() and not torch.isfinite(tokens.scale[1])


def test_rows_that_do_not_lie_side_by_side_are_read_right() -> None:
    x = torch.randn(2, 6, 4, 8).transpose(1, 2)
    found, expected = quantize_tokens(x, 8), quantize_tokens(x.contiguous(), 8)
    assert torch.equal(found.codes, expected.codes) and torch.equal(found.scale, expected.scale)


def test_quantized_norm_is_rounding_behind_the_norm() -> None:
    x = torch.randn(5, 96)
    found, expected = quantize_normalized(x, 8, 1.0, 1e-6), quantize_tokens(RMSNorm(96, 1e-6)(x), 8)
    # A value halfway between two codes may go either way where the norm is divided by first.
    assert (found.codes - expected.codes).abs().max() <= 1 and (found.codes != expected.codes).float().mean() < 0.02
    torch.testing.assert_close(found.scale, expected.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [None, torch.arange(48.0)])
def test_products_are_scaled(dtype, bias, threads) -> None:
    product = make_product(dtype)
    expected = values_of(product) + (0.0 if bias is None else bias.double())
    found = product.scaled(bias)
    assert found.dtype == dtype and found.shape == (1, 9, 48)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("turned", [0, 2, 6])
@pytest.mark.parametrize("size", [8, 48])
def test_heads_are_turned_as_the_rotary_embedding_turns_them(turned, size, threads) -> None:
    product, turned = make_product(), min(turned, 48 // size)
    rope = rope_tables(torch.arange(9)[None] * 5, size, 10000.0, torch.float32)
    heads = product.scaled().view(1, 9, -1, size).transpose(1, 2)
    expected = torch.cat((apply_rope(heads[:, :turned], *rope), heads[:, turned:]), dim=1)
    found = product.turned(*rope.flatten(), turned)
    assert found is not None
    torch.testing.assert_close(found.view(1, 9, -1, size).transpose(1, 2), expected)


def test_what_cannot_be_turned_in_one_pass_says_so() -> None:
    table = torch.ones(9, 8, dtype=torch.float64)
    assert make_product(torch.float64).turned(table, table, 2) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gated_products_are_swiglu(dtype, threads) -> None:
    product = make_product(dtype)
    gate, up = values_of(product).chunk(2, dim=-1)
    found = product.gated()
    assert found.dtype == dtype and found.shape == (1, 9, 24)
    torch.testing.assert_close(found.double(), F.silu(gate) * up,
                               rtol=1e-1 if dtype == torch.bfloat16 else 2e-6, atol=1e-6)


def test_gate_holds_over_the_whole_range_of_floats() -> None:
    def gate(values: Tensor) -> Tensor:
        # Sums and weight scales of 1: silu of the token scale, times the token scale.
        sums = torch.ones(len(values), 32, dtype=torch.int32)
        return fused_rows.gate_sums(sums, values, torch.ones(32))[:, 0] / values
    values = torch.cat((torch.linspace(-80, 80, 4001), torch.tensor([-1e4, -1e-20, 1e-20, 3e4])))
    values = values[values != 0.0]
    torch.testing.assert_close(gate(values), F.silu(values.double()).float(), rtol=1e-5, atol=1e-30)
    assert torch.isnan(gate(torch.tensor([float("nan")]))).all()


@pytest.mark.parametrize(("size", "block"), [(768, None), (256, None), (4096, None), (11008, None), (96, 32), (64, 16),
                                             (1152, None), (64, None), (96, None)])
def test_rotation_is_that_of_its_factors(size, block, unfused) -> None:
    torch.manual_seed(0)
    rotation, x = HadamardRotation(size, 7, block=block), torch.randn(2, 3, size)
    found = rotation(x)
    unfused()
    torch.testing.assert_close(found, rotation(x), rtol=1e-5, atol=1e-5)
    wide = HadamardRotation(size, 7, block=block, dtype=torch.float64)(x.double())
    torch.testing.assert_close(found.double(), wide, rtol=1e-5, atol=1e-5)


def test_rotation_reads_rows_that_do_not_lie_side_by_side() -> None:
    rotation, x = HadamardRotation(64, 1), torch.randn(2, 6, 4, 64).transpose(1, 2)
    assert torch.equal(rotation(x), rotation(x.contiguous())) and rotation(x).is_contiguous()


def test_farthest_points_are_taken_one_by_one() -> None:
    torch.manual_seed(0)
    between = torch.randint(0, 50, (40, 40)).float()
    table = (between + between.T + torch.rand(40)).fill_diagonal_(-1.0)
    nearest, expected, left = table[3].clone(), [], table[3].clone()
    for _ in range(12):
        expected.append(int(left.argmax()))
        left = torch.minimum(left, table[expected[-1]])
    assert fused_rows.pick_farthest_(nearest, table, 12).tolist() == expected and torch.equal(nearest, left)
    assert fused_rows.pick_farthest_(nearest, table, 0).tolist() == []
    strange = torch.full((5,), float("nan"))
    assert all(0 <= index < 5 for index in fused_rows.pick_farthest_(strange, torch.ones(5, 5), 3).tolist())


@pytest.mark.parametrize(("batch", "heads", "kv_heads", "size"), [(1, 4, 4, 64), (2, 6, 2, 80), (1, 1, 1, 16)])
@pytest.mark.parametrize(("length", "rows"), [(1, 1), (5, 5), (67, 67), (67, 1), (90, 33)])
@pytest.mark.parametrize("apart", [True, False])
def test_attention_is_that_of_the_keys_seen(batch, heads, kv_heads, size, length, rows, apart) -> None:
    torch.manual_seed(0)
    last = torch.stack([torch.randperm(length)[:rows].sort().values for _ in range(batch)])
    q, k, v = (torch.randn(batch, count, heads, size) * 3 if apart else torch.randn(batch, heads, count, size)
               for count, heads in ((rows, heads), (length, kv_heads), (length, kv_heads)))
    if apart:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = last[:, None, :, None] >= torch.arange(length)
    wide_k, wide_v = (part.double().repeat_interleave(heads // kv_heads, 1) for part in (k, v))
    expected = F.scaled_dot_product_attention(q.double(), wide_k, wide_v, attn_mask=mask)
    found = fused_rows.attend(q, k, v, last)
    bias = torch.randn(batch, length + 1)[:, 1:]
    wide_mask = torch.where(mask, bias[:, None, None].double(), float("-inf"))
    biased = F.scaled_dot_product_attention(q.double(), wide_k, wide_v, attn_mask=wide_mask)
    torch.testing.assert_close(fused_rows.attend(q, k, v, last, bias).double(), biased.transpose(1, 2).flatten(2),
                               rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.double(), expected.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-4)


def test_attention_to_what_is_not_a_number_is_not_one() -> None:
    q, k, v = torch.randn(3, 1, 2, 9, 16)
    v[0, 0, 4, 3] = float("nan")
    found = fused_rows.attend(q, k, v, torch.arange(9)[None]).view(9, 2, 16)
    assert torch.isnan(found[4:, 0, 3]).all()


def test_attention_is_left_to_torch_where_that_is_quicker(monkeypatch) -> None:
    x = torch.randn(1, 2, 4, 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert fused_rows.can_attend(x, x, x)
    assert not fused_rows.can_attend(x.double(), x, x) and not fused_rows.can_attend(x[..., :8], x[..., :8], x[..., :8])
    assert not fused_rows.can_attend(x, x.transpose(-1, -2), x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not fused_rows.can_attend(x, x, x)


@pytest.mark.parametrize("count", [1, 2])
def test_scales_that_do_not_lie_side_by_side_are_read_right(count, monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    whole = quantize_tokens(torch.randn(3, 40, 160), 8)
    some, same = whole.take(5), quantize_tokens(whole.take(5).dequantize(), 8)
    same = type(same)(some.codes.contiguous(), some.scale.contiguous(), same.dtype)
    assert not some.scale.is_contiguous()
    product, table = make_product(), torch.rand(15, 8)
    for way in (IntegerProduct.scaled, IntegerProduct.gated, lambda one: one.turned(table, -table, 3)):
        found, expected = (way(dataclasses.replace(product, tokens=tokens)) for tokens in (some, same))
        assert torch.equal(found, expected)


def test_what_it_writes_to_does_not_depend_on_defaults() -> None:
    x = torch.randn(4, 64)
    expected = quantize_tokens(x, 4), HadamardRotation(64, 1)(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = quantize_tokens(x, 4), HadamardRotation(64, 1, dtype=torch.float32)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found[0].scale, expected[0].scale) and torch.equal(found[1], expected[1])


def test_library_of_other_sources_is_refused(tmp_path) -> None:
    (tmp_path / "other.c").write_text("int other;")
    library = next(Path(fused_rows.__file__).parent.glob("_fused_rows*.so"))
    with pytest.raises(ImportError, match="compiled from other sources than those beside it; run `make`"):
        compiled._check_sources(ctypes.CDLL(str(library)), tmp_path, library)


needs_product = pytest.mark.skipif(not fused_rows.HAS_INTEGER_PRODUCT, reason="needs AVX-512 VNNI")


@needs_product
@pytest.mark.parametrize(("rows", "columns", "outputs"), [(1, 4, 16), (7, 12, 16), (49, 256, 80), (112, 768, 256),
                                                          (266, 256, 192)])
def test_integer_product_is_exact(rows, columns, outputs) -> None:
    torch.manual_seed(0)
    a = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    w = torch.randint(-127, 128, (outputs, columns), dtype=torch.int8)
    expected = a.int() @ w.int().T
    laid_out = fused_rows.lay_out_weight(w)
    assert torch.equal(fused_rows.multiply_integers(a, laid_out), expected)
    assert torch.equal(fused_rows.multiply_integers(a, laid_out[-1:]), expected[:, -16:])
    most = torch.full((16, 1024), 127, dtype=torch.int8)
    assert fused_rows.multiply_integers(most, fused_rows.lay_out_weight(most)).eq(127**2 * 1024).all()


def test_cosine_distances_are_whole_numbers_and_those_of_torch(monkeypatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    calls = []
    monkeypatch.setattr(fused_rows, "cosine_steps", lambda *a, f=fused_rows.cosine_steps: (calls.append(1), f(*a))[1])
    for count, width in ((1, 3), (256, 256), (77, 40), (50, 16)):
        features = torch.randn(count, width) * 10 ** torch.randn(count, 1)
        features[0] = 0.0
        if count > 9:
            features[5], features[9, 1] = features[7] * 3.0, float("nan")
        found = TokenDistances.of_features(features).between
        with monkeypatch.context() as patch:
            patch.setattr(fused_rows, "is_fused_for", lambda _: False)
            expected = TokenDistances.of_features(features).between
        assert torch.equal(found, found.T) and torch.equal(found, found.round())
        assert float((found - expected).abs().max()) <= 1.0 and float((found != expected).float().mean()) < 0.01
    assert len(calls) == 4
