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

"""The one verb, ``quantize_(model, recipe)``.

It knows a model only by what the model says of itself: where it can be rotated, which linears may be quantized, which
blocks they lie in, and what stays float and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.bit_allocation import allocate_bits, estimate_sensitivity, refine_sensitivity
from sqap_vla_ros.quantization.calibration import BlockCall, Calibration, Run, catch_calls, observe_inputs
from sqap_vla_ros.quantization.gptq import Hessian, HessianFactor, factorize, round_with_compensation
from sqap_vla_ros.quantization.integer import FLOAT_BITS, quantize_weight
from sqap_vla_ros.quantization.kernels import get_engine
from sqap_vla_ros.quantization.kernels.engine import Engine
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, RoundedQueries
from sqap_vla_ros.quantization.mixed import MixedLinear
from sqap_vla_ros.quantization.parts import MEMORY, Part, Store, split_parts
from sqap_vla_ros.quantization.recipe import RECIPES, W4A4, W4A8, W8A8, Recipe, WeightOnly4, check_recipe
from sqap_vla_ros.quantization.report import LinearReport, Listener, QuantizationReport, report_linear
from sqap_vla_ros.quantization.rotation import Reader, RotationSites, check_rotation, rotate_
from sqap_vla_ros.quantization.smoothing import observe_peaks, smooth_

__all__ = ["RECIPES", "W4A4", "W4A8", "W8A8", "Quantizable", "QuantizationReport", "Recipe", "WeightOnly4",
           "quantize_"]


class Quantizable(Protocol):
    """What a model must say of itself; the last two methods are those of ``nn.Module``."""

    def rotation_sites(self) -> RotationSites:
        """Where the residual stream can be rotated."""

    def quantizable_linears(self) -> dict[str, nn.Linear]:
        """Linears that recipes may quantize, by qualified name."""

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers in order; each is called as block(x, ...) and returns x or (x, ...)."""

    def float_reasons(self) -> dict[str, str]:
        """Name of each part that stays float, and why."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules by qualified name."""

    def set_submodule(self, target: str, module: nn.Module) -> None:
        """Put a module in the place of the one with that name."""


def works_in_parts(recipe: Recipe) -> bool:
    """Whether no more of the model than one block and the rest must be there at a time."""
    return recipe.smoothing is None and recipe.mean_bits is None


def check_model(model: Quantizable, recipe: Recipe) -> None:
    """Find out whether a recipe fits a model, whose weights need not be there.

    :raises ConfigError: as :func:`quantize_` does
    """
    check_recipe(recipe, model.quantizable_linears())
    if recipe.rotation is not None:
        check_rotation(model.rotation_sites(), recipe.rotation)
    if recipe.rounding == "gptq" and not model.blocks():
        raise ConfigError("the model names no blocks, and rounding 'gptq' works through blocks; take 'nearest'")


@torch.no_grad()
def quantize_(model: Quantizable, recipe: Recipe, *, engine: str = "cpu", calibration: Calibration = (),
              store: Store = MEMORY, listener: Listener = lambda stage, done, total: None) -> QuantizationReport:
    """Rotate or smooth a float model and replace its linears by integer ones, in place.

    :param model: float32 or float64, as its checkpoint gives it
    :param recipe: how
    :param engine: what multiplies the integers, by name
    :param calibration: observations of this model object, for recipes that need some; with ``mean_bits`` their actions
        must be differentiable
    :param store: where parts of the model are that nobody works on; for a model that is there whole, nowhere else
    :param listener: told of each step
    :raises ConfigError: for an unknown engine, a recipe that does not fit (see
        :func:`~sqap_vla_ros.quantization.recipe.check_recipe`), a calibration that is missing or is another model's, a
        size that cannot be rotated, or a model that is quantized already; nothing has been changed then. Inputs that
        GPTQ cannot use (see :func:`~sqap_vla_ros.quantization.gptq.factorize`) are found on the way: the model is half
        quantized then, and its checkpoint has to be loaded again
    """
    chosen = get_engine(engine)
    check_model(model, recipe)
    linears = model.quantizable_linears()
    if recipe.needs_calibration and not calibration:
        raise ConfigError(f"the recipe's {recipe.calibrated_part} needs a calibration, and none was given; give some "
                          "observations of the model, or take a recipe that needs none")
    rounded = {name: linear for name, linear in linears.items() if recipe.weight_bits_of(name) != FLOAT_BITS}
    blocks, compensates = model.blocks(), recipe.rounding == "gptq"
    rest, *others = parts = split_parts(model, blocks)
    in_parts = works_in_parts(recipe)
    for part in parts[:1] if in_parts else parts:
        store.bring_(part)
    # Only now: sites name the embeddings themselves, and a store may have put others there.
    work = _Work(model, recipe, chosen, len(rounded), listener)
    if recipe.needs_calibration and blocks:
        catch_calls(blocks[0], calibration)  # an observation that fails does so before anything changes
    if recipe.smoothing is not None:
        work.smooth_(rounded, calibration)
    for part in parts[:1] if in_parts else parts:
        work.rotate_(part)
    if recipe.mean_bits is not None:
        work.allocate(rounded, calibration, recipe.mean_bits)
    calls = catch_calls(blocks[0], calibration) if compensates else []
    work.replace_(_take_inside(rest, rounded), {})
    store.put_away_(rest)
    for index, (part, block) in enumerate(zip(others, blocks, strict=True)):
        if in_parts:
            store.bring_(part)
            work.rotate_(part)
        here = _take_inside(part, rounded)
        work.replace_(here, work.factorize_inputs(block, calls, here) if compensates and here else {})
        if index + 1 < len(blocks):
            calls = [call.through(block) for call in calls]
        store.put_away_(part)
    float_reasons = {name: "the recipe gives its weight 16 bits" for name in linears
                     if recipe.weight_bits_of(name) == FLOAT_BITS}
    return QuantizationReport({name: work.reports[name] for name in linears if name in work.reports},
                              {**model.float_reasons(), **float_reasons})


