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

"""What an artifact says in the public format, read by the library that defines it where that is installed."""

import copy
import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sqap_vla_ros.quantization.artifact import Origin
from sqap_vla_ros.quantization.artifact_writer import save_artifact
from sqap_vla_ros.quantization.quantize import RECIPES, W4A4, W4A8, W8A8, Recipe, WeightOnly4, quantize_
from sqap_vla_ros.quantization.recipe import MixedWidths
from sqap_vla_ros.quantization.rotation import RotationPlan, rotate_

MISSING = "the library compressed-tensors 0.20, which needs Python 3.11 and torch 2.10, is not installed"
NAMES = [f"decoder.layers.{layer}.{name}" for layer in (0, 1) for name in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj")]
FLOATS = {"vision", "projector_fc1", "projector_fc2", "head_fc1", "head_fc2"}


@pytest.fixture
def write(build_tiny, tmp_path) -> Any:
    """Writer of an artifact by a recipe: the model, its config.json and its tensors."""

    def write(recipe: Recipe) -> tuple[Any, dict[str, Any], dict[str, torch.Tensor]]:
        tiny = build_tiny(hidden=128, intermediate=384)
        report = quantize_(tiny.model, recipe,
                           calibration=tiny.calibration(tiny.model, 2) if recipe.needs_calibration else ())
        save_artifact(tiny.model, tmp_path / "out", "some", recipe, report, config=tiny.model.config.to_json(),
                      origin=Origin("0", "x", {}), pruning={})
        return (tiny.model, json.loads((tmp_path / "out/config.json").read_text()),
                load_file(tmp_path / "out/model.safetensors"))

    return write


@pytest.mark.parametrize("recipe", [
    W4A4(), RECIPES["w4a4"], W8A8(rotation=None), WeightOnly4(group_size=64),
    W4A8(group_size=128, weight_bits_by_pattern=(("*.o_proj", 8), ("*.1.mlp.*", 16)),
         act_bits_by_pattern=(("*.down_proj", 16),))])
def test_public_library_unpacks_the_same_numbers(write, recipe: Recipe) -> None:
    pytest.importorskip("compressed_tensors", minversion="0.20", reason=MISSING)
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.transform import TransformConfig

    model, config, tensors = write(recipe)
    section = config["quantization_config"]
    public = QuantizationConfig(**section)
    assert (public.quant_method, public.format) == ("compressed-tensors", "pack-quantized")
    TransformConfig(**section["transform_config"])
    compressor = BaseCompressor.get_value_from_registry(public.format)
    modules, unpacked = dict(model.named_modules()), []
    for scheme in public.config_groups.values():
        for name in scheme.targets:
            linear = modules[name]
            assert (scheme.weights.num_bits, scheme.weights.symmetric) == (linear.weight_bits, True)
            assert (16 if scheme.input_activations is None else scheme.input_activations.num_bits) == linear.act_bits
            part = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
            assert compressor.compression_param_names(scheme) == ("weight_packed", "weight_scale", "weight_shape")
            assert torch.equal(compressor.decompress(part, scheme)["weight"], linear.dequantize())
            unpacked.append(name)
    assert sorted(unpacked) == sorted(name for name in NAMES if recipe.weight_bits_of(name) != 16)


def test_groups_hold_what_is_alike_and_the_rest_is_ignored(write) -> None:
    recipe = W4A8(group_size=64, weight_bits_by_pattern=(("*.o_proj", 8), ("*.1.mlp.down_proj", 16)),
                  act_bits_by_pattern=(("*.0.mlp.down_proj", 16),))
    model, config, tensors = write(recipe)
    section = config["quantization_config"]
    groups = list(section["config_groups"].values())
    assert [len(group["targets"]) for group in groups] == [10, 2, 1]
    assert groups[0]["weights"] == {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                                    "group_size": 64, "dynamic": False}
    assert groups[0]["input_activations"] == {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token",
                                              "group_size": None, "dynamic": True}
    assert groups[1]["targets"] == [name for name in NAMES if name.endswith("o_proj")]
    assert groups[1]["weights"]["num_bits"] == 8
    assert groups[2]["targets"] == ["decoder.layers.0.mlp.down_proj"] and groups[2]["input_activations"] is None
    assert {name.partition(".")[0] for name in section["ignore"]} == FLOATS | {"decoder"}
    assert [name for name in section["ignore"] if name.startswith("decoder")] == ["decoder.layers.1.mlp.down_proj"]
    assert torch.equal(tensors["decoder.layers.0.mlp.down_proj.weight_shape"], torch.tensor([128, 384]))
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in section["ignore"])


