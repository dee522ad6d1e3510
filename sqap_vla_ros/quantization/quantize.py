"""The one verb, ``quantize_(model, recipe)``, and the recipes as frozen types.

It knows a model only by what the model says of itself: where it can be rotated, which linears may be quantized, and
what stays float and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.kernels import get_engine
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, RoundedQueries
from sqap_vla_ros.quantization.rotation import RotationPlan, RotationSites, rotate_


class Quantizable(Protocol):
    """What a model must say of itself; the last two methods are those of ``nn.Module``."""

    def rotation_sites(self) -> RotationSites:
        """Where the residual stream can be rotated."""

    def quantizable_linears(self) -> dict[str, nn.Linear]:
        """Linears that recipes may quantize, by qualified name."""

    def float_reasons(self) -> dict[str, str]:
        """Name of each part that stays float, and why."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules by qualified name."""

    def set_submodule(self, target: str, module: nn.Module) -> None:
        """Put a module in the place of the one with that name."""


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized: weights rounded to nearest per output channel, activations per token.

    One prefill keeps no cache, so keys and values need no few bits; Q and K may be rounded all the same, to see what
    that does to the attention that pruning reads.

    :param weight_bits: 4 or 8
    :param act_bits: 4 or 8
    :param rotation: what is rotated first; None rounds the model as it is. Q and K are rotated only where
        ``qk_bits`` rounds them: for float ones it would cost time and change nothing
    :param seed: decides the signs of the rotations
    :param smallest_clip_ratio: lower end of the clip search of the weights
    :param clip_steps: how many clip ratios the search tries
    :param act_clip_ratio: share of a token's largest magnitude that its largest code stands for, where ``act_bits``
        is 4; eight bits are never clipped
    :param act_bits_by_pattern: (pattern, bits) pairs for linears that differ from ``act_bits``, by shell pattern of
        their qualified name; the last match counts
    :param qk_bits: bits of Q and K behind the rotary embedding and their rotation; None leaves them float
    """

    weight_bits: int
    act_bits: int
    rotation: RotationPlan | None = field(default_factory=RotationPlan)
    seed: int = 0
    smallest_clip_ratio: float = 0.5
    clip_steps: int = 26
    act_clip_ratio: float = 0.9
    act_bits_by_pattern: tuple[tuple[str, int], ...] = ()
    qk_bits: int | None = None

    def act_bits_of(self, name: str) -> int:
        """Activation bits of the linear called ``name``."""
        bits = self.act_bits
        for pattern, other in self.act_bits_by_pattern:
            if fnmatchcase(name, pattern):
                bits = other
        return bits

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


RECIPES: dict[str, Recipe] = {"w4a4": W4A4(), "w4a8": W4A8(), "w8a8": W8A8()}


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`quantize_` did.

    :param replaced: qualified name of each replaced linear, and its bits such as 'W4A4'
    :param float_reasons: name of each part that stayed float, and why
    :param weight_bytes: packed weights, scales and biases of the replaced linears: what a checkpoint holds
    :param prepared_bytes: the engine's form of the same weights, in memory beside the packed one
    :param float32_bytes: the same linears in float32
    """

    replaced: dict[str, str]
    float_reasons: dict[str, str]
    weight_bytes: int
    prepared_bytes: int
    float32_bytes: int

    @property
    def ratio(self) -> float:
        """Stored bytes over float32 bytes."""
        return self.weight_bytes / self.float32_bytes


@torch.no_grad()
def quantize_(model: Quantizable, recipe: Recipe, *, engine: str = "cpu") -> QuantizationReport:
    """Rotate a float model and replace its linears by integer ones, in place.

    :param model: float32 or float64, as its checkpoint gives it
    :param recipe: how
    :param engine: what multiplies the integers, by name
    :raises ConfigError: for an unknown engine, bits other than 4 and 8, a pattern that matches nothing, a size that
        cannot be rotated, or a model that is quantized already; nothing has been changed then
    """
    chosen = get_engine(engine)
    linears = model.quantizable_linears()
    _check(recipe, linears)
    sites = model.rotation_sites()
    if recipe.rotation is not None:
        rotates_queries_keys = recipe.rotation.queries_keys and recipe.qk_bits is not None
        rotate_(sites, recipe.seed, replace(recipe.rotation, queries_keys=rotates_queries_keys))
    quantized: dict[nn.Module, QuantLinear] = {}
    for name, linear in linears.items():
        bits = recipe.act_bits_of(name)
        quantized[linear] = QuantLinear.from_linear(
            linear, weight_bits=recipe.weight_bits, act_bits=bits, act_clip_ratio=recipe.act_clip_ratio_of(bits),
            smallest_clip_ratio=recipe.smallest_clip_ratio, clip_steps=recipe.clip_steps, engine=chosen)
        model.set_submodule(name, quantized[linear])
    _share_rounding_(model, sites, quantized)
    if recipe.qk_bits is not None:
        for attention in sites.attentions:
            attention.qk_online = nn.Sequential(attention.qk_online, RoundedQueries(recipe.qk_bits))
    return QuantizationReport(
        replaced={name: f"W{quantized[linear].weight_bits}A{quantized[linear].act_bits}"
                  for name, linear in linears.items()},
        float_reasons=dict(model.float_reasons()),
        weight_bytes=sum(new.stored_bytes for new in quantized.values()),
        prepared_bytes=sum(new.prepared_bytes for new in quantized.values()),
        float32_bytes=sum(4 * sum(parameter.numel() for parameter in linear.parameters()) for linear in quantized))


def _share_rounding_(model: Quantizable, sites: RotationSites, quantized: dict[nn.Module, QuantLinear]) -> None:
    # A norm without gain rounds its output once for all its readers, when they all round alike.
    names = {id(module): name for name, module in model.named_modules()}
    for reader in sites.readers:
        new = [quantized[linear] for linear in reader.linears if linear in quantized]
        ways = {(linear.act_bits, linear.act_clip_ratio) for linear in new}
        if len(new) == len(reader.linears) and len(ways) == 1 and torch.all(reader.norm.weight == 1):
            model.set_submodule(names[id(reader.norm)], QuantRMSNorm(reader.norm.eps, *ways.pop()))


def _check(recipe: Recipe, linears: dict[str, nn.Linear]) -> None:
    if not linears:
        raise ConfigError("the model has no float linear left to quantize; load its checkpoint again to quantize it "
                          "anew")
    allowed = {"weight_bits": recipe.weight_bits, "act_bits": recipe.act_bits, "qk_bits": recipe.qk_bits or 8}
    allowed |= {f"act_bits_by_pattern '{pattern}'": bits for pattern, bits in recipe.act_bits_by_pattern}
    for name, bits in allowed.items():
        if bits not in (4, 8):
            raise ConfigError(f"{name} is {bits}; integer linears have 4 or 8 bits")
    for pattern, _ in recipe.act_bits_by_pattern:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise ConfigError(f"act_bits_by_pattern '{pattern}' matches no linear; names look like "
                              f"'{next(iter(linears))}'")
