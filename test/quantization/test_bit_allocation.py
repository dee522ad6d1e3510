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

"""Sensitivities against brute-force Jacobians and true forward passes; allocations against brute-force optima."""

import copy
import functools
import heapq
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.bit_allocation import (
    Sensitivity,
    allocate_bits,
    estimate_sensitivity,
    refine_sensitivity,
)
from sqap_vla_ros.quantization.kernels import get_engine
from sqap_vla_ros.quantization.mixed import WIDTHS, MixedLinear, round_rows

FALLING = (16, 8, 4, 2, 0)


class Toy(nn.Module):
    """Three tokens to a chunk of 2 x 2 actions; ``first`` is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 4, bias=False)
        self.double()

    def forward(self, x: Tensor, shift_first: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
                shift_last: Tensor | float = 0.0) -> Tensor:
        hidden = torch.tanh(self.first(x) + shift_first[0])
        hidden = torch.tanh(self.first(hidden * 2.0) + shift_first[1])
        return torch.tanh(self.last(hidden) + shift_last).mean(0).view(1, 2, 2)

    def linears(self) -> dict[str, nn.Linear]:
        return {"first": self.first, "last": self.last}

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the linears, by use."""
        hidden = torch.tanh(self.first(x)) * 2.0
        return x, hidden, torch.tanh(self.first(hidden))


def jacobian_errors(toy: Toy, x: Tensor) -> dict[str, Tensor]:
    """What :func:`estimate_sensitivity` must give for one observation."""
    zeros = torch.zeros(3, 5, dtype=torch.float64)
    by_use = torch.autograd.functional.jacobian(lambda *shift: toy(x, shift).flatten(), (zeros, zeros))
    by_last = torch.autograd.functional.jacobian(lambda shift: toy(x, shift_last=shift).flatten(), zeros[:, :4])
    errors = {name: torch.zeros(linear.out_features, 5, dtype=torch.float64) for name, linear in toy.linears().items()}
    uses = {"first": list(zip(by_use, toy.inputs(x)[:2], strict=True)), "last": [(by_last, toy.inputs(x)[2])]}
    for name, linear in toy.linears().items():
        for column, bits in enumerate(WIDTHS):
            difference = round_rows(linear.weight, bits).double() - linear.weight
            for channel in range(linear.out_features):
                moved = sum(jacobian[:, :, channel] @ (inputs @ difference[channel]) for jacobian, inputs in uses[name])
                errors[name][channel, column] = moved.square().sum()
    return errors


@pytest.fixture
def toy() -> Toy:
    """Its weights are drawn by the seed that every test starts from."""
    return Toy()


def observe(tiny, count: int) -> list[Callable[[], Tensor]]:
    """Observations of the demo policy."""
    model = tiny.model

    def observe_one(pixels: Tensor) -> Tensor:
        sequence = model.build_sequence(model.encode_images(pixels), model.tokenize("reach the red block"))
        return model.predict_actions(model.decoder(sequence.embeddings, sequence.positions))

    pictures = torch.randn(count, 1, 3, 64, 64, dtype=model.embed_tokens.weight.dtype)
    return [functools.partial(observe_one, pixels) for pixels in pictures]


def as_sensitivity(errors: dict[str, Tensor], columns: dict[str, int]) -> Sensitivity:
    """Errors given from 16 bits down."""
    flipped = {name: error.double().flip(1) for name, error in errors.items()}
    return Sensitivity(flipped, {name: torch.zeros_like(error, dtype=torch.bool) for name, error in flipped.items()},
                       columns)


def draw_convex(channels: int) -> Tensor:
    """Errors from 16 bits down that grow ever faster for each bit."""
    prices = torch.rand(channels, 4, dtype=torch.float64).cumsum(1)
    grown = (prices * torch.tensor([8, 4, 2, 2])).cumsum(1)
    return torch.cat((torch.zeros(channels, 1, dtype=torch.float64), grown), 1) + torch.rand(channels, 1)


