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

"""One verb quantizes a whole model and says what it did."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.llama import Choice, PruneStep, RMSNorm
from sqap_vla_ros.quantization.gptq import Hessian, factorize, round_with_compensation
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.integer import unpack
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, RoundedQueries
from sqap_vla_ros.quantization.quantize import RECIPES, W4A4, W4A8, W8A8, Recipe, WeightOnly4, quantize_
from sqap_vla_ros.quantization.recipe import MixedWidths
from sqap_vla_ros.quantization.report import LinearReport
from sqap_vla_ros.quantization.rotation import RotationPlan, rotate_


def snr(tiny: Any, recipe: Recipe, sqnr_db: Any, engine: str = "cpu") -> float:
    model = copy.deepcopy(tiny.model)
    quantize_(model, recipe, engine=engine, calibration=tiny.calibration(model) if recipe.needs_calibration else ())
    return sqnr_db(tiny.hidden(tiny.model), tiny.hidden(model))


def test_every_linear_of_the_decoder_is_replaced_and_reported(tiny) -> None:
    names = set(tiny.model.quantizable_linears())
    floats = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items() if name.startswith("vision")}
    report = quantize_(tiny.model, W4A4())
    assert len(names) == 14 and set(report.replaced) == names and set(report.replaced.values()) == {"W4A4"}
    modules = dict(tiny.model.named_modules())
    assert all(isinstance(modules[name], QuantLinear) for name in names)
    assert report.float_reasons == tiny.model.float_reasons()
    assert all(torch.equal(tensor, tiny.model.state_dict()[name]) for name, tensor in floats.items())


@pytest.mark.parametrize(("recipe", "ratio"), [(W4A4(), 0.16), (W4A8(), 0.16), (W8A8(), 0.28)])
def test_bytes_are_those_of_the_stored_tensors(build_tiny, recipe: Recipe, ratio: float) -> None:
    tiny = build_tiny(hidden=256, intermediate=768, heads=8, kv_heads=8)
    report = quantize_(tiny.model, recipe)
    stored = [tensor for name, tensor in tiny.model.state_dict().items() if name.startswith("decoder.layers")]
    assert report.weight_bytes == sum(tensor.nbytes for tensor in stored)
    weights = 2 * (4 * 256 * 256 + 3 * 256 * 768)
    channels = 2 * (4 * 256 + 2 * 768 + 256)
    assert report.float32_bytes == 4 * weights
    assert report.weight_bytes == weights * recipe.weight_bits // 8 + 4 * channels
    assert report.prepared_bytes == weights
    assert report.ratio == report.weight_bytes / report.float32_bytes < ratio


def test_report_tells_what_every_linear_became(build_tiny) -> None:
    tiny = build_tiny(hidden=128, intermediate=192, heads=4, kv_heads=2)
    recipe = W4A8(group_size=64, weight_bits_by_pattern=(("*.o_proj", 8), ("*.1.mlp.down_proj", 16)))
    report = quantize_(tiny.model, recipe)
    modules = dict(tiny.model.named_modules())
    assert type(modules["decoder.layers.1.mlp.down_proj"]) is nn.Linear
    assert report.float_reasons == {**tiny.model.float_reasons(),
                                    "decoder.layers.1.mlp.down_proj": "the recipe gives its weight 16 bits"}
    assert len(report.linears) == 13 and "decoder.layers.1.mlp.down_proj" not in report.linears
    assert report.linears["decoder.layers.0.mlp.down_proj"] == LinearReport(
        width="W4A8", rounding="nearest", group_size=64, weights=128 * 192, bits_per_weight=4.5,
        stored_bytes=128 * 192 // 2 + 128 * 3 * 4, prepared_bytes=128 * 192, float32_bytes=4 * 128 * 192)
    outputs = report.linears["decoder.layers.1.self_attn.o_proj"]
    assert (outputs.width, outputs.bits_per_weight, outputs.stored_bytes) == ("W8A8", 8.5, 128 * 128 + 128 * 2 * 4)
    fours, eights = 2 * (2 * 128 * 64 + 128 * 128 + 2 * 128 * 192) + 128 * 192, 2 * 128 * 128
    assert report.bits_per_weight == pytest.approx((4.5 * fours + 8.5 * eights) / (fours + eights), rel=1e-12)
    assert report.weight_bytes == round(report.bits_per_weight * (fours + eights) / 8)


@pytest.mark.parametrize("recipe", [
    W4A4(), W8A8(qk_bits=8), W4A4(group_size=64), W4A8(group_size=128, weight_bits_by_pattern=(("*.o_proj", 8),)),
    WeightOnly4(group_size=64), W4A4(rounding="gptq"), W8A8(rotation=None, smoothing=0.5), MixedWidths(act_bits=4)])
def test_engines_give_the_same_output_to_the_bit(build_tiny, many_threads, recipe: Recipe) -> None:
    tiny = build_tiny(hidden=128, intermediate=384)
    outputs = []
    for engine in ("cpu", "reference"):
        model = copy.deepcopy(tiny.model)
        quantize_(model, recipe, engine=engine, calibration=tiny.calibration(model, 3))
        outputs.append(tiny.hidden(model))
    assert torch.equal(*outputs)


def test_more_bits_are_closer(tiny, sqnr_db) -> None:
    four, mixed, eight = (snr(tiny, recipe, sqnr_db) for recipe in (W4A4(), W4A8(), W8A8()))
    assert four > 6.0
    assert mixed > four + 1.0
    assert eight > mixed + 15.0


def test_rotation_recovers_what_outliers_cost(build_tiny, sqnr_db) -> None:
    tiny = build_tiny(intermediate=768)
    before = tiny.hidden(tiny.model)
    even = snr(tiny, W4A4(rotation=None), sqnr_db)
    tiny.add_outliers(30.0)
    assert torch.allclose(tiny.hidden(tiny.model), before, atol=1e-4)
    plain, rotated = (snr(tiny, W4A4(rotation=rotation), sqnr_db) for rotation in (None, RotationPlan()))
    assert plain < even - 8.0
    assert rotated > plain + 8.0


def test_smoothing_recovers_some_of_what_outliers_cost(tiny, sqnr_db) -> None:
    tiny.add_outliers(30.0)
    for plain, smooth in ((W4A4(rotation=None), W4A4(rotation=None, smoothing=0.5)),
                          (W8A8(rotation=None), W8A8(rotation=None, smoothing=0.5))):
        assert snr(tiny, smooth, sqnr_db) > snr(tiny, plain, sqnr_db) + 2.0


def test_groups_and_compensation_are_closer(build_tiny, sqnr_db) -> None:
    tiny = build_tiny(hidden=128, intermediate=384)
    nearest, groups, compensated = (snr(tiny, recipe, sqnr_db) for recipe in (
        WeightOnly4(), WeightOnly4(group_size=64), WeightOnly4(rounding="gptq")))
    assert groups > nearest + 1.5
    assert compensated > nearest + 10.0
    assert snr(tiny, W4A4(rounding="gptq"), sqnr_db) > snr(tiny, W4A4(), sqnr_db) + 2.0


def test_blocks_are_calibrated_on_what_quantized_ones_give(tiny) -> None:
    rotated = copy.deepcopy(tiny.model)
    rotate_(rotated.rotation_sites(), 0, RotationPlan(queries_keys=False))
    quantize_(tiny.model, W4A4(rounding="gptq"), calibration=tiny.calibration(tiny.model))
    found = tiny.model.decoder.layers[1].mlp.down_proj
    weight = rotated.decoder.layers[1].mlp.down_proj.weight.detach().clone()

    def codes(model: nn.Module) -> torch.Tensor:
        hessian = Hessian(96, 4, 0.9, torch.device("cpu"))
        handle = model.decoder.layers[1].mlp.down_proj.register_forward_pre_hook(
            lambda module, args: hessian.add(args[0]))
        for run in tiny.calibration(model):
            run()
        handle.remove()
        return round_with_compensation(weight, factorize(hessian, "down_proj"), 4, smallest_clip_ratio=0.5,
                                       steps=26)[0]

    mixed = copy.deepcopy(rotated)
    mixed.decoder.layers[0] = tiny.model.decoder.layers[0]
    assert torch.equal(unpack(found.weight_packed, 4, 96), codes(mixed))
    assert not torch.equal(unpack(found.weight_packed, 4, 96), codes(rotated))


def test_compensation_is_only_within_blocks(tiny) -> None:
    linears = {**tiny.model.quantizable_linears(), "head_fc1": tiny.model.head_fc1}
    tiny.model.quantizable_linears = lambda: linears
    recipe = W8A8(rounding="gptq", weight_bits_by_pattern=(("*.layers.1.*", 16),))
    report = quantize_(tiny.model, recipe, calibration=tiny.calibration(tiny.model, 2))
    assert {name: entry.rounding for name, entry in report.linears.items()} == {
        **{name: "gptq" for name in linears if ".layers.0." in name}, "head_fc1": "nearest"}
    assert isinstance(tiny.model.decoder.norm, QuantRMSNorm)


def test_sixteen_activation_bits_leave_norms_alone(tiny, sqnr_db) -> None:
    before = tiny.hidden(tiny.model)
    report = quantize_(tiny.model, WeightOnly4())
    assert set(report.replaced.values()) == {"W4A16"}
    assert all(isinstance(layer.input_layernorm, RMSNorm) for layer in tiny.model.decoder.layers)
    assert sqnr_db(before, tiny.hidden(tiny.model)) > 12.0


def test_sensitive_layers_may_take_eight_bit_activations(tiny, sqnr_db) -> None:
    recipe = W4A4(act_bits_by_pattern=(("*.o_proj", 8), ("*.down_proj", 8)))
    report = quantize_(copy.deepcopy(tiny.model), recipe)
    assert {name.rpartition(".")[2] for name, bits in report.replaced.items() if bits == "W4A8"} == {"o_proj",
                                                                                                   "down_proj"}
    assert snr(tiny, recipe, sqnr_db) > snr(tiny, W4A4(), sqnr_db)


def test_norms_round_for_readers_that_round_alike(tiny) -> None:
    mixed = copy.deepcopy(tiny.model)
    quantize_(tiny.model, W4A4())
    for layer in tiny.model.decoder.layers:
        assert isinstance(layer.input_layernorm, QuantRMSNorm)
        assert isinstance(layer.post_attention_layernorm, QuantRMSNorm)
    assert isinstance(tiny.model.decoder.norm, RMSNorm)
    quantize_(mixed, W4A4(act_bits_by_pattern=(("*.v_proj", 8),)))
    assert isinstance(mixed.decoder.layers[0].input_layernorm, RMSNorm)
    assert isinstance(mixed.decoder.layers[0].post_attention_layernorm, QuantRMSNorm)


def test_without_rotation_gains_stay_where_they_are(tiny) -> None:
    gain = tiny.model.decoder.layers[0].input_layernorm.weight.clone()
    quantize_(tiny.model, W4A4(rotation=None))
    assert torch.equal(tiny.model.decoder.layers[0].input_layernorm.weight, gain)


def test_queries_and_keys_are_rotated_where_they_are_rounded(tiny) -> None:
    def sites(recipe: Recipe) -> list[type]:
        model = copy.deepcopy(tiny.model)
        quantize_(model, recipe)
        online = model.decoder.layers[1].self_attn.qk_online
        return [type(part) for part in (online if isinstance(online, nn.Sequential) else [online])]

    assert sites(W4A4()) == [nn.Identity]
    assert sites(W4A4(qk_bits=4)) == [HadamardRotation, RoundedQueries]
    assert sites(W4A4(qk_bits=4, rotation=RotationPlan(queries_keys=False))) == [nn.Identity, RoundedQueries]


def test_rotated_keys_keep_the_scores_that_outliers_spoil(sqnr_db) -> None:
    queries, keys = torch.randn(1, 4, 50, 64), torch.randn(1, 4, 50, 64)
    keys[..., 5] *= 15.0
    queries[..., 5] /= 15.0
    rotation, rounding = HadamardRotation(64, 0), RoundedQueries(4)
    exact = queries @ keys.mT
    plain = rounding(queries) @ rounding(keys).mT
    rotated = rounding(rotation(queries)) @ rounding(rotation(keys)).mT
    assert torch.allclose(rotation(queries) @ rotation(keys).mT, exact, atol=1e-3)
    assert sqnr_db(exact, rotated) > sqnr_db(exact, plain) + 3.0


def test_quantized_model_prunes(tiny) -> None:
    quantize_(tiny.model, W4A4())
    prune = PruneStep(0, slice(1, 17), lambda scores, _: Choice(scores.topk(6).indices.sort().values))
    assert tiny.hidden(tiny.model, prune).shape == (1, 16 + 2 + 4 - 10, 64)


def test_seed_makes_it_repeatable(tiny) -> None:
    models = [copy.deepcopy(tiny.model) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        quantize_(model, W4A4(seed=seed))
    first, second, third = (tiny.hidden(model) for model in models)
    assert torch.equal(first, second) and not torch.equal(first, third)


@pytest.mark.parametrize(("recipe", "engine", "message"), [
    (W4A4(), "gpu", "unknown engine 'gpu'"),
    (W4A4(weight_bits=3), "cpu", "weight_bits is 3"),
    (W4A4(act_bits_by_pattern=(("*.lm_head", 8),)), "cpu", "matches no linear"),
    (W4A4(group_size=64), "cpu", "'decoder.layers.0.mlp.down_proj' reads 96 channels"),
    (RECIPES["w4a4"], "cpu", "rounding 'gptq' needs a calibration"),
    (RECIPES["smoothquant-w8a8"], "cpu", "smoothing 0.5 needs a calibration"),
    (RECIPES["qvla-w4a4"], "cpu", "mean_bits 4 needs a calibration"),
    (W4A4(rotation=RotationPlan(stream_block=24)), "cpu", "blocks of 24"),
])
def test_wrong_recipe_leaves_the_model_whole(tiny, recipe: Recipe, engine: str, message: str) -> None:
    before = tiny.hidden(tiny.model)
    with pytest.raises(ConfigError, match=message):
        quantize_(tiny.model, recipe, engine=engine)
    assert torch.equal(tiny.hidden(tiny.model), before)


@pytest.mark.parametrize("name", ["w4a4", "smoothquant-w4a4"])
def test_calibration_of_another_model_leaves_the_model_whole(tiny, build_tiny, name: str) -> None:
    before, other = tiny.hidden(tiny.model), build_tiny()
    with pytest.raises(ConfigError, match="of the calibration"):
        quantize_(tiny.model, RECIPES[name], calibration=other.calibration(other.model, 2))
    assert torch.equal(tiny.hidden(tiny.model), before)


def test_compensation_needs_blocks(tiny) -> None:
    tiny.model.blocks = list
    with pytest.raises(ConfigError, match="names no blocks"):
        quantize_(tiny.model, RECIPES["w4a4"], calibration=tiny.calibration(tiny.model, 1))


def test_quantizing_twice_is_refused(tiny) -> None:
    quantize_(tiny.model, W4A4())
    with pytest.raises(ConfigError, match="no float linear left"):
        quantize_(tiny.model, W4A4())
