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

"""Rounding, packing and unpacking, by numbers."""

import math

import numpy as np
import pytest
import torch

from sqap_vla_ros.quantization.integer import largest_code, pack, quantize_tokens, quantize_weight, unpack


@pytest.mark.parametrize(("bits", "largest"), [(4, 7), (8, 127)])
def test_codes_are_symmetric(bits: int, largest: int) -> None:
    assert largest_code(bits) == largest
    x = torch.randn(50, 33)
    positive, negative = quantize_tokens(x, bits), quantize_tokens(-x, bits)
    assert positive.codes.dtype == torch.int8
    assert int(positive.codes.abs().max()) == largest
    assert torch.equal(positive.codes, -negative.codes)
    assert torch.equal(positive.scale, negative.scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_at_most_half_a_step(bits: int) -> None:
    x = torch.randn(64, 100, dtype=torch.float64)
    tokens = quantize_tokens(x, bits)
    assert tokens.scale.shape == (64, 1)
    assert bool(((tokens.dequantize() - x).abs() <= 0.5 * tokens.scale * (1 + 1e-12)).all())
    assert torch.allclose(tokens.scale[:, 0], x.abs().amax(1) / largest_code(bits))


def test_gaussian_tokens_reach_the_expected_snr(sqnr_db) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 256)
    whole, clipped = (sqnr_db(x, quantize_tokens(x, 4, ratio).dequantize()) for ratio in (1.0, 0.9))
    assert whole == pytest.approx(18.2, abs=0.5)
    assert clipped > whole + 0.3
    assert sqnr_db(x, quantize_tokens(x, 8).dequantize()) == pytest.approx(43.6, abs=0.5)


def test_clipped_tokens_stay_in_range() -> None:
    tokens = quantize_tokens(torch.tensor([[10.0, -10.0, 1.0]]), 4, 0.5)
    assert tokens.codes.tolist() == [[7, -7, 1]]
    assert tokens.scale.item() == pytest.approx(5.0 / 7.0)


def test_zero_and_tiny_tokens_are_zero() -> None:
    tokens = quantize_tokens(torch.tensor([[0.0, 0.0], [1e-38, -1e-38]]), 4)
    assert torch.equal(tokens.codes, torch.zeros(2, 2, dtype=torch.int8))
    assert bool(torch.isfinite(tokens.dequantize()).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_does_not_become_finite(bad: float) -> None:
    tokens = quantize_tokens(torch.tensor([[1.0, bad], [1.0, 2.0]]), 4)
    assert not math.isfinite(tokens.scale[0, 0].item())
    assert math.isfinite(tokens.scale[1, 0].item())


def test_half_precision_tokens_are_rounded_in_float32() -> None:
    x = torch.randn(8, 64).bfloat16()
    tokens = quantize_tokens(x, 8)
    assert torch.equal(tokens.codes, quantize_tokens(x.float(), 8).codes)
    assert tokens.dequantize().dtype == torch.bfloat16 and tokens.scale.dtype == torch.float32


@pytest.mark.parametrize("bits", [4, 8])
def test_weight_has_one_scale_per_output_channel(bits: int) -> None:
    weight = torch.randn(24, 40) * torch.logspace(-3, 3, 24)[:, None]
    codes, scale = quantize_weight(weight, bits)
    assert codes.shape == (24, 40) and scale.shape == (24, 1) and scale.dtype == torch.float32
    assert torch.equal(codes.abs().amax(1), torch.full((24,), largest_code(bits), dtype=torch.int8))
    assert bool(((codes * scale - weight).abs() <= 0.5 * scale * (1 + 1e-5)).all())


def test_searched_clip_is_never_worse_and_helps(sqnr_db) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256)
    plain_codes, plain_scale = quantize_weight(weight, 4)
    codes, scale = quantize_weight(weight, 4, smallest_clip_ratio=0.5, steps=26)
    error = (codes * scale - weight).square().sum(1)
    plain_error = (plain_codes * plain_scale - weight).square().sum(1)
    assert bool((error <= plain_error).all())
    assert sqnr_db(weight, codes * scale) - sqnr_db(weight, plain_codes * plain_scale) > 1.0


def test_zero_channel_stays_zero() -> None:
    weight = torch.randn(3, 8)
    weight[1] = 0.0
    codes, scale = quantize_weight(weight, 4, smallest_clip_ratio=0.5, steps=5)
    assert codes[1].tolist() == [0] * 8 and bool(torch.isfinite(scale).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_every_group_is_rounded_as_if_it_were_alone(bits: int) -> None:
    weight = torch.randn(6, 192) * torch.logspace(-2, 2, 192)
    codes, scale = quantize_weight(weight, bits, group_size=64, smallest_clip_ratio=0.5, steps=26)
    assert codes.shape == (6, 192) and scale.shape == (6, 3) and scale.dtype == torch.float32
    for group, columns in enumerate((slice(0, 64), slice(64, 128), slice(128, 192))):
        alone, its_scale = quantize_weight(weight[:, columns], bits, smallest_clip_ratio=0.5, steps=26)
        assert torch.equal(codes[:, columns], alone) and torch.equal(scale[:, [group]], its_scale)
    whole, whole_scale = quantize_weight(weight, bits, smallest_clip_ratio=0.5, steps=26)
    restored = (codes.view(6, 3, 64) * scale[..., None]).view(6, 192)
    assert (restored - weight)[:, :64].square().sum() < 0.05 * (whole * whole_scale - weight)[:, :64].square().sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [1, 3, 4, 7, 8, 9, 64, 257])
def test_packing_is_undone(bits: int, columns: int) -> None:
    largest = largest_code(bits)
    codes = torch.randint(-largest, largest + 1, (5, columns), dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (5, math.ceil(columns * bits / 32))
    assert torch.equal(unpack(packed, bits, columns), codes)


def test_layout_is_little_endian_nibbles_plus_eight() -> None:
    codes = torch.tensor([[-7, -1, 0, 1, 2, 3, 4, 7, 5]], dtype=torch.int8)
    packed = pack(codes, 4).numpy()
    assert packed.view(np.uint32).tolist() == [[0xFCBA9871, 0x0000000D]]
    assert packed.view(np.uint8)[0, :2].tolist() == [0x71, 0x98]
    assert pack(torch.tensor([[-127, 0, 1, 127]], dtype=torch.int8), 8).numpy().view(np.uint8).tolist() == [
        [1, 128, 129, 255]]