@pytest.mark.parametrize("projections", [None, 4])
def test_estimate_is_that_of_the_whole_jacobian(toy: Toy, projections: int | None) -> None:
    observations = torch.randn(3, 3, 5, dtype=torch.float64)
    sensitivity = estimate_sensitivity(toy.linears(), [lambda x=x: toy(x) for x in observations],
                                       projections=projections)
    parts = [jacobian_errors(toy, x) for x in observations]
    for name, linear in toy.linears().items():
        expected = torch.stack([part[name] for part in parts]).mean(0).detach()
        assert bool((expected > 0.0).all())
        assert torch.allclose(sensitivity.errors[name], expected, rtol=1e-9, atol=1e-18)
        assert not sensitivity.measured[name].any() and sensitivity.columns[name] == linear.in_features


@pytest.mark.parametrize("projections", [1, 3])
def test_random_signs_are_right_on_average(toy: Toy, projections: int) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    exact = estimate_sensitivity(toy.linears(), [lambda: toy(x)])
    drawn = estimate_sensitivity(toy.linears(), [lambda: toy(x)] * 300, projections=projections)
    first, again, other = (estimate_sensitivity(toy.linears(), [lambda: toy(x)], projections=projections, seed=seed)
                           for seed in (2, 2, 5))
    for name in toy.linears():
        # The square of a sum with random signs has at most sqrt(2) times its mean as deviation.
        ratio = drawn.errors[name] / exact.errors[name]
        assert float((ratio - 1.0).abs().max()) < 4.0 * (2.0 / (300 * projections)) ** 0.5
        assert torch.equal(first.errors[name], again.errors[name])
    assert any(not torch.equal(first.errors[name], other.errors[name]) for name in toy.linears())


@pytest.mark.parametrize("frozen", [False, True])
def test_small_errors_are_those_of_true_forwards(tiny, frozen: bool) -> None:
    tiny.model.double().requires_grad_(not frozen)
    linears = tiny.model.quantizable_linears()
    calibration = observe(tiny, 2)
    estimate = estimate_sensitivity(linears, calibration)
    # Only what 8 bits do, which is small.
    eight = WIDTHS.index(8)
    masked = {name: torch.zeros_like(error).index_copy(1, torch.tensor([eight]), error[:, [eight]])
              for name, error in estimate.errors.items()}
    true = refine_sensitivity(Sensitivity(masked, estimate.measured, estimate.columns), linears, calibration, 40)
    ratios = [true.errors[name][mask] / estimate.errors[name][mask] for name, mask in true.measured.items()]
    assert sum(len(ratio) for ratio in ratios) == 40
    assert float((torch.cat(ratios) - 1.0).abs().max()) < 0.05


def test_the_largest_are_measured_and_the_weights_put_back(tiny) -> None:
    linears = tiny.model.quantizable_linears()
    calibration = observe(tiny, 2)
    before = copy.deepcopy(tiny.model.state_dict())
    estimate = estimate_sensitivity(linears, calibration)
    refined = refine_sensitivity(estimate, linears, calibration, 7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.state_dict().items())
    assert all(not linear._forward_hooks for linear in linears.values())
    threshold = torch.cat([error.flatten() for error in estimate.errors.values()]).sort(descending=True).values[6]
    for name, linear in linears.items():
        mask = estimate.errors[name] >= threshold
        assert torch.equal(refined.measured[name], mask) and not estimate.measured[name].any()
        assert torch.equal(refined.errors[name][~mask], estimate.errors[name][~mask])
        for channel, column in mask.nonzero().tolist():
            with torch.no_grad():
                plain = torch.stack([run() for run in calibration])
                linear.weight[channel] = round_rows(linear.weight[channel:channel + 1], WIDTHS[column])[0]
                moved = torch.stack([run() for run in calibration])
                linear.weight.copy_(before[f"{name}.weight"])
            expected = (moved - plain).double().square().sum() / len(calibration)
            assert refined.errors[name][channel, column] == pytest.approx(float(expected), rel=1e-5)


