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

"""Recipes as frozen types: what quantization does to a model, apart from any model.

``RECIPES`` are those that have a name; any other is a type with other fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.integer import CLIP_STEPS, FLOAT_BITS, SMALLEST_CLIP_RATIO
from sqap_vla_ros.quantization.rotation import RotationPlan

# What the knob offers beside the recipes: a float checkpoint as it is, and a compressed one as it is.
FLOAT, STORED = "float", "stored"
ROUNDINGS = ("nearest", "gptq")
GROUP_SIZES = (None, 64, 128)
# What mixed widths leave no choice of: each row is rounded to nearest, with a scale and a search of its own.
_FIXED_BY_MEAN_BITS = {"rounding": "nearest", "group_size": None, "smallest_clip_ratio": SMALLEST_CLIP_RATIO,
                       "clip_steps": CLIP_STEPS}


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized: symmetric codes, weights with fixed scales, activations with one scale per token.

    One prefill keeps no cache, so keys and values need no few bits; Q and K may be rounded all the same, to see what
    that does to the attention that pruning reads.

    :param weight_bits: 4 or 8; without meaning where ``mean_bits`` is set
    :param act_bits: 4, 8 or 16; 16 leaves activations as they are and multiplies the floats that weight codes stand for
    :param rotation: what is rotated first; None rounds the model as it is. Q and K are rotated only where
        ``qk_bits`` rounds them: for float ones it would cost time and change nothing
    :param smoothing: SmoothQuant's alpha, 0 to 1, see :mod:`~sqap_vla_ros.quantization.smoothing`; None leaves the
        channels as they are. Not together with a rotation, which folds every gain into the weights behind it and
        so takes back whatever smoothing had moved there
    :param rounding: of the weights. 'nearest' needs no observations; 'gptq' compensates within the decoder's blocks,
        see :mod:`~sqap_vla_ros.quantization.gptq`, and rounds linears outside them to nearest
    :param group_size: input columns that share a weight scale, 64 or 128; None is one scale per output channel
    :param damping_ratio: of GPTQ, share of the Hessian's mean diagonal that is added to its diagonal
    :param order_by_activation: of GPTQ, whether columns with the largest inputs are rounded first
    :param seed: decides the signs of the rotations
    :param smallest_clip_ratio: lower end of the clip search of the weights
    :param clip_steps: how many clip ratios the search tries
    :param act_clip_ratio: share of a token's largest magnitude that its largest code stands for, where ``act_bits``
        is 4; eight bits are never clipped
    :param weight_bits_by_pattern: (pattern, bits) pairs for linears that differ from ``weight_bits``, by shell pattern
        of their qualified name; the last match counts. 4, 8, or 16 for one that stays float
    :param act_bits_by_pattern: the same for ``act_bits``
    :param qk_bits: bits of Q and K behind the rotary embedding and their rotation, 4 or 8; None leaves them float
    :param mean_bits: 2 to 16: each output channel gets 0, 2, 4, 8 or 16 bits by what its rounding does to the actions,
        at most this on average over all weights, see :mod:`~sqap_vla_ros.quantization.bit_allocation`; None gives all
        of them ``weight_bits``. Activations are float while that is found out
    :param projections: of mean_bits, backward passes for each observation; None is exact
    :param measured_pairs: of mean_bits, how many pairs of channel and width, those with the largest estimates, are
        measured; each takes one pass for each observation
    """

    weight_bits: int
    act_bits: int
    rotation: RotationPlan | None = field(default_factory=RotationPlan)
    smoothing: float | None = None
    rounding: Literal["nearest", "gptq"] = "nearest"
    group_size: int | None = None
    damping_ratio: float = 0.01
    order_by_activation: bool = True
    seed: int = 0
    smallest_clip_ratio: float = SMALLEST_CLIP_RATIO
    clip_steps: int = CLIP_STEPS
    act_clip_ratio: float = 0.9
    weight_bits_by_pattern: tuple[tuple[str, int], ...] = ()
    act_bits_by_pattern: tuple[tuple[str, int], ...] = ()
    qk_bits: int | None = None
    mean_bits: float | None = None
    projections: int | None = 2
    measured_pairs: int = 0

    @property
    def calibrated_part(self) -> str | None:
        """What of it must see observations, such as "rounding 'gptq'"; None when nothing does."""
        if self.mean_bits is not None:
            return f"mean_bits {self.mean_bits:g}"
        if self.rounding == "gptq":
            return "rounding 'gptq'"
        return None if self.smoothing is None else f"smoothing {self.smoothing:g}"

    @property
    def needs_calibration(self) -> bool:
        """Whether it must see observations."""
        return self.calibrated_part is not None

    def weight_bits_of(self, name: str) -> int:
        """Weight bits of the linear called ``name``; 16 for one that stays float."""
        return _last_match(name, self.weight_bits_by_pattern, self.weight_bits)

    def act_bits_of(self, name: str) -> int:
        """Activation bits of the linear called ``name``."""
        return _last_match(name, self.act_bits_by_pattern, self.act_bits)

    def act_clip_ratio_of(self, bits: int) -> float:
        """Clip ratio of activations with ``bits``."""
        return self.act_clip_ratio if bits == 4 else 1.0


