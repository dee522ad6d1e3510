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

"""What quantization did to a model, linear by linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqap_vla_ros.quantization.linear import QuantLinear
from sqap_vla_ros.quantization.mixed import MixedLinear
from sqap_vla_ros.quantization.row_widths import WIDTHS

# Told while a model is quantized: what is being done, how much of it is done, and of how much.
Listener = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LinearReport:
    """What one linear became.

    :param width: bits of weight and activations, such as 'W4A4'
    :param rounding: how its weight was rounded, 'nearest' or 'gptq'
    :param group_size: columns that share a weight scale; None is one scale per output channel
    :param weights: how many it has, N x K
    :param bits_per_weight: packed weight and scales over ``weights``
    :param stored_bytes: packed weight, scales and bias: what a checkpoint holds
    :param prepared_bytes: the form that is multiplied, in memory beside the packed one
    :param float32_bytes: weight and bias in float32
    :param rows_by_bits: of one with rows of several widths, how many output channels have each; None of the others
    """

    width: str
    rounding: str
    group_size: int | None
    weights: int
    bits_per_weight: float
    stored_bytes: int
    prepared_bytes: int
    float32_bytes: int
    rows_by_bits: dict[int, int] | None = None


def report_linear(linear: QuantLinear | MixedLinear, rounding: str) -> LinearReport:
    """What there is to tell of a quantized linear.

    :param linear: as it runs
    :param rounding: how its weight was rounded, which it does not know itself
    """
    weights = linear.in_features * linear.out_features
    return LinearReport(
        width=linear.width, rounding=rounding, weights=weights,
        group_size=None if isinstance(linear, MixedLinear) else linear.group_size,
        bits_per_weight=linear.bits_per_weight, stored_bytes=linear.stored_bytes,
        prepared_bytes=linear.prepared_bytes,
        float32_bytes=4 * (weights + (0 if linear.bias is None else linear.bias.numel())),
        rows_by_bits={bits: int((linear.row_bits == bits).sum()) for bits in WIDTHS}
        if isinstance(linear, MixedLinear) else None)


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`~sqap_vla_ros.quantization.quantize.quantize_` did.

    :param linears: what each replaced linear became, by qualified name
    :param float_reasons: name of each part that stayed float, and why
    """

    linears: dict[str, LinearReport]
    float_reasons: dict[str, str]

    @property
    def replaced(self) -> dict[str, str]:
        """Qualified name of each replaced linear, and its bits such as 'W4A4'."""
        return {name: linear.width for name, linear in self.linears.items()}

    @property
    def weight_bytes(self) -> int:
        """Stored bytes of the replaced linears."""
        return sum(linear.stored_bytes for linear in self.linears.values())

    @property
    def prepared_bytes(self) -> int:
        """Bytes of the forms that are multiplied, in memory beside the stored ones."""
        return sum(linear.prepared_bytes for linear in self.linears.values())

    @property
    def float32_bytes(self) -> int:
        """The replaced linears in float32."""
        return sum(linear.float32_bytes for linear in self.linears.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean over all weights of the replaced linears, scales included."""
        weights = sum(linear.weights for linear in self.linears.values())
        return sum(linear.bits_per_weight * linear.weights for linear in self.linears.values()) / weights

    @property
    def ratio(self) -> float:
        """Stored bytes over float32 bytes."""
        return self.weight_bytes / self.float32_bytes
