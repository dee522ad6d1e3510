"""A quantized linear equals the float product of what its integers stand for."""

import copy

import pytest
import torch
from torch import nn

from sqap_vla_ros.models.llama import RMSNorm
from sqap_vla_ros.quantization.integer import quantize_tokens
from sqap_vla_ros.quantization.kernels import ENGINES, get_engine
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm

WIDTHS = {"W4A4": (4, 4), "W4A8": (4, 8), "W8A8": (8, 8)}


def build(width: str, *, columns: int = 96, channels: int = 40, bias: bool = True, engine: str = "cpu",
          clip_ratio: float = 1.0) -> tuple[nn.Linear, QuantLinear]:
    torch.manual_seed(1)
    weight_bits, act_bits = WIDTHS[width]
    linear = nn.Linear(columns, channels, bias=bias)
    return linear, QuantLinear.from_linear(linear, weight_bits=weight_bits, act_bits=act_bits,
                                           act_clip_ratio=clip_ratio, engine=get_engine(engine),
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


@pytest.mark.parametrize("width", WIDTHS)
def test_engines_agree_to_the_bit(width: str) -> None:
    x = torch.randn(2, 33, 95)
    outputs = [build(width, columns=95, channels=37, engine=engine)[1](x) for engine in ENGINES]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_bytes_are_counted_as_stored() -> None:
    _, quantized = build("W4A4", columns=256, channels=256, bias=False)
    assert quantized.stored_bytes == 256 * 256 // 2 + 4 * 256
    assert quantized.prepared_bytes == 256 * 256
    assert {key: tuple(value.shape) for key, value in quantized.state_dict().items()} == {
        "weight_packed": (256, 32), "weight_scale": (256, 1)}
    _, wide = build("W8A8", columns=256, channels=256, bias=True)
    assert wide.stored_bytes == 256 * 256 + 4 * 256 + 4 * 256


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


def test_loading_a_state_replaces_what_the_engine_multiplies() -> None:
    _, first = build("W4A4")
    torch.manual_seed(9)
    other_linear = nn.Linear(96, 40)
    second = QuantLinear.from_linear(other_linear, weight_bits=4, act_bits=4, engine=get_engine("cpu"))
    x = torch.randn(3, 96)
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