@dataclass(frozen=True)
class W4A4(Recipe):
    """Four-bit weights, four-bit activations."""

    weight_bits: int = 4
    act_bits: int = 4


@dataclass(frozen=True)
class W4A8(Recipe):
    """Four-bit weights, eight-bit activations."""

    weight_bits: int = 4
    act_bits: int = 8


@dataclass(frozen=True)
class W8A8(Recipe):
    """Eight-bit weights, eight-bit activations."""

    weight_bits: int = 8
    act_bits: int = 8


@dataclass(frozen=True)
class WeightOnly4(Recipe):
    """Four-bit weights, activations as they are."""

    weight_bits: int = 4
    act_bits: int = FLOAT_BITS


@dataclass(frozen=True)
class MixedWidths(Recipe):
    """As many bits on average as four-bit weights have, where the actions need them; after QVLA (arXiv 2602.03782)."""

    weight_bits: int = 4
    act_bits: int = FLOAT_BITS
    mean_bits: float | None = 4.0
    measured_pairs: int = 16


# The baselines differ from 'w4a4' in the one thing their name says; clip search and clipping are the same.
# Weight-only recipes keep the channels that training made, as QVLA does: float activations need no spreading, and on
# the demo policy rotation leads the actions further from the float ones, with every seed tried. Activations of four
# bits cannot do without.
# 'w4a4' leaves Q and K float: rounding them costs an eighth of the decoder's time on an engine that has no integer form
# of attention, and gains nothing. Eight bits do not change the order of the scores, rotated or not. Four bits are where
# the rotation of Q and K shows, and 'w4a4-qk4' with its '-plain' are there to show it (`sqap evaluate --fidelity`).
RECIPES: dict[str, Recipe] = {
    "w4a4": W4A4(rounding="gptq"),
    "w4a4-rtn": W4A4(),
    "w4a4-rtn-plain": W4A4(rotation=None),
    "w4a4-qk4": W4A4(rounding="gptq", qk_bits=4),
    "w4a4-qk4-plain": W4A4(rounding="gptq", qk_bits=4, rotation=RotationPlan(queries_keys=False)),
    "w4a8": W4A8(rounding="gptq"),
    "w4a8-rtn": W4A8(),
    "w8a8": W8A8(),
    "w4a16": WeightOnly4(rotation=None),
    "smoothquant-w8a8": W8A8(rotation=None, smoothing=0.5),
    "smoothquant-w4a4": W4A4(rotation=None, smoothing=0.5),
    "qvla-4bit": MixedWidths(rotation=None),
    "qvla-w4a4": MixedWidths(act_bits=4),
}