def test_mixed_widths_are_left_out_and_told_plainly(write) -> None:
    _, config, _ = write(MixedWidths(measured_pairs=0))
    section = config["quantization_config"]
    assert section["config_groups"] == {} and set(NAMES) <= set(section["ignore"])
    notes = config["sqap"]["notes"]
    assert any("rows of several widths, which the public format cannot express" in note for note in notes)
    assert not any("act_clip_ratio" in note for note in notes)


def test_plain_rounding_has_no_transforms(write) -> None:
    _, config, _ = write(W4A4(rotation=None))
    assert config["quantization_config"]["transform_config"] == {"config_groups": {}}
    assert len(config["sqap"]["notes"]) == 1 and "act_clip_ratio" in config["sqap"]["notes"][0]


@pytest.mark.parametrize("plan", [RotationPlan(), RotationPlan(stream_block=64, down_block=128, heads=False)])
def test_transforms_name_every_place_that_was_rotated(write, build_tiny, plan: RotationPlan) -> None:
    # A linear was changed by rotation exactly where a weight transform names it, a site is online where 'input' does.
    _, config, _ = write(W4A4(rotation=plan, qk_bits=4))
    groups = config["quantization_config"]["transform_config"]["config_groups"]
    places: dict[str, set[str]] = {}
    for group in groups.values():
        assert group["type"] == "random-hadamard"
        for entry in group["apply"]:
            places.setdefault(entry["location"], set()).update(entry["targets"])
    rotated = build_tiny(hidden=128, intermediate=384).model
    plain = copy.deepcopy(rotated)
    rotate_(rotated.rotation_sites(), 0, RotationPlan(stream=False, heads=False, down=False, queries_keys=False))
    folded = {name: tensor.clone() for name, tensor in rotated.state_dict().items()}
    rotate_(plain.rotation_sites(), 0, plan)
    changed = {name.removesuffix(".weight") for name, tensor in plain.state_dict().items()
               if name.endswith("weight") and not torch.equal(tensor, folded[name])}
    assert places["weight_input"] | places["weight_output"] == changed
    assert places["input"] == {name for name in NAMES if name.endswith("down_proj")}
    assert places["q_attn"] == places["k_cache"] == {f"decoder.layers.{layer}.self_attn" for layer in (0, 1)}
    assert ("heads_0" in groups) == plan.heads and groups["stream"]["head_dim"] == plan.stream_block
    assert groups["down_1"]["head_dim"] == plan.down_block and groups["queries_keys_0"]["head_dim"] == 32


def test_public_library_folds_a_transform_where_we_do(write) -> None:
    # W R for a reader, R^T W for a writer: what the library does at these places, given our own matrix.
    pytest.importorskip("compressed_tensors", minversion="0.20", reason=MISSING)
    from compressed_tensors.transform import TransformLocation
    from compressed_tensors.transform.utils.matrix import apply_transform_weight

    from sqap_vla_ros.quantization.hadamard import HadamardRotation

    rotation = HadamardRotation(64, 3, dtype=torch.float64)
    matrix, weight = rotation(torch.eye(64, dtype=torch.float64)), torch.randn(64, 64, dtype=torch.float64)
    reader = apply_transform_weight(matrix.T, weight, TransformLocation.WEIGHT_INPUT, nn.Linear)
    writer = apply_transform_weight(matrix, weight, TransformLocation.WEIGHT_OUTPUT, nn.Linear)
    online = apply_transform_weight(matrix, weight, TransformLocation.INPUT, nn.Linear)
    assert torch.allclose(reader, rotation(weight), atol=1e-12)
    assert torch.allclose(writer, rotation(weight.T).T, atol=1e-12)
    assert torch.allclose(online, rotation(weight), atol=1e-12)
