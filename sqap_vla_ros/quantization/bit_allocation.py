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

"""Bits for each output channel by what its rounding does to the actions, after QVLA (arXiv 2602.03782).

A channel's sensitivity at a width is the squared distance that the actions move when only that channel is rounded to
that width. All are estimated through the Jacobian of the actions, the largest are measured, and then those channels
give up bits whose error grows least for each bit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.mixed import quantize_rows, round_rows
from sqap_vla_ros.quantization.row_widths import INTEGER_WIDTHS, WIDTHS

if TYPE_CHECKING:
    from sqap_vla_ros.quantization.calibration import Calibration, Run

_FALLING = WIDTHS[::-1]


@dataclass(frozen=True)
class Sensitivity:
    """Squared distance of the actions, summed over the chunk and averaged over observations, in normalised actions.

    :param errors: by linear, (N, 5) float64 on the CPU: each output channel at each of ``WIDTHS``
    :param measured: by linear, (N, 5) bool: True where the error was measured, False where it is of first order
    :param columns: by linear, K: the weights in one channel
    """

    errors: dict[str, Tensor]
    measured: dict[str, Tensor]
    columns: dict[str, int]


@dataclass(frozen=True)
class BitAllocation:
    """What :func:`allocate_bits` decided.

    :param bits: by linear, (N,) uint8, each one of ``WIDTHS``
    :param mean_bits: over all weights, scales not counted
    :param shares: by width, its share of all weights
    :param summed_error: the channels' sensitivities at these bits; the model's error if channels did not interact
    """

    bits: dict[str, Tensor]
    mean_bits: float
    shares: dict[int, float]
    summed_error: float


class _Call(NamedTuple):
    name: str
    inputs: Tensor
    output: Tensor


def estimate_sensitivity(linears: Mapping[str, nn.Linear], calibration: Calibration, *,
                         projections: int | None = None, seed: int = 0) -> Sensitivity:
    """Estimate the sensitivity of every channel at every width to first order.

    The actions A move by dA = J (Q(W_c) - W_c) X, where J is their Jacobian with respect to channel c over all tokens
    and Q rounds as :class:`~sqap_vla_ros.quantization.mixed.MixedLinear` does. Products v J come from one backward
    pass for all channels. With every unit vector as v, |dA|^2 is exact; with random signs v, the mean of (v dA)^2 is
    an unbiased estimate of it, drawn anew for each observation. What has no derivative, such as the choice of tokens
    that pruning makes, is not seen.

    What a few observations do not need others may: for the same number of backward passes, many observations with one
    or two projections each tell more than a few with the exact Jacobian. Beside the model and one observation's graph
    it holds 3 bytes for each weight and 5 numbers for each output of a linear.

    :param linears: of a float model in eval mode, by name; nothing about them is changed
    :param calibration: observations; their actions must be differentiable
    :param projections: backward passes for each observation; None, or as many as there are action values, is exact
    :param seed: decides the random signs
    :raises ConfigError: without observations, when the actions have no gradient, or when a linear is never used
    """
    _check(linears, calibration)
    if projections is not None and projections < 1:
        raise ConfigError(f"projections is {projections}; give 1 or more, or None for the exact Jacobian")
    codes = {name: {bits: quantize_rows(linear.weight, bits) for bits in INTEGER_WIDTHS}
             for name, linear in linears.items()}
    totals: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for run in calibration:
        actions, calls = _trace(linears, run)
        moved = [_output_errors(linears[call.name], codes[call.name], call.inputs) for call in calls]
        outputs = [call.output for call in calls]
        for direction in _directions(actions.numel(), projections, generator):
            gradients = torch.autograd.grad(actions, outputs, direction.to(actions).view_as(actions),
                                            retain_graph=True, allow_unused=True, materialize_grads=True)
            shifts: dict[str, Tensor] = {}
            for call, gradient, error in zip(calls, gradients, moved, strict=True):
                # v dA of each width and channel: (5, tokens, N) with (tokens, N) to (5, N)
                shift = torch.einsum("wtn,tn->wn", error, gradient.reshape(error.shape[1:]).to(error.dtype))
                shifts[call.name] = shifts.get(call.name, 0.0) + shift
            for name, shift in shifts.items():
                totals[name] = totals.get(name, 0.0) + shift.double().square().T
    unused = [name for name in linears if name not in totals]
    if unused:
        raise ConfigError(f"no observation uses {', '.join(unused)}, so nothing is known of what it needs; leave it "
                          "out, or calibrate with observations that use it")
    errors = {name: (totals[name] / len(calibration)).cpu() for name in linears}
    return Sensitivity(errors, {name: torch.zeros_like(error, dtype=torch.bool) for name, error in errors.items()},
                       {name: linear.in_features for name, linear in linears.items()})


@torch.no_grad()
def refine_sensitivity(sensitivity: Sensitivity, linears: Mapping[str, nn.Linear], calibration: Calibration,
                       count: int) -> Sensitivity:
    """Replace the largest estimates by measurements: actions with one channel rounded to one width, and nothing else.

    The largest moves are those for which first order holds least. It takes ``count`` forward passes for each
    observation.

    :param sensitivity: of the same linears and observations
    :param linears: of the float model, by name; each row is put back as it was
    :param calibration: observations; one must give the same actions each time
    :param count: how many pairs of channel and width are measured, the largest first
    :raises ConfigError: without observations, or for a negative count
    """
    _check(linears, calibration)
    if count < 0:
        raise ConfigError(f"count is {count}; 0 or more channels can be measured")
    errors = {name: error.clone() for name, error in sensitivity.errors.items()}
    measured = {name: mask.clone() for name, mask in sensitivity.measured.items()}
    names, ends = list(errors), list(accumulate(error.numel() for error in errors.values()))
    ranks = torch.cat([error.flatten() for error in errors.values()]).argsort(descending=True, stable=True)
    untouched = [run() for run in calibration]
    for rank in ranks[:count].tolist():
        index = bisect_right(ends, rank)
        name = names[index]
        channel, column = divmod(rank - ends[index] + errors[name].numel(), len(WIDTHS))
        with _rounded_channel(linears[name], channel, WIDTHS[column]):
            squares = [(run() - actions).double().square().sum() for run, actions in
                       zip(calibration, untouched, strict=True)]
        errors[name][channel, column] = torch.stack(squares).mean()
        measured[name][channel, column] = True
    return Sensitivity(errors, measured, sensitivity.columns)


def allocate_bits(sensitivity: Sensitivity, mean_bits: float, *, prune_threshold: float = 1e-9) -> BitAllocation:
    """Demote channels from 16 bits, always where the error grows least for each bit saved, until the mean is reached.

    A step that saves b bits in a channel of K weights saves b x K. Where a channel's error does not grow ever faster
    as bits fall, the widths above the lower convex hull of its errors are left out, so that one step may skip a
    width. On the hull a channel's steps only become more expensive; hence to walk all steps in order is to pop the
    cheapest from a heap, and the result is the least summed error at the mean it reaches (Shoham and Gersho, IEEE
    Trans. ASSP 36(9), 1988). Of equally expensive steps the first linear's first channel goes first.

    Sensitivities are added up as if errors were independent. Those of rounding nearly are; those of pruned channels
    are not, since all of what they gave is missing at once, and therefore pruning has a threshold of its own.

    :param sensitivity: what rounding costs
    :param mean_bits: not to be exceeded by the mean over all weights, above 0, at most 16
    :param prune_threshold: a channel may fall to 0 bits only where that adds less than this to its error at 2 bits
    :raises ConfigError: for a mean out of range or out of reach, a negative threshold, or errors that are not finite
    """
    if not 0.0 < mean_bits <= 16.0 or not prune_threshold >= 0.0:
        raise ConfigError(f"mean_bits is {mean_bits} and prune_threshold {prune_threshold}; allowed are means above 0 "
                          "and at most 16, thresholds of 0 and more")
    for name, error in sensitivity.errors.items():
        if not bool(torch.isfinite(error).all()):
            raise ConfigError(f"the sensitivity of {name} is not finite; its weight or an observation is not")
    errors = torch.cat(list(sensitivity.errors.values())).flip(1)  # (C, 5), 16 bits first
    rows = [error.shape[0] for error in sensitivity.errors.values()]
    columns = torch.tensor([sensitivity.columns[name] for name in sensitivity.errors]).repeat_interleave(
        torch.tensor(rows))
    allowed = torch.ones_like(errors, dtype=torch.bool)
    allowed[:, -1] = errors[:, -1] - errors[:, -2] < prune_threshold
    prices, saved_bits = _find_steps(errors, _find_hull(errors, allowed), columns)
    order = prices.flatten().argsort(stable=True)
    saved = (saved_bits * columns[:, None]).flatten()[order].cumsum(0)
    weights = int(columns.sum())
    excess = 16 * weights - math.floor(mean_bits * weights)
    if excess > int(saved[-1]):
        raise ConfigError(f"mean_bits {mean_bits} cannot be reached: with prune_threshold {prune_threshold} the least "
                          f"mean is {16 - int(saved[-1]) / weights:.4g}; allow more bits, or raise the threshold")
    steps = int((saved < excess).sum()) + 1 if excess > 0 else 0
    taken = torch.zeros_like(order, dtype=torch.bool)
    taken[order[:steps]] = True
    bits = 16 - (saved_bits * taken.view_as(saved_bits)).sum(1)
    chosen = bits[:, None] == torch.tensor(_FALLING)
    return BitAllocation(
        bits=dict(zip(sensitivity.errors, bits.to(torch.uint8).split(rows), strict=True)),
        mean_bits=int((bits * columns).sum()) / weights,
        shares={width: int(columns[bits == width].sum()) / weights for width in WIDTHS},
        summed_error=float(errors[chosen].sum()))


def _find_hull(errors: Tensor, allowed: Tensor) -> Tensor:
    # (C, 5) bool: the widths on the lower convex hull of a channel's allowed ones. What lies on a chord stays.
    kept = allowed.clone()
    for left, middle, right in combinations(range(len(WIDTHS)), 3):
        share = (_FALLING[left] - _FALLING[middle]) / (_FALLING[left] - _FALLING[right])
        chord = errors[:, left] + share * (errors[:, right] - errors[:, left])
        kept[:, middle] &= ~(allowed[:, left] & allowed[:, right] & (errors[:, middle] > chord))
    return kept


def _find_steps(errors: Tensor, kept: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    # (C, 4) price of each step down for each bit saved, and (C, 4) bits saved by each weight: 0 for a width not kept.
    prices, saved_bits = [], []
    error, width = errors[:, 0], torch.full_like(columns, 16)
    for step, bits in enumerate(_FALLING[1:], start=1):
        here = kept[:, step]
        saved = torch.where(here, width - bits, 0)
        price = (errors[:, step] - error) / (saved * columns).clamp_min(1)
        prices.append(torch.where(here, price, -torch.inf))
        saved_bits.append(saved)
        error, width = torch.where(here, errors[:, step], error), width - saved
    # The running maximum gives steps that save nothing their predecessor's price, and no rounding error can put a
    # channel's later step first.
    return torch.stack(prices, 1).cummax(1).values, torch.stack(saved_bits, 1)


def _check(linears: Mapping[str, nn.Linear], calibration: Calibration) -> None:
    if not linears:
        raise ConfigError("there is no linear to find bits for; load the float checkpoint again")
    if not calibration:
        raise ConfigError("bits are allocated by what rounding does to actions, and calibration holds no observation; "
                          "give one or more")


def _trace(linears: Mapping[str, nn.Linear], run: Run) -> tuple[Tensor, list[_Call]]:
    # The actions with their graph, and every use of the linears: its input and the output to differentiate by.
    calls: list[_Call] = []

    def keep(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()  # in front of it all is frozen: the graph begins here
        calls.append(_Call(name, inputs[0].detach(), output))

    with ExitStack() as hooks, torch.enable_grad():
        for name, linear in linears.items():
            handle = linear.register_forward_hook(lambda _, inputs, output, name=name: keep(name, inputs, output))
            hooks.callback(handle.remove)
        actions = run()
    if not actions.requires_grad:
        raise ConfigError("the actions of a calibration run have no gradient; it must not run under no_grad or "
                          "inference_mode, and its actions must depend on the linears differentiably")
    return actions, calls


@torch.no_grad()
def _output_errors(linear: nn.Linear, codes: dict[int, tuple[Tensor, Tensor]], inputs: Tensor) -> Tensor:
    # X (Q(W) - W)^T at each of WIDTHS: (tokens, K) @ (K, N), stacked to (5, tokens, N)
    wide = torch.float64 if linear.weight.dtype == torch.float64 else torch.float32
    weight = linear.weight.to(wide)
    x = inputs.reshape(-1, linear.in_features).to(wide)
    values = [torch.mul(*codes[bits]) if bits in codes else round_rows(linear.weight, bits) for bits in WIDTHS]
    return torch.stack([x @ (rounded - weight).T for rounded in values])


def _directions(size: int, projections: int | None, generator: torch.Generator) -> Tensor:
    # Rows v for which the sum of (v a)^2 is |a|^2, exactly or in expectation.
    if projections is None or projections >= size:
        return torch.eye(size)
    signs = torch.randint(0, 2, (projections, size), generator=generator) * 2 - 1
    return signs / projections**0.5


@contextmanager
def _rounded_channel(linear: nn.Linear, channel: int, bits: int) -> Iterator[None]:
    row = linear.weight[channel:channel + 1]
    original = row.clone()
    row.copy_(round_rows(original, bits))
    try:
        yield
    finally:
        row.copy_(original)