def check_recipe(recipe: Recipe, linears: Mapping[str, nn.Linear]) -> None:
    """Find out whether a recipe can be carried out on these linears.

    :raises ConfigError: for a field whose value is not allowed, a pattern that matches nothing, a linear that groups do
        not divide, or when nothing would be quantized
    """
    if not linears:
        raise ConfigError("the model has no float linear left to quantize; load its checkpoint again to quantize it "
                          "anew")
    _check_bits(recipe)
    _check_ways(recipe)
    if recipe.mean_bits is not None:
        _check_mean_bits(recipe)
    for key in ("weight_bits_by_pattern", "act_bits_by_pattern"):
        for pattern, _ in getattr(recipe, key):
            if not any(fnmatchcase(name, pattern) for name in linears):
                raise ConfigError(f"{key} '{pattern}' matches no linear; names look like '{next(iter(linears))}'")
    rounded = {name: linear for name, linear in linears.items() if recipe.weight_bits_of(name) != FLOAT_BITS}
    if not rounded:
        raise ConfigError("weight_bits_by_pattern gives every linear 16 bits, so nothing is quantized; run the model "
                          "without a recipe instead")
    for name, linear in rounded.items():
        if recipe.group_size is not None and linear.in_features % recipe.group_size:
            raise ConfigError(f"'{name}' reads {linear.in_features} channels, which groups of {recipe.group_size} do "
                              "not divide; take another group_size, or None for one scale per output channel")


def _check_bits(recipe: Recipe) -> None:
    integer, any_width = (4, 8), (4, 8, FLOAT_BITS)
    found = [("weight_bits", recipe.weight_bits, integer), ("act_bits", recipe.act_bits, any_width)]
    for key in ("weight_bits_by_pattern", "act_bits_by_pattern"):
        found += [(f"{key} '{pattern}'", bits, any_width) for pattern, bits in getattr(recipe, key)]
    if recipe.qk_bits is not None:
        found.append(("qk_bits", recipe.qk_bits, integer))
    for name, bits, allowed in found:
        if bits not in allowed:
            raise ConfigError(f"{name} is {bits}; allowed are {', '.join(map(str, allowed))}")


def _check_ways(recipe: Recipe) -> None:
    if recipe.rounding not in ROUNDINGS:
        raise ConfigError(f"rounding is '{recipe.rounding}'; known are {', '.join(ROUNDINGS)}")
    if recipe.group_size not in GROUP_SIZES:
        raise ConfigError(f"group_size is {recipe.group_size}; allowed are 64, 128, and None for one scale per output "
                          "channel")
    if not (math.isfinite(recipe.damping_ratio) and recipe.damping_ratio >= 0.0):
        raise ConfigError(f"damping_ratio is {recipe.damping_ratio}; it is a share of 0 or more, usually 0.01")
    if recipe.smoothing is not None and not 0.0 <= recipe.smoothing <= 1.0:
        raise ConfigError(f"smoothing is {recipe.smoothing}; alpha is 0 to 1, usually 0.5")
    if recipe.smoothing is not None and recipe.rotation is not None:
        raise ConfigError("the recipe has both smoothing and rotation; a rotation folds the norms' gains into the "
                          "weights and so undoes the smoothing. Set one of them to None")


def _check_mean_bits(recipe: Recipe) -> None:
    if recipe.mean_bits is None or not 2.0 <= recipe.mean_bits <= 16.0:
        raise ConfigError(f"mean_bits is {recipe.mean_bits}; allowed are 2 to 16, and None for one width in all rows")
    if recipe.projections is not None and recipe.projections < 1:
        raise ConfigError(f"projections is {recipe.projections}; give 1 or more, or None for the exact Jacobian")
    if recipe.measured_pairs < 0:
        raise ConfigError(f"measured_pairs is {recipe.measured_pairs}; give 0 or more")
    for key, fixed in _FIXED_BY_MEAN_BITS.items():
        if getattr(recipe, key) != fixed:
            raise ConfigError(f"{key} is {getattr(recipe, key)!r}; with mean_bits it can only be {fixed!r}")
    for pattern, bits in recipe.weight_bits_by_pattern:
        if bits != FLOAT_BITS:
            raise ConfigError(f"weight_bits_by_pattern '{pattern}' is {bits}; mean_bits decides the bits of all that "
                              f"is rounded, so only {FLOAT_BITS}, for a linear that stays float, is allowed")


def _last_match(name: str, pairs: tuple[tuple[str, int], ...], otherwise: int) -> int:
    bits = otherwise
    for pattern, other in pairs:
        if fnmatchcase(name, pattern):
            bits = other
    return bits
