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

"""A quantized linear equals the float product of what its integers stand for."""

import copy
import weakref

import pytest
import torch
from torch import nn

from sqap_vla_ros.models.llama import RMSNorm
from sqap_vla_ros.quantization.integer import quantize_tokens, take_rows, unpack
from sqap_vla_ros.quantization.kernels import ENGINES, get_engine
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, Siblings

WIDTHS = {"W4A4": (4, 4), "W4A8": (4, 8), "W8A8": (8, 8)}
ALL_WIDTHS = {**WIDTHS, "W8A4": (8, 4), "W4A16": (4, 16), "W8A16": (8, 16)}


def build(width: str, *, columns: int = 96, channels: int = 40, bias: bool = True, engine: str = "cpu",
          clip_ratio: float = 1.0, group_size: int | None = None) -> tuple[nn.Linear, QuantLinear]:
    torch.manual_seed(1)
    weight_bits, act_bits = ALL_WIDTHS[width]
    linear = nn.Linear(columns, channels, bias=bias)
    return linear, QuantLinear.from_linear(linear, weight_bits=weight_bits, act_bits=act_bits,
                                           act_clip_ratio=clip_ratio, engine=get_engine(engine), group_size=group_size,
                                           smallest_clip_ratio=0.5, clip_steps=26)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 5, 96), (1, 161, 96)])
def test_output_is_the_product_of_what_the_codes_stand_for(width: str, shape: tuple[int, ...]) -> None:
    _, quantized = build(width, clip_ratio=0.9)
    x = torch.randn(shape)
    expected = quantize_tokens(x.double(), quantized.act_bits, 0.9).dequantize() @ quantized.dequantize().double().T
    expected += quantized.bias
    out = quantized(x)
    assert out.dtype == torch.float32 and out.shape == (*shape[:-1], 40)
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "least_db"), [("W4A4", 14.5), ("W4A8", 19.0), ("W8A8", 38.0)])
def test_snr_against_the_float_layer(width: str, least_db: float, sqnr_db) -> None:
    linear, quantized = build(width, columns=256, channels=256, bias=False, clip_ratio=1.0)
    x = torch.randn(64, 256)
    assert least_db < sqnr_db(linear(x), quantized(x)) < least_db + 6.0


@pytest.mark.parametrize(("columns", "group_size"), [(95, None), (128, 64), (384, 128)])
@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_engines_agree_to_the_bit(width: str, columns: int, group_size: int | None) -> None:
    x = torch.randn(2, 33, columns)
    outputs = [build(width, columns=columns, channels=37, engine=engine, group_size=group_size)[1](x)
               for engine in ENGINES]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("width", ALL_WIDTHS)
def test_groups_have_their_own_scales(width: str, sqnr_db) -> None:
    linear, quantized = build(width, columns=192, group_size=64)
    with torch.no_grad():
        linear.weight[:, :64] *= 20.0
        linear.weight[:, 128:] /= 20.0
    grouped, whole = (QuantLinear.from_linear(linear, weight_bits=quantized.weight_bits, act_bits=quantized.act_bits,
                                              engine=quantized.engine, group_size=size) for size in (64, None))
    assert grouped.weight_scale.shape == (40, 3) and grouped.group_size == 64 and whole.group_size is None
    assert sqnr_db(linear.weight[:, 128:], grouped.dequantize()[:, 128:]) > 18.0
    assert sqnr_db(linear.weight[:, 128:], whole.dequantize()[:, 128:]) < 18.0
    x = torch.randn(2, 5, 192)
    rounded = x.double() if quantized.act_bits == 16 else quantize_tokens(x.double(), quantized.act_bits).dequantize()
    expected = rounded @ grouped.dequantize().double().T + linear.bias
    assert torch.allclose(grouped(x).double(), expected, rtol=1e-5, atol=1e-4)