class _Work:
    """What one call of the verb carries along.

    :param model: being quantized
    :param recipe: how
    :param engine: what multiplies the integers
    :param total: linears that will be replaced
    :param listener: told of each step
    """

    def __init__(self, model: Quantizable, recipe: Recipe, engine: Engine, total: int, listener: Listener) -> None:
        self.model, self.recipe, self.engine = model, recipe, engine
        self.sites = replace(model.rotation_sites(), embeddings=())  # which would keep theirs in memory
        self.reports: dict[str, LinearReport] = {}
        self._total, self._listener = total, listener
        self._quantized: dict[nn.Module, QuantLinear | MixedLinear] = {}
        self._row_bits: dict[str, Tensor] = {}

    def smooth_(self, linears: Mapping[str, nn.Linear], calibration: Calibration) -> None:
        """Move what is hard to round from the inputs of linears into their weights.

        :param linears: that will be rounded, by qualified name
        :param calibration: what is observed
        """
        readers = [reader for reader in self.sites.readers if set(linears.values()).intersection(reader.linears)]
        names = {module: name for name, module in self.model.named_modules()}
        smooth_(readers, observe_peaks(readers, calibration, names), cast(float, self.recipe.smoothing))

    def rotate_(self, part: Part) -> None:
        """Rotate a part, where the recipe does, and let its queries and keys be rounded."""
        # Asked anew, as parameters that were brought meanwhile are others than those before.
        recipe, sites = self.recipe, self.model.rotation_sites().within(part.modules)
        if recipe.rotation is not None:
            rotates_queries_keys = recipe.rotation.queries_keys and recipe.qk_bits is not None
            rotate_(sites, recipe.seed, replace(recipe.rotation, queries_keys=rotates_queries_keys))
        if recipe.qk_bits is not None:
            for attention in sites.attentions:
                attention.qk_online = nn.Sequential(attention.qk_online, RoundedQueries(recipe.qk_bits))

    def allocate(self, linears: Mapping[str, nn.Linear], calibration: Calibration, mean_bits: float) -> None:
        """Find the bits of every output channel.

        :param linears: that will be rounded, by qualified name
        :param calibration: whose actions say what rounding costs
        :param mean_bits: not to be exceeded
        """
        recipe = self.recipe
        passes = len(calibration) * (2 + recipe.measured_pairs if recipe.measured_pairs else 1)
        done = 0

        def counted(run: Run) -> Run:
            def run_and_tell() -> Tensor:
                nonlocal done
                actions = run()
                done += 1
                self._listener("passes to find the bits", done, passes)
                return actions

            return run_and_tell

        runs = [counted(run) for run in calibration]
        sensitivity = estimate_sensitivity(linears, runs, projections=recipe.projections, seed=recipe.seed)
        if recipe.measured_pairs:
            sensitivity = refine_sensitivity(sensitivity, linears, runs, recipe.measured_pairs)
        self._row_bits = allocate_bits(sensitivity, mean_bits).bits

    def factorize_inputs(self, block: nn.Module, calls: list[BlockCall],
                         linears: Mapping[str, nn.Linear]) -> dict[str, HessianFactor]:
        """Run a float block for what GPTQ must know of its linears' inputs, by the linears' names."""
        groups = self._group_by_input(linears)
        hessians = []
        for names in groups:
            first, act_bits = linears[names[0]], self.recipe.act_bits_of(names[0])
            hessians.append(Hessian(first.in_features, act_bits, self.recipe.act_clip_ratio_of(act_bits),
                                    first.weight.device))
        with observe_inputs({linears[names[0]]: hessian.add for names, hessian in zip(groups, hessians, strict=True)}):
            for call in calls:
                call.through(block)
        factors = {}
        for names in groups:
            # Taken from the list, so that no Hessian outlives its factor.
            factor = factorize(hessians.pop(0), ", ".join(names), damping_ratio=self.recipe.damping_ratio,
                               order_by_activation=self.recipe.order_by_activation)
            factors.update(dict.fromkeys(names, factor))
        return factors

    def replace_(self, linears: Mapping[str, nn.Linear], factors: Mapping[str, HessianFactor]) -> None:
        """Put integer linears in the place of float ones.

        :param linears: by qualified name
        :param factors: of those that GPTQ rounds; the others are rounded to nearest
        """
        for name, linear in linears.items():
            new = self._round(name, linear, factors.get(name))
            self.model.set_submodule(name, new)
            self._quantized[linear] = new
            self.reports[name] = report_linear(new, "gptq" if name in factors else "nearest")
            self._listener("linears rounded", len(self.reports), self._total)
        replaced = set(linears.values())
        self._share_rounding_([reader for reader in self.sites.readers if replaced.intersection(reader.linears)])

    def _round(self, name: str, linear: nn.Linear, factor: HessianFactor | None) -> QuantLinear | MixedLinear:
        recipe = self.recipe
        weight_bits, act_bits = recipe.weight_bits_of(name), recipe.act_bits_of(name)
        if name in self._row_bits:
            return MixedLinear.from_linear(linear, self._row_bits[name], act_bits=act_bits, engine=self.engine,
                                           act_clip_ratio=recipe.act_clip_ratio_of(act_bits))
        if factor is None:
            codes, scale = quantize_weight(linear.weight, weight_bits, group_size=recipe.group_size,
                                           smallest_clip_ratio=recipe.smallest_clip_ratio, steps=recipe.clip_steps)
        else:
            codes, scale = round_with_compensation(
                linear.weight, factor, weight_bits, group_size=recipe.group_size,
                smallest_clip_ratio=recipe.smallest_clip_ratio, steps=recipe.clip_steps)
        return QuantLinear.from_codes(linear, codes, scale, weight_bits=weight_bits, act_bits=act_bits,
                                      act_clip_ratio=recipe.act_clip_ratio_of(act_bits), engine=self.engine)

    def _group_by_input(self, linears: Mapping[str, nn.Linear]) -> list[list[str]]:
        # Linears behind one norm read the same tokens; where they round them alike, they have one Hessian.
        norms = {linear: reader.norm for reader in self.sites.readers for linear in reader.linears}
        groups: dict[tuple[int, int], list[str]] = {}
        for name, linear in linears.items():
            groups.setdefault((id(norms.get(linear, linear)), self.recipe.act_bits_of(name)), []).append(name)
        return list(groups.values())

    def _share_rounding_(self, readers: list[Reader]) -> None:
        # A norm without gain rounds its output once for all its readers, when they all round alike.
        names = {id(module): name for name, module in self.model.named_modules()}
        for reader in readers:
            new = [self._quantized[linear] for linear in reader.linears if linear in self._quantized]
            ways = {(linear.act_bits, linear.act_clip_ratio) for linear in new}
            alike = len(new) == len(reader.linears) and len(ways) == 1 and new[0].act_bits != FLOAT_BITS
            if alike and torch.all(reader.norm.weight == 1):
                self.model.set_submodule(names[id(reader.norm)], QuantRMSNorm(reader.norm.eps, *ways.pop()))


def _take_inside(part: Part, linears: dict[str, nn.Linear]) -> dict[str, nn.Linear]:
    # Those of a part, which are left out of the others from then on.
    return {name: linears.pop(name) for name in list(linears) if part.holds(name)}
