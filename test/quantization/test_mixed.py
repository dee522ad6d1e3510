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

"""Rows of mixed widths equal the product of what they stand for, and take the space they say."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.quantization.integer import pack, quantize_tokens, unpack
from sqap_vla_ros.quantization.kernels import ENGINES, get_engine
from sqap_vla_ros.quantization.linear import QuantLinear
from sqap_vla_ros.quantization.mixed import WIDTHS, MixedLinear, quantize_rows, round_rows

COLUMNS = 75  # no multiple of the 16, 8 or 4 columns in a word


def draw_bits(rows: int, seed: int = 0) -> Tensor:
    return torch.tensor(WIDTHS)[torch.randint(0, 5, (rows,), generator=torch.Generator().manual_seed(seed))]


def build(row_bits: Tensor, act_bits: int, *, columns: int = COLUMNS, bias: bool = True, engine: str = "cpu",
          clip_ratio: float = 1.0) -> tuple[nn.Linear, MixedLinear]:
    torch.manual_seed(1)
    linear = nn.Linear(columns, len(row_bits), bias=bias)
    return linear, MixedLinear.from_linear(linear, row_bits, act_bits=act_bits, engine=get_engine(engine),
                                           act_clip_ratio=clip_ratio)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 75, 256])
def test_two_bit_codes_stand_sixteen_to_a_word(columns: int) -> None:
    codes = torch.randint(-1, 2, (5, columns), dtype=torch.int8)
    packed = pack(codes, 2)
    assert packed.dtype == torch.int32 and packed.shape == (5, -(-columns // 16))
    assert torch.equal(unpack(packed, 2, columns), codes)
    assert pack(torch.tensor([[-1, 0, 1, 1]], dtype=torch.int8), 2).tolist() == [[0b11_11_10_01]]


def test_two_bit_rows_have_the_least_error_of_all_codes() -> None:
    weight = torch.randn(20, 6, dtype=torch.float64)
    codes, scale = quantize_rows(weight, 2)
    every = torch.tensor(list(itertools.product((-1, 0, 1), repeat=6)), dtype=torch.float64)
    # With given codes the best scale is a projection.
    best = (weight @ every.T).square() / every.square().sum(1).clamp_min(1)
    least = (weight.square().sum(1, keepdim=True) - best).min(1).values
    assert codes.abs().max() == 1 and scale.shape == (20, 1) and scale.dtype == torch.float32
    assert torch.allclose((codes * scale - weight).square().sum(1), least, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("bits", "least_db"), [(2, 7.0), (4, 19.0), (8, 40.0), (16, 50.0)])
def test_snr_of_rows(bits: int, least_db: float, sqnr_db) -> None:
    weight = torch.randn(64, 512)
    assert least_db < sqnr_db(weight, round_rows(weight, bits)) < least_db + 8.0


def test_rows_of_zeros_stay_zero() -> None:
    weight = torch.zeros(1, 9)
    assert all(torch.equal(round_rows(weight, bits), weight) for bits in WIDTHS)
    assert torch.equal(round_rows(torch.ones(2, 3), 0), torch.zeros(2, 3))


def test_each_row_stands_for_itself_at_its_width() -> None:
    row_bits = draw_bits(50)
    linear, mixed = build(row_bits, 8)
    stands_for = mixed.dequantize()
    assert stands_for.shape == (50, COLUMNS) and set(row_bits.tolist()) == set(WIDTHS)
    for row, bits in enumerate(row_bits.tolist()):
        expected = round_rows(linear.weight[row:row + 1], bits)[0]
        assert torch.allclose(stands_for[row], expected, rtol=1e-6, atol=0.0), f"row {row} of {bits} bits"


@pytest.mark.parametrize("shape", [(COLUMNS,), (1, COLUMNS), (2, 5, COLUMNS), (1, 161, COLUMNS)])
def test_float_activations_meet_the_weight_it_stands_for(shape: tuple[int, ...]) -> None:
    _, mixed = build(draw_bits(40), 16)
    x = torch.randn(shape, dtype=torch.float64)
    out = mixed(x)
    assert out.dtype == torch.float64 and out.shape == (*shape[:-1], 40)
    assert torch.allclose(out, x @ mixed.dequantize().double().T + mixed.bias, rtol=1e-6, atol=1e-6)
    assert torch.allclose(mixed(x.float()).double(), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act_bits", [4, 8])
@pytest.mark.parametrize("shape", [(COLUMNS,), (2, 5, COLUMNS)])
def test_rounded_activations_meet_every_row(act_bits: int, shape: tuple[int, ...]) -> None:
    _, mixed = build(draw_bits(40), act_bits, clip_ratio=0.9)
    x = torch.randn(shape)
    tokens = quantize_tokens(x, act_bits, 0.9)
    expected = (tokens.codes.double() * tokens.scale.double()) @ mixed.dequantize().double().T + mixed.bias
    assert torch.allclose(mixed(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed(tokens), mixed(x))


def test_rounded_tokens_stand_for_their_values_where_nothing_is_rounded() -> None:
    _, mixed = build(draw_bits(40), 16)
    tokens = quantize_tokens(torch.randn(3, COLUMNS), 4)
    assert torch.equal(mixed(tokens), mixed(tokens.dequantize()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("tokens", "rows", "columns"), [(1, 1, 1), (3, 7, 5), (17, 40, 75), (33, 64, 256),
                                                         (5, 31, 257)])
def test_sums_are_those_of_the_stored_codes(engine: str, tokens: int, rows: int, columns: int) -> None:
    row_bits = torch.tensor((2, 4, 8))[torch.randint(0, 3, (rows,))]
    _, mixed = build(row_bits, 8, columns=columns, engine=engine)
    state = mixed.state_dict()
    codes = torch.cat([unpack(state[f"packed_{bits}"], bits, columns) for bits in (2, 4, 8) if bits in row_bits])
    activations = torch.randint(-127, 128, (tokens, columns), dtype=torch.int8)
    sums = mixed.engine.int_matmul(activations, mixed.prepared)
    assert sums.dtype == torch.int32
    assert torch.equal(sums, get_engine("reference").int_matmul(activations, codes))


@pytest.mark.parametrize("act_bits", [4, 8])
def test_engines_agree_to_the_bit(act_bits: int) -> None:
    x = torch.randn(2, 33, COLUMNS)
    outputs = [build(draw_bits(37), act_bits, engine=engine)[1](x) for engine in ENGINES]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("bits", [4, 8])
def test_one_width_is_a_quantized_linear_to_the_bit(bits: int) -> None:
    linear, mixed = build(torch.full((40,), bits), 8)
    uniform = QuantLinear.from_linear(linear, weight_bits=bits, act_bits=8, engine=get_engine("cpu"),
                                      smallest_clip_ratio=0.5, clip_steps=26)
    x = torch.randn(9, COLUMNS)
    assert torch.equal(mixed(x), uniform(x))


@pytest.mark.parametrize("act_bits", [4, 8, 16])
@pytest.mark.parametrize("others", [(0,), (0, 2), (0, 16), (0, 4, 8)])
def test_pruned_rows_give_their_bias(act_bits: int, others: tuple[int, ...]) -> None:
    row_bits = torch.tensor(others).repeat(5)
    x = torch.randn(6, COLUMNS)
    _, mixed = build(row_bits, act_bits)
    out = mixed(x)
    assert torch.equal(out[:, row_bits == 0], mixed.bias[row_bits == 0].expand(6, -1))
    assert bool((out != mixed.bias)[:, row_bits != 0].any(0).all())
    _, without = build(row_bits, act_bits, bias=False)
    assert torch.equal(without(x)[:, row_bits == 0], torch.zeros(6, 5))


def test_bytes_are_those_of_each_width() -> None:
    row_bits = torch.tensor([0] * 3 + [2] * 5 + [4] * 7 + [8] * 11 + [16] * 2)[torch.randperm(28)]
    _, mixed = build(row_bits, 4)
    rows = 4 * (5 * 5 + 7 * 10 + 11 * 19) + 2 * 2 * COLUMNS  # 75 columns are 5, 10 and 19 words
    assert mixed.stored_bytes == rows + 4 * (5 + 7 + 11) + 28 + 4 * 28  # scales, widths, bias
    assert mixed.stored_bytes == sum(tensor.nbytes for tensor in mixed.state_dict().values())
    assert mixed.prepared_bytes == (5 + 7 + 11) * COLUMNS + 4 * 28
    assert mixed.bits_per_weight == 8 * (rows + 4 * (5 + 7 + 11) + 28) / (28 * COLUMNS)
    assert mixed.width == f"W{(5 * 2 + 7 * 4 + 11 * 8 + 2 * 16) / 28:.2f}A4" == "W5.64A4"
    _, pruned = build(torch.zeros(28, dtype=torch.int64), 4, bias=False)
    assert set(pruned.state_dict()) == {"row_bits"} and pruned.stored_bytes == 28


@pytest.mark.parametrize("act_bits", [8, 16])
@pytest.mark.parametrize("others", [WIDTHS, (4,), (0, 16)])
def test_a_state_goes_into_an_empty_layer(act_bits: int, others: tuple[int, ...]) -> None:
    row_bits = torch.tensor(others).repeat(7)[torch.randperm(7 * len(others))]
    _, mixed = build(row_bits, act_bits)
    empty = MixedLinear.empty(row_bits, columns=COLUMNS, with_bias=True, act_bits=act_bits, act_clip_ratio=1.0,
                              engine=get_engine("cpu"))
    x = torch.randn(3, COLUMNS)
    assert not torch.equal(empty(x), mixed(x))
    nn.Sequential(empty).load_state_dict(nn.Sequential(mixed).state_dict())
    assert torch.equal(empty(x), mixed(x)) and torch.equal(empty.dequantize(), mixed.dequantize())


def test_the_order_of_rows_is_loaded_too() -> None:
    row_bits = torch.tensor([2, 4, 8, 16, 0, 4], dtype=torch.uint8)
    _, first = build(row_bits, 8)
    _, second = build(row_bits.flip(0), 8)
    state = copy.deepcopy(second.state_dict())
    first.load_state_dict(state)
    x = torch.randn(3, COLUMNS)
    assert torch.equal(first(x), second(x)) and row_bits.tolist() == [2, 4, 8, 16, 0, 4]


def test_a_state_that_contradicts_itself_is_refused() -> None:
    _, mixed = build(torch.tensor([2, 4, 8, 16]), 8)
    for wrong in ([2, 4, 8, 0], [2, 4, 4, 16], [2, 4, 8, 3]):
        state = mixed.state_dict() | {"row_bits": torch.tensor(wrong, dtype=torch.uint8)}
        with pytest.raises(CheckpointError, match="row_bits tells of"):
            copy.deepcopy(mixed).load_state_dict(state)


def test_copies_are_independent() -> None:
    _, mixed = build(draw_bits(40), 8)
    x = torch.randn(3, COLUMNS)
    before = mixed(x)
    other = copy.deepcopy(mixed)
    other.weight_scale.mul_(2.0)
    assert torch.equal(mixed(x), before) and not torch.equal(other(x), before)


@pytest.mark.parametrize("act_bits", [4, 16])
def test_what_is_not_finite_stays_not_finite(act_bits: int) -> None:
    row_bits = draw_bits(40)
    _, mixed = build(row_bits, act_bits)
    x = torch.randn(4, COLUMNS)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    finite = torch.isfinite(mixed(x)[:, row_bits >= 4]).all(1)
    assert finite.tolist() == [True, False, False, True]


@pytest.mark.parametrize("act_bits", [4, 16])
def test_output_has_the_type_of_the_input(act_bits: int) -> None:
    _, mixed = build(draw_bits(40), act_bits)
    x = torch.randn(4, COLUMNS)
    assert mixed(x.bfloat16()).dtype == torch.bfloat16
    assert mixed(x.double()).dtype == torch.float64


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"row_bits holds 3, 258; a row has one of 0, 2, 4, 8, 16 bits"):
        build(torch.tensor([2, 3, 258]), 8)
    with pytest.raises(ConfigError, match=r"shape \(2,\); a layer of 3 outputs needs \(3,\)"):
        MixedLinear.from_linear(nn.Linear(4, 3), torch.tensor([2, 2]), act_bits=8, engine=get_engine("cpu"))
    with pytest.raises(ConfigError, match="act_bits is 5"):
        build(torch.tensor([2]), 5)
