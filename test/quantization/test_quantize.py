"""One verb quantizes a whole model and says what it did."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from sqap_vla_ros.config import ModelKnobs
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.models.llama import PruneStep, RMSNorm
from sqap_vla_ros.quantization.hadamard import HadamardRotation
from sqap_vla_ros.quantization.linear import QuantLinear, QuantRMSNorm, RoundedQueries
from sqap_vla_ros.quantization.quantize import RECIPES, W4A4, W4A8, W8A8, Recipe, quantize_
from sqap_vla_ros.quantization.rotation import RotationPlan


def snr(tiny: Any, recipe: Recipe, sqnr_db: Any, engine: str = "cpu") -> float:
    model = copy.deepcopy(tiny.model)
    quantize_(model, recipe, engine=engine)
    return sqnr_db(tiny.hidden(tiny.model), tiny.hidden(model))


def test_recipes_carry_the_names_of_the_knob() -> None:
    recipe_knob = next(entry for entry in dataclasses.fields(ModelKnobs) if entry.name == "recipe").metadata["knob"]
    assert {"float", *RECIPES} == set(recipe_knob.choices)
    assert RECIPES["w4a4"] == W4A4() and RECIPES["w8a8"].weight_bits == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["w4a4"].weight_bits = 8  # type: ignore[misc]


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


def test_engines_give_the_same_output_to_the_bit(tiny) -> None:
    other = copy.deepcopy(tiny.model)
    quantize_(tiny.model, W4A4(), engine="cpu")
    quantize_(other, W4A4(), engine="reference")
    assert torch.equal(tiny.hidden(tiny.model), tiny.hidden(other))


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
    prune = PruneStep(0, slice(1, 17), lambda scores: scores.topk(6).indices.sort().values)
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
    (W4A4(act_bits=16), "cpu", "act_bits is 16"),
    (W4A4(qk_bits=2), "cpu", "qk_bits is 2"),
    (W4A4(act_bits_by_pattern=(("*.o_proj", 5),)), "cpu", "is 5"),
    (W4A4(act_bits_by_pattern=(("*.lm_head", 8),)), "cpu", "matches no linear"),
    (W4A4(rotation=RotationPlan(stream_block=24)), "cpu", "blocks of 24"),
])
def test_wrong_recipe_leaves_the_model_whole(tiny, recipe: Recipe, engine: str, message: str) -> None:
    before = tiny.hidden(tiny.model)
    with pytest.raises(ConfigError, match=message):
        quantize_(tiny.model, recipe, engine=engine)
    assert torch.equal(tiny.hidden(tiny.model), before)


def test_quantizing_twice_is_refused(tiny) -> None:
    quantize_(tiny.model, W4A4())
    with pytest.raises(ConfigError, match="no float linear left"):
        quantize_(tiny.model, W4A4())