def test_groups_are_those_of_the_integers() -> None:
    _, quantized = build("W4A4", columns=128, bias=False, group_size=64)
    x = torch.randn(3, 128)
    tokens = quantize_tokens(x, 4)
    codes = unpack(quantized.weight_packed, 4, 128)
    sums = [tokens.codes[:, part].int() @ codes[:, part].int().T for part in (slice(0, 64), slice(64, 128))]
    expected = (sums[0] * quantized.weight_scale[:, 0] + sums[1] * quantized.weight_scale[:, 1]) * tokens.scale
    assert torch.equal(quantized(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sixteen_activation_bits_multiply_the_floats_that_codes_stand_for(dtype: torch.dtype) -> None:
    _, quantized = build("W4A16")
    x = torch.randn(2, 7, 96).to(dtype)
    out = quantized(x)
    assert out.dtype == dtype
    assert torch.equal(out, nn.functional.linear(x, quantized.dequantize().to(dtype), quantized.bias.to(dtype)))
    assert {key: value.dtype for key, value in quantized.state_dict().items()} == {
        "weight_packed": torch.int32, "weight_scale": torch.float32, "bias": torch.float32}
    assert quantized.stored_bytes == 40 * 96 // 2 + 40 * 4 + 40 * 4 and quantized.prepared_bytes == 40 * 96 * 4
    assert quantized.width == "W4A16"


def test_bytes_are_counted_as_stored() -> None:
    _, quantized = build("W4A4", columns=256, channels=256, bias=False)
    assert quantized.stored_bytes == 256 * 256 // 2 + 4 * 256
    assert quantized.prepared_bytes == 256 * 256
    assert {key: tuple(value.shape) for key, value in quantized.state_dict().items()} == {
        "weight_packed": (256, 32), "weight_scale": (256, 1)}
    _, wide = build("W8A8", columns=256, channels=256, bias=True)
    assert wide.stored_bytes == 256 * 256 + 4 * 256 + 4 * 256


@pytest.mark.parametrize(("group_size", "bits"), [(None, 4.125), (128, 4.25), (64, 4.5)])
def test_bits_per_weight_count_the_scales(group_size: int | None, bits: float) -> None:
    _, quantized = build("W4A4", columns=256, group_size=group_size)
    assert quantized.bits_per_weight == bits


def test_rounded_tokens_are_taken_as_they_are() -> None:
    _, quantized = build("W4A4", clip_ratio=0.8)
    x = torch.randn(1, 7, 96)
    assert torch.equal(quantized(quantize_tokens(x, 4, 0.8)), quantized(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norm_and_rounding_in_one_equal_both_in_turn(dtype: torch.dtype) -> None:
    norm = RMSNorm(96, 1e-6)
    x = (torch.randn(1, 50, 96) * 3.0).to(dtype)
    rounded = QuantRMSNorm(1e-6, 8, 1.0)(x)
    assert rounded.shape == (1, 50, 96) and rounded.dtype == dtype
    expected = quantize_tokens(norm(x.to(torch.float64)), 8)
    difference = (rounded.codes.int() - expected.codes.int()).abs()
    assert int(difference.max()) <= 1 and float(difference.float().mean()) < 1e-2  # values halfway between two codes
    assert torch.allclose(rounded.scale.double(), expected.scale, rtol=1e-5)


@pytest.mark.parametrize(("width", "group_size"), [("W4A4", None), ("W4A4", 64), ("W4A16", None)])
def test_loading_a_state_replaces_what_the_engine_multiplies(width: str, group_size: int | None) -> None:
    _, first = build(width, columns=128, group_size=group_size)
    torch.manual_seed(9)
    second = QuantLinear.from_linear(nn.Linear(128, 40), weight_bits=4, act_bits=first.act_bits,
                                     engine=get_engine("cpu"), group_size=group_size)
    x = torch.randn(3, 128)
    assert not torch.allclose(first(x), second(x))
    nn.Sequential(first).load_state_dict(nn.Sequential(second).state_dict())
    assert torch.equal(first(x), second(x))


def test_copies_are_independent() -> None:
    _, quantized = build("W4A4")
    x = torch.randn(3, 96)
    before = quantized(x)
    other = copy.deepcopy(quantized)
    other.weight_scale.mul_(2.0)
    assert torch.equal(quantized(x), before)
    assert not torch.equal(other(x), before)


def test_what_is_not_finite_stays_not_finite() -> None:
    _, quantized = build("W4A4")
    x = torch.randn(4, 96)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    finite = torch.isfinite(quantized(x)).all(-1)
    assert finite.tolist() == [True, False, False, True]


def test_output_has_the_type_of_the_input() -> None:
    _, quantized = build("W8A8")
    x = torch.randn(4, 96)
    assert quantized(x.bfloat16()).dtype == torch.bfloat16
    assert quantized(x.double()).dtype == torch.float64


def build_siblings(*, widths: tuple[str, ...] = ("W4A4",) * 3, bias: bool = False, engine: str = "cpu",
                   group_size: int | None = None) -> list[QuantLinear]:
    return [build(width, columns=128, channels=channels, bias=bias, engine=engine, group_size=group_size,
                  clip_ratio=0.9)[1] for width, channels in zip(widths, (64, 32, 16), strict=True)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_siblings_give_to_the_bit_what_each_gives(engine: str, dtype: torch.dtype, rounded: bool, threads: int) -> None:
    torch.set_num_threads(threads)  # by which weights are laid out
    linears = build_siblings(engine=engine)
    x = torch.randn(2, 7, 128).to(dtype)
    given = quantize_tokens(x, 4, 0.9) if rounded else x
    expected = torch.cat([linear(given) for linear in linears], dim=-1)
    siblings = Siblings()
    for _ in range(2):
        out = siblings.multiply(linears, given).scaled()
        assert out.dtype == dtype and torch.equal(out, expected)
    assert torch.equal(torch.cat([linear(given) for linear in linears], dim=-1), expected)
    assert torch.equal(siblings.multiply(linears, given, 1).scaled(), expected[..., 64:])
    assert torch.equal(siblings.multiply(linears, given, end=1).scaled(), expected[..., :64])


@pytest.mark.parametrize("threads", [1, 2])
def test_siblings_hold_their_weight_once(threads: int) -> None:
    torch.set_num_threads(threads)
    linears = build_siblings()
    Siblings().multiply(linears, torch.randn(1, 3, 128))
    begin = linears[0].prepared.data_ptr()
    assert [linear.prepared.data_ptr() - begin for linear in linears] == [0, 64 * 128, 96 * 128]
    assert [linear.prepared_bytes for linear in linears] == [64 * 128, 32 * 128, 16 * 128]


@pytest.mark.parametrize("threads", [1, 2])
def test_siblings_notice_another_weight(threads: int) -> None:
    torch.set_num_threads(threads)
    linears, siblings, x = build_siblings(), Siblings(), torch.randn(1, 3, 128)
    before = siblings.multiply(linears, x).scaled()
    other = QuantLinear.from_linear(nn.Linear(128, 32, bias=False), weight_bits=4, act_bits=4, act_clip_ratio=0.9,
                                    engine=get_engine("cpu"))
    linears[1].load_state_dict(other.state_dict())
    after = siblings.multiply(linears, x).scaled()
    assert torch.equal(after, torch.cat([linear(x) for linear in linears], dim=-1)) and not torch.equal(after, before)
    copied_linears, copied = copy.deepcopy((linears, siblings))
    copied_linears[0].load_state_dict(QuantLinear.from_linear(
        nn.Linear(128, 64, bias=False), weight_bits=4, act_bits=4, engine=get_engine("cpu")).state_dict())
    assert not torch.equal(copied.multiply(copied_linears, x).scaled(), after)
    assert torch.equal(siblings.multiply(linears, x).scaled(), after)


@pytest.mark.parametrize("linears", [
    build_siblings(widths=("W4A4", "W4A8", "W4A4")), build_siblings(widths=("W4A16",) * 3), build_siblings(bias=True),
    build_siblings(group_size=64), [nn.Linear(128, 4), *build_siblings()[:2]]])
def test_siblings_of_different_kinds_go_each_their_own_way(linears: list[nn.Module]) -> None:
    x, siblings = torch.randn(1, 3, 128), Siblings()
    assert siblings.multiply(linears, x) is None and siblings.multiply(linears, x) is None


def test_siblings_forget_float_linears() -> None:
    linears, siblings = [nn.Linear(128, 16) for _ in range(2)], Siblings()
    assert siblings.multiply(linears, torch.randn(1, 3, 128)) is None
    watched = weakref.ref(linears[0])
    linears[0] = build_siblings()[0]
    assert watched() is None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_converted_layer_still_multiplies(threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    _, quantized = build("W4A8", channels=48)
    x = torch.randn(2, 5, 96)
    expected = quantized(x)
    assert torch.allclose(copy.deepcopy(quantized).to(dtype)(x), expected, rtol=2e-2, atol=2e-2)


def test_rows_of_a_batch_are_taken_from_each_its_own() -> None:
    x, rows = torch.randn(3, 11, 6), torch.stack([torch.randperm(11)[:4].sort().values for _ in range(3)])
    expected = x.gather(1, rows[..., None].expand(-1, -1, 6))
    assert torch.equal(take_rows(x, rows), expected) and torch.equal(take_rows(x[:1], rows[:1]), expected[:1])
    tokens = quantize_tokens(x, 8)
    assert torch.equal(tokens.take(rows).dequantize(), quantize_tokens(expected, 8).dequantize())
