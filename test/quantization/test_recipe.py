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

"""Recipes are frozen, have the names users know, and are refused before they do harm."""

import dataclasses

import pytest
from torch import nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.knobs import ModelKnobs
from sqap_vla_ros.quantization.recipe import (
    RECIPES,
    W4A4,
    W4A8,
    W8A8,
    MixedWidths,
    Recipe,
    WeightOnly4,
    check_recipe,
)
from sqap_vla_ros.quantization.rotation import RotationPlan

LINEARS = {"layers.0.q_proj": nn.Linear(128, 8), "layers.0.down_proj": nn.Linear(192, 8)}


def test_names_are_those_of_the_documentation() -> None:
    assert {name: (recipe.weight_bits, recipe.act_bits, recipe.rotation is not None, recipe.rounding, recipe.smoothing)
            for name, recipe in RECIPES.items()} == {
        "w4a4-rtn": (4, 4, True, "nearest", None), "w4a4": (4, 4, True, "gptq", None),
        "w4a4-rtn-plain": (4, 4, False, "nearest", None), "w4a8-rtn": (4, 8, True, "nearest", None),
        "w4a4-qk4": (4, 4, True, "gptq", None), "w4a4-qk4-plain": (4, 4, True, "gptq", None),
        "w4a8": (4, 8, True, "gptq", None),
        "w8a8": (8, 8, True, "nearest", None), "w4a16": (4, 16, False, "nearest", None),
        "smoothquant-w8a8": (8, 8, False, "nearest", 0.5), "smoothquant-w4a4": (4, 4, False, "nearest", 0.5),
        "qvla-4bit": (4, 16, False, "nearest", None), "qvla-w4a4": (4, 4, True, "nearest", None)}
    assert {name: recipe.calibrated_part for name, recipe in RECIPES.items() if recipe.needs_calibration} == {
        "w4a4": "rounding 'gptq'", "w4a4-qk4": "rounding 'gptq'", "w4a4-qk4-plain": "rounding 'gptq'",
        "w4a8": "rounding 'gptq'", "smoothquant-w8a8": "smoothing 0.5",
        "smoothquant-w4a4": "smoothing 0.5", "qvla-4bit": "mean_bits 4", "qvla-w4a4": "mean_bits 4"}
    assert {name for name, recipe in RECIPES.items() if recipe.mean_bits is not None} == {"qvla-4bit", "qvla-w4a4"}
    assert RECIPES["w4a4-rtn"] == W4A4() and RECIPES["w4a16"] == WeightOnly4(rotation=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["w4a4-rtn"].weight_bits = 8  # type: ignore[misc]


def test_recipes_with_rounded_queries_differ_from_ours_in_that_and_from_each_other_in_their_rotation() -> None:
    ours, rotated, plain = (RECIPES[name] for name in ("w4a4", "w4a4-qk4", "w4a4-qk4-plain"))
    assert rotated == dataclasses.replace(ours, qk_bits=4)
    assert plain == dataclasses.replace(rotated, rotation=RotationPlan(queries_keys=False))
    assert {name for name, recipe in RECIPES.items() if recipe.qk_bits is not None} == {"w4a4-qk4", "w4a4-qk4-plain"}


def test_the_knob_offers_every_recipe_and_what_is_none() -> None:
    knob = next(entry for entry in dataclasses.fields(ModelKnobs) if entry.name == "recipe").metadata["knob"]
    assert knob.choices == ("float", "stored", *RECIPES)


def test_recipes_of_the_package_fit_and_last_pattern_counts() -> None:
    for recipe in RECIPES.values():
        check_recipe(recipe, LINEARS)
    recipe = W4A8(weight_bits_by_pattern=(("layers.*", 8), ("*.down_proj", 16)),
                  act_bits_by_pattern=(("*.q_proj", 4), ("*.down_proj", 16)))
    check_recipe(recipe, LINEARS)
    assert [recipe.weight_bits_of(name) for name in LINEARS] == [8, 16]
    assert [recipe.act_bits_of(name) for name in LINEARS] == [4, 16]
    assert [recipe.weight_bits_of("head"), recipe.act_bits_of("head")] == [4, 8]
    assert [recipe.act_clip_ratio_of(bits) for bits in (4, 8, 16)] == [0.9, 1.0, 1.0]


@pytest.mark.parametrize(("recipe", "message"), [
    (W4A4(weight_bits=3), "weight_bits is 3; allowed are 4, 8$"),
    (W4A4(weight_bits=16), "weight_bits is 16; allowed are 4, 8$"),
    (W4A4(act_bits=6), "act_bits is 6; allowed are 4, 8, 16"),
    (W4A4(qk_bits=2), "qk_bits is 2"),
    (W4A4(act_bits_by_pattern=(("*.q_proj", 5),)), r"act_bits_by_pattern '\*\.q_proj' is 5"),
    (W4A4(weight_bits_by_pattern=(("*.q_proj", 2),)), r"weight_bits_by_pattern '\*\.q_proj' is 2"),
    (W4A4(act_bits_by_pattern=(("*.lm_head", 8),)), r"act_bits_by_pattern '\*\.lm_head' matches no linear"),
    (W4A4(weight_bits_by_pattern=(("*.lm_head", 8),)), r"weight_bits_by_pattern '\*\.lm_head' matches no linear"),
    (W4A4(weight_bits_by_pattern=(("*", 16),)), "nothing is quantized"),
    (W4A4(rounding="up"), "rounding is 'up'; known are nearest, gptq"),  # type: ignore[arg-type]
    (W4A4(group_size=32), "group_size is 32"),
    (W4A4(group_size=128), r"'layers\.0\.down_proj' reads 192 channels, which groups of 128"),
    (W4A4(damping_ratio=-0.1), "damping_ratio is -0.1"),
    (W4A4(damping_ratio=float("nan")), "damping_ratio is nan"),
    (W8A8(rotation=None, smoothing=1.5), "smoothing is 1.5"),
    (W8A8(smoothing=0.5), "both smoothing and rotation"),
    (W8A8(rotation=RotationPlan(stream=False), smoothing=0.5), "both smoothing and rotation"),
    (MixedWidths(mean_bits=1.9), "mean_bits is 1.9; allowed are 2 to 16"),
    (MixedWidths(mean_bits=float("nan")), "mean_bits is nan"),
    (MixedWidths(projections=0), "projections is 0"), (MixedWidths(measured_pairs=-1), "measured_pairs is -1"),
    (MixedWidths(rounding="gptq"), "rounding is 'gptq'; with mean_bits it can only be 'nearest'"),
    (MixedWidths(group_size=64), "group_size is 64; with mean_bits it can only be None"),
    (MixedWidths(clip_steps=5), "clip_steps is 5; with mean_bits"),
    (MixedWidths(weight_bits_by_pattern=(("*.q_proj", 8),)), r"weight_bits_by_pattern '\*\.q_proj' is 8; mean_bits"),
])
def test_what_is_not_allowed_is_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_recipe(recipe, LINEARS)


def test_a_linear_that_stays_float_needs_no_whole_groups() -> None:
    check_recipe(W4A4(group_size=128, weight_bits_by_pattern=(("*.down_proj", 16),)), LINEARS)
    with pytest.raises(ConfigError, match="no float linear left"):
        check_recipe(W4A4(), {})