def test_allocated_bits_beat_as_many_uniform_ones(tiny) -> None:
    linears = tiny.model.quantizable_linears()
    calibration = observe(tiny, 2)
    sensitivity = refine_sensitivity(estimate_sensitivity(linears, calibration), linears, calibration, 10)
    allocation = allocate_bits(sensitivity, 4.0)
    assert 3.9 < allocation.mean_bits <= 4.0 and allocation.bits.keys() == linears.keys()

    def error(bits: dict[str, Tensor]) -> float:
        with torch.no_grad():
            plain = torch.stack([run() for run in calibration])
            for name, linear in linears.items():
                tiny.model.set_submodule(name, MixedLinear.from_linear(linear, bits[name], act_bits=16,
                                                                       engine=get_engine("cpu")))
            moved = torch.stack([run() for run in calibration])
            for name, linear in linears.items():
                tiny.model.set_submodule(name, linear)
        return float((moved - plain).square().sum())

    uniform = {name: torch.full_like(bits, 4) for name, bits in allocation.bits.items()}
    assert error(allocation.bits) < 0.5 * error(uniform)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean_bits", [0.5, 2.0, 4.0, 7.3, 12.0, 16.0])
def test_no_other_allocation_of_that_mean_has_less_error(seed: int, mean_bits: float) -> None:
    torch.manual_seed(seed)
    errors = {"narrow": draw_convex(3), "wide": draw_convex(2)}
    columns = {"narrow": 8, "wide": 24}
    allocation = allocate_bits(as_sensitivity(errors, columns), mean_bits, prune_threshold=float("inf"))
    counts = torch.tensor([8, 8, 8, 24, 24])
    every = torch.tensor(list(itertools.product(range(5), repeat=5)))
    bits = (torch.tensor(FALLING)[every] * counts).sum(1)
    error = torch.cat(list(errors.values()))[torch.arange(5), every].sum(1)
    reached = round(allocation.mean_bits * 72)
    assert reached <= mean_bits * 72
    assert allocation.summed_error == pytest.approx(float(error[bits <= reached].min()), rel=1e-12)
    # One step back the budget would be broken.
    assert reached > mean_bits * 72 - 8 * 24


def pop_heap(errors: Tensor, columns: list[int], mean_bits: float) -> list[int]:
    """The greedy choice, word by word."""
    def price(channel: int, step: int) -> tuple[float, int, int]:
        saved = (FALLING[step - 1] - FALLING[step]) * columns[channel]
        return float(errors[channel, step] - errors[channel, step - 1]) / saved, channel, step

    bits = [16] * len(columns)
    heap = [price(channel, 1) for channel in range(len(columns))]
    heapq.heapify(heap)
    while sum(b * k for b, k in zip(bits, columns, strict=True)) > mean_bits * sum(columns):
        _, channel, step = heapq.heappop(heap)
        bits[channel] = FALLING[step]
        if step < 4:
            heapq.heappush(heap, price(channel, step + 1))
    return bits


@pytest.mark.parametrize("mean_bits", [1.0, 3.0, 4.0, 9.0])
def test_it_is_the_greedy_choice_also_among_equals(mean_bits: float) -> None:
    errors = draw_convex(60)
    errors[10:30] = errors[:20].clone()  # ties
    errors[40:] = 0.0
    parts = {"a": errors[:25], "b": errors[25:]}
    columns = {"a": 16, "b": 48}
    allocation = allocate_bits(as_sensitivity(parts, columns), mean_bits, prune_threshold=float("inf"))
    expected = pop_heap(errors, [16] * 25 + [48] * 35, mean_bits)
    assert torch.cat((allocation.bits["a"], allocation.bits["b"])).tolist() == expected
    weights = {width: sum(16 if channel < 25 else 48 for channel, bits in enumerate(expected) if bits == width)
               for width in WIDTHS}
    assert allocation.shares == {width: count / (25 * 16 + 35 * 48) for width, count in weights.items()}
    assert allocation.mean_bits == pytest.approx(sum(width * share for width, share in allocation.shares.items()))


