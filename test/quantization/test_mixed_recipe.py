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

"""Recipes that give every output channel bits of its own."""

import copy

import pytest
import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.llama import RMSNorm
from sqap_vla_ros.quantization.linear import QuantRMSNorm
from sqap_vla_ros.quantization.mixed import MixedLinear
from sqap_vla_ros.quantization.quantize import RECIPES, Recipe, WeightOnly4, quantize_
from sqap_vla_ros.quantization.recipe import MixedWidths


@pytest.mark.parametrize("name", ["qvla-4bit", "qvla-w4a4"])
def test_bits_go_where_the_actions_need_them(tiny, name: str) -> None:
    recipe = RECIPES[name]
    before, linears = tiny.hidden(tiny.model), tiny.model.quantizable_linears()
    told: list[tuple[str, int, int]] = []
    report = quantize_(tiny.model, recipe, calibration=tiny.calibration(tiny.model, 2),
                       listener=lambda *step: told.append(step))
    modules = dict(tiny.model.named_modules())
    assert all(type(modules[name]) is MixedLinear for name in linears) and report.linears.keys() == linears.keys()
    rows = {key: entry.rows_by_bits for key, entry in report.linears.items()}
    assert all(sum(counts.values()) == linears[key].out_features for key, counts in rows.items())
    bits = sum(width * count * linears[key].in_features for key, counts in rows.items()
               for width, count in counts.items())
    assert 3.9 < bits / sum(linear.weight.numel() for linear in linears.values()) <= 4.0
    assert len({width for counts in rows.values() for width, count in counts.items() if count}) >= 3
    # Two passes and one for each measured pair, by observation; then the linears one by one.
    passes = 2 * (2 + recipe.measured_pairs)
    assert told == [("passes to find the bits", done + 1, passes) for done in range(passes)] + [
        ("linears rounded", done + 1, 14) for done in range(14)]
    norms = {type(layer.input_layernorm) for layer in tiny.model.decoder.layers}
    assert norms == {QuantRMSNorm if recipe.act_bits == 4 else RMSNorm}
    assert torch.isfinite(tiny.hidden(tiny.model)).all() and not torch.equal(tiny.hidden(tiny.model), before)


def test_bits_by_need_are_better_for_the_actions_than_the_same_for_all(tiny) -> None:
    # What it optimises: the summed squared distance of the actions that it was calibrated on.
    def distance(recipe: Recipe) -> float:
        model = copy.deepcopy(tiny.model)
        quantize_(model, recipe, calibration=tiny.calibration(model))
        with torch.no_grad():
            return sum(float((run() - exact()).square().sum()) for run, exact in
                       zip(tiny.calibration(model), tiny.calibration(tiny.model), strict=True))

    same = distance(WeightOnly4(rotation=None))
    assert distance(MixedWidths(rotation=None, projections=None)) < same / 2


def test_linear_without_a_say_is_refused_before_anything_changes(tiny) -> None:
    before = tiny.hidden(tiny.model)
    with pytest.raises(ConfigError, match="observation 1 of 2 of the calibration does not run the first block"):
        quantize_(tiny.model, RECIPES["qvla-4bit"], calibration=tiny.calibration(copy.deepcopy(tiny.model), 2))
    assert torch.equal(tiny.hidden(tiny.model), before)
