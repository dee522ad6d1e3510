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

"""Compensated rounding, against the textbook and against rounding to nearest."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.gptq import Hessian, factorize, round_with_compensation
from sqap_vla_ros.quantization.integer import largest_code, quantize_tokens, quantize_weight

SEARCH: dict[str, Any] = {"smallest_clip_ratio": 0.5, "steps": 26}


def correlated(tokens: int, columns: int, rank: int) -> Tensor:
    """Inputs that lie near a subspace, with channels of different strength."""
    mixed = torch.randn(tokens, rank) @ torch.randn(rank, columns) + 0.1 * torch.randn(tokens, columns)
    return mixed * torch.logspace(-0.5, 0.5, columns)[torch.randperm(columns)]


def hessian_of(x: Tensor, act_bits: int = 16, clip_ratio: float = 1.0) -> Hessian:
    hessian = Hessian(x.shape[-1], act_bits, clip_ratio, x.device)
    hessian.add(x)
    return hessian


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    return (codes.view(codes.shape[0], scale.shape[1], -1) * scale[..., None].double()).view(codes.shape)


def output_error(weight: Tensor, codes: Tensor, scale: Tensor, x: Tensor) -> float:
    return float(((weight.double() - dequantize(codes, scale)) @ x.double().T).square().sum())


def round_by_the_book(weight: Tensor, damped: Tensor, scale: Tensor, order: list[int], largest: int) -> Tensor:
    """Optimal brain quantization, one column after another, each time with a fresh inverse of what is left."""
    remaining, codes = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.int8)
    size = weight.shape[1] // scale.shape[1]
    for done, column in enumerate(order):
        left = order[done:]
        inverse = torch.linalg.inv(damped[left][:, left])
        step = scale[:, column // size].double()
        code = (remaining[:, column] / step).round().clamp(-largest, largest)
        error = (remaining[:, column] - code * step) / inverse[0, 0]
        remaining[:, left] -= torch.outer(error, inverse[0])
        codes[:, column] = code.to(torch.int8)
    return codes


def test_hessian_is_that_of_the_rounded_tokens() -> None:
    first, second = torch.randn(1, 40, 24), torch.randn(1, 33, 24).double()
    hessian = Hessian(24, 4, 0.9, torch.device("cpu"))
    hessian.add(first)
    hessian.add(second)
    tokens = torch.cat([quantize_tokens(x.double(), 4, 0.9).dequantize()[0] for x in (first, second)])
    assert hessian.matrix.dtype == torch.float64 and hessian.tokens == 73
    assert torch.allclose(hessian.matrix, 2.0 * tokens.T @ tokens, rtol=1e-5, atol=1e-5)
    plain = hessian_of(first)
    assert torch.allclose(plain.matrix, 2.0 * first[0].double().T @ first[0].double(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain.matrix, hessian_of(first, 4).matrix, rtol=1e-2)


@pytest.mark.parametrize("order_by_activation", [True, False])
@pytest.mark.parametrize(("columns", "group_size", "bits"), [(160, None, 4), (192, 64, 4), (160, None, 8)])
def test_codes_are_those_of_the_textbook(columns: int, group_size: int | None, bits: int,
                                         order_by_activation: bool) -> None:
    weight = torch.randn(12, columns)
    hessian = hessian_of(correlated(300, columns, 20))
    factor = factorize(hessian, "layer", damping_ratio=0.02, order_by_activation=order_by_activation)
    codes, scale = round_with_compensation(weight, factor, bits, group_size=group_size, **SEARCH)
    damped = hessian.matrix + 0.02 * hessian.matrix.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    expected_order = hessian.matrix.diagonal().argsort(descending=True, stable=True) if order_by_activation \
        else torch.arange(columns)
    assert torch.equal(factor.order, expected_order)
    expected = round_by_the_book(weight, damped, scale, expected_order.tolist(), largest_code(bits))
    assert torch.equal(codes, expected)
    nearest = (weight / dequantize(torch.ones_like(codes), scale)).round().clamp(-largest_code(bits),
                                                                                largest_code(bits))
    assert float((codes != nearest).double().mean()) > 0.05


def test_factor_is_the_inverse_of_the_damped_hessian() -> None:
    hessian = hessian_of(correlated(100, 48, 8))
    factor = factorize(hessian, "layer", damping_ratio=0.5)
    damped = hessian.matrix + 0.5 * hessian.matrix.diagonal().mean() * torch.eye(48, dtype=torch.float64)
    permuted = damped[factor.order][:, factor.order]
    assert torch.equal(factor.upper, factor.upper.triu())
    identity = factor.upper.T @ factor.upper @ permuted
    assert torch.allclose(identity, torch.eye(48, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("group_size", [None, 64])
@pytest.mark.parametrize("act_bits", [16, 4])
def test_correlated_inputs_keep_their_outputs(act_bits: int, group_size: int | None) -> None:
    weight, x = torch.randn(64, 256), correlated(2000, 256, 40)
    hessian = hessian_of(x, act_bits)
    seen = x if act_bits == 16 else quantize_tokens(x, 4).dequantize()
    nearest = output_error(weight, *quantize_weight(weight, 4, group_size=group_size, **SEARCH), seen)
    ordered, plain = (
        output_error(weight, *round_with_compensation(weight, factorize(hessian, "layer", order_by_activation=order),
                                                      4, group_size=group_size, **SEARCH), seen)
        for order in (True, False))
    most = {16: 0.12, 4: 0.25}[act_bits]
    assert ordered < most * nearest and plain < most * nearest
    assert ordered < plain


@pytest.mark.parametrize("order_by_activation", [True, False])
@pytest.mark.parametrize("group_size", [None, 64])
def test_without_correlation_it_is_nearest(order_by_activation: bool, group_size: int | None) -> None:
    weight = torch.randn(16, 192)
    hessian = Hessian(192, 16, 1.0, torch.device("cpu"))
    hessian.add(torch.diag(torch.rand(192).double() + 0.1))
    codes, scale = round_with_compensation(weight, factorize(hessian, "layer", order_by_activation=order_by_activation),
                                           4, group_size=group_size, **SEARCH)
    nearest, nearest_scale = quantize_weight(weight, 4, group_size=group_size, **SEARCH)
    assert torch.equal(codes, nearest) and torch.equal(scale, nearest_scale)


def test_groups_lie_side_by_side_whatever_the_order() -> None:
    # Each group has a magnitude of its own; a scale that went with the order would miss it by a factor of 100.
    magnitude = torch.tensor([1.0, 0.01, 100.0]).repeat_interleave(64)
    weight, x = torch.randn(16, 192) * magnitude, torch.randn(3000, 192) / magnitude
    factor = factorize(hessian_of(x), "layer")
    assert not torch.equal(factor.order // 64, torch.arange(192) // 64)
    codes, scale = round_with_compensation(weight, factor, 8, group_size=64, **SEARCH)
    assert torch.allclose(scale.mean(0) / torch.tensor([1.0, 0.01, 100.0]), torch.full((3,), 0.02), rtol=0.4)
    relative = (dequantize(codes, scale) - weight).view(16, 3, 64).norm(dim=(0, 2)) / weight.view(16, 3, 64).norm(
        dim=(0, 2))
    assert bool((relative < 0.02).all())


def test_a_silent_channel_is_rounded_to_nearest_and_moves_nothing() -> None:
    weight, x = torch.randn(8, 96), correlated(400, 96, 10)
    x[:, [3, 50]] = 0.0
    others = [column for column in range(96) if column not in (3, 50)]
    codes, scale = round_with_compensation(weight, factorize(hessian_of(x), "layer"), 4, **SEARCH)
    assert torch.equal(codes[:, [3, 50]], (weight / scale)[:, [3, 50]].round().clamp(-7, 7).to(torch.int8))
    assert bool((codes[:, [3, 50]] != 0).any())
    alone = round_with_compensation(weight[:, others], factorize(hessian_of(x[:, others]), "layer"), 4)[0]
    same = round_with_compensation(weight, factorize(hessian_of(x), "layer"), 4)[0]
    covered = weight[:, others].abs().amax(1) == weight.abs().amax(1)  # where the silent ones do not set the scale
    assert int(covered.sum()) >= 4 and torch.equal(same[:, others][covered], alone[covered])


def test_all_channels_silent_is_nearest() -> None:
    weight = torch.randn(8, 32)
    codes, scale = round_with_compensation(weight, factorize(hessian_of(torch.zeros(5, 32)), "layer"), 4)
    nearest, nearest_scale = quantize_weight(weight, 4)
    assert torch.equal(codes, nearest) and torch.equal(scale, nearest_scale)


def test_what_cannot_be_used_is_refused_by_name() -> None:
    few = hessian_of(torch.randn(10, 64))
    with pytest.raises(ConfigError, match=r"'layers\.3\.o_proj' is not positive definite.*raise damping_ratio"):
        factorize(few, "layers.3.o_proj", damping_ratio=0.0)
    assert torch.isfinite(factorize(few, "layers.3.o_proj", damping_ratio=0.01).upper).all()
    with pytest.raises(ConfigError, match="'o_proj' inputs that are not finite"):
        factorize(hessian_of(torch.full((4, 8), float("inf"))), "o_proj")
    with pytest.raises(ConfigError, match="no observation of the calibration runs 'o_proj'"):
        factorize(Hessian(8, 4, 1.0, torch.device("cpu")), "o_proj")