def test_widths_above_the_hull_are_left_out() -> None:
    # 8 bits cost the first channel more than 4 do; 4 lie above the chord from 8 to 2 in the second.
    errors = {"a": torch.tensor([[0.0, 5.0, 1.0, 3.0, 9.0], [0.0, 1.0, 20.0, 22.0, 90.0]])}
    seen = set()
    for halves in range(1, 33):
        allocation = allocate_bits(as_sensitivity(errors, {"a": 4}), halves / 2, prune_threshold=float("inf"))
        assert allocation.mean_bits <= halves / 2
        seen |= set(enumerate(allocation.bits["a"].tolist()))
    assert {bits for channel, bits in seen if channel == 0} == {16, 4, 2, 0}
    assert {bits for channel, bits in seen if channel == 1} == {16, 8, 2, 0}


def test_rows_are_pruned_only_where_it_costs_less_than_the_threshold() -> None:
    errors = {"a": torch.tensor([[0.0, 1.0, 3.0, 7.0, 7.5], [0.0, 1.0, 3.0, 7.0, 8.0], [0.0, 1.0, 3.0, 7.0, 17.0]])}
    sensitivity = as_sensitivity(errors, {"a": 4})
    assert allocate_bits(sensitivity, 4 / 3, prune_threshold=1.0).bits["a"].tolist() == [0, 2, 2]
    assert allocate_bits(sensitivity, 2 / 3, prune_threshold=1.1).bits["a"].tolist() == [0, 0, 2]
    assert allocate_bits(sensitivity, 2.0, prune_threshold=0.5).bits["a"].tolist() == [2, 2, 2]
    with pytest.raises(ConfigError, match=r"mean_bits 1\.3 cannot be reached: with prune_threshold 1\.0 the least "
                                          r"mean is 1\.333"):
        allocate_bits(sensitivity, 1.3, prune_threshold=1.0)


@pytest.mark.parametrize(("mean_bits", "threshold"), [(0.0, 1.0), (16.5, 1.0), (float("nan"), 1.0), (4.0, -1.0)])
def test_numbers_out_of_range_are_refused(mean_bits: float, threshold: float) -> None:
    with pytest.raises(ConfigError, match="allowed are means above 0"):
        allocate_bits(as_sensitivity({"a": draw_convex(2)}, {"a": 4}), mean_bits, prune_threshold=threshold)


def test_errors_that_are_not_finite_are_refused() -> None:
    errors = draw_convex(2)
    errors[1, 1] = float("nan")
    with pytest.raises(ConfigError, match="the sensitivity of a is not finite"):
        allocate_bits(as_sensitivity({"a": errors}, {"a": 4}), 4.0)


def test_calibration_that_tells_nothing_is_refused(toy: Toy) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    with pytest.raises(ConfigError, match="calibration holds no observation"):
        estimate_sensitivity(toy.linears(), [])
    with pytest.raises(ConfigError, match="no observation uses other, "):
        estimate_sensitivity({**toy.linears(), "other": nn.Linear(5, 5)}, [lambda: toy(x)])
    with pytest.raises(ConfigError, match="have no gradient"):
        estimate_sensitivity(toy.linears(), [torch.no_grad()(lambda: toy(x))])
    with pytest.raises(ConfigError, match="projections is 0"):
        estimate_sensitivity(toy.linears(), [lambda: toy(x)], projections=0)
    with pytest.raises(ConfigError, match="no linear to find bits for"):
        estimate_sensitivity({}, [lambda: toy(x)])
    assert all(not linear._forward_hooks for linear in toy.linears().values())
