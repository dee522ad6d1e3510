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

"""Low-rank changes folded into weights give what adding them as the model runs gives."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.lora import (
    LoraAdapter,
    MergedTensors,
    OverlaidTensors,
    UnwrappedFile,
    find_adapter,
    unwrapped_name,
)
from sqap_vla_ros.models.shards import TensorFiles, open_safetensors

QKV, DOWN = "vision_backbone.featurizer.blocks.3.attn.qkv", "language_model.model.layers.0.mlp.down_proj"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_adapter(folder, tensors, **config):
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
              folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def write_model(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return open_safetensors(folder)


@pytest.mark.parametrize(("config", "scale"), [
    ({}, 0.5), ({"use_rslora": True}, 1.0), ({"alpha_pattern": {"down_proj": 12}}, 3.0),
    ({"alpha_pattern": {"own_proj": 12, r"layers\.0\.mlp\.down_proj": 8}}, 2.0),
])
def test_merged_weight_gives_what_weight_and_change_give(tmp_path, config, scale):
    weight, down, up, x = random(6, 10), random(4, 10, seed=1), random(6, 4, seed=2), random(3, 10, seed=3)
    write_adapter(tmp_path, {f"{DOWN}.lora_A.weight": down, f"{DOWN}.lora_B.weight": up}, **config)
    assert find_adapter(tmp_path) == tmp_path
    norm = random(6, seed=4)
    model = write_model(tmp_path, {f"{DOWN}.weight": weight, "norm.weight": norm})
    merged = MergedTensors(model, LoraAdapter(tmp_path))
    assert merged.names == model.names and torch.equal(merged.read("norm.weight"), norm)
    both = F.linear(x, weight) + scale * F.linear(F.linear(x, down), up)
    torch.testing.assert_close(F.linear(x, merged.read(f"{DOWN}.weight")), both, atol=2e-5, rtol=0)


def test_a_merged_weight_keeps_its_type_and_is_rounded_once(tmp_path):
    weight = random(6, 10).bfloat16()
    down, up = random(4, 10, seed=1), random(6, 4, seed=2)
    write_adapter(tmp_path, {f"{DOWN}.lora_A.weight": down, f"{DOWN}.lora_B.weight": up})
    merged = LoraAdapter(tmp_path).merge(f"{DOWN}.weight", weight)
    exact = weight.double() + 0.5 * up.double() @ down.double()
    assert merged.dtype == torch.bfloat16
    assert ((merged.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_tensors_that_were_trained_whole_are_taken_whole(tmp_path):
    bias = random(5)
    write_adapter(tmp_path, {"projector.fc1.bias": bias})
    adapter = LoraAdapter(tmp_path)
    model = write_model(tmp_path, {"projector.fc1.bias": torch.zeros(5)})
    assert torch.equal(MergedTensors(model, adapter).read("projector.fc1.bias"), bias)
    with pytest.raises(CheckpointError, match=r"'projector.fc1.bias' as one of shape \(5,\); in .* it has \(6,\)"):
        adapter.check(write_model(tmp_path, {"projector.fc1.bias": torch.zeros(6)}))


def test_an_adapter_that_the_weights_were_merged_from_is_not_merged_again(tmp_path):
    (tmp_path / "lora_adapter").mkdir()
    write_adapter(tmp_path / "lora_adapter", {"projector.fc1.bias": random(5)})
    assert find_adapter(tmp_path) is None


def test_what_cannot_be_merged_is_told(tmp_path):
    halves = {f"{DOWN}.lora_A.weight": random(4, 10), f"{DOWN}.lora_B.weight": random(6, 4)}

    def check(message, tensors=halves, model=None, **config):
        write_adapter(tmp_path, tensors, **config)
        with pytest.raises(CheckpointError, match=message):
            model = {f"{DOWN}.weight": random(6, 10)} if model is None else model
            MergedTensors(write_model(tmp_path, model), LoraAdapter(tmp_path))

    check("adapter of type 'LOHA'; only LORA", peft_type="LOHA")
    check("asks for use_dora", use_dora=True)
    check("began as 'pissa_niter_16', which changes the model's own weights", init_lora_weights="pissa_niter_16")
    check("lora_alpha and the values of alpha_pattern must be numbers, they are None", lora_alpha=None)
    check("only lora_A of", {f"{DOWN}.lora_A.weight": random(4, 10)})
    check("lora_magnitude_vector.*only changes of linear layers", {f"{DOWN}.lora_magnitude_vector": random(6)})
    check(r"by B of shape \(6, 3\) times A of \(4, 10\)", {**halves, f"{DOWN}.lora_B.weight": random(6, 3)})
    check(r"changes '.*down_proj.weight', which '.*' has not", model={"other.weight": random(6, 10)})
    check(r"as one of shape \(6, 10\); in '.*' it has \(6, 9\)", model={f"{DOWN}.weight": random(6, 9)})
    save_file({"q_proj.lora_A.weight": random(4, 10)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"names in an adapter start with 'base_model.model.'"):
        LoraAdapter(tmp_path)


def test_a_wrapped_model_is_read_under_plain_names_and_without_rounding(tmp_path):
    wrapped = "vision_backbone.featurizer.blocks.3.block.attn.qkv"
    weight, bias, down, up = random(6, 4).bfloat16(), random(6), random(2, 4, seed=1), random(6, 2, seed=2)
    tensors = {f"{wrapped}.base_layer.weight": weight, f"{wrapped}.base_layer.bias": bias,
               f"{wrapped}.lora_A.default.weight": down, f"{wrapped}.lora_B.default.weight": up,
               "vision_backbone.featurizer.pos_embed": random(3), "left": random(3)}
    path = tmp_path / "vision_backbone--1_checkpoint.pt"
    torch.save(tensors, path)

    def scale(module, rank):
        return 3.0 if (module, rank) == (QKV, 2) else math.nan

    plain = UnwrappedFile(path, scale, lambda name: name != "left")
    shapes = {f"{QKV}.weight": (6, 4), f"{QKV}.bias": (6,), "vision_backbone.featurizer.pos_embed": (3,)}
    assert plain.shapes == shapes
    below = write_model(tmp_path, {f"{QKV}.weight": random(9), "norm.weight": random(6)})
    both = OverlaidTensors(below, TensorFiles([plain]))
    assert set(both.names) == {*shapes, "norm.weight"} and both.shape(f"{QKV}.weight") == (6, 4)
    assert torch.equal(both.read("norm.weight"), random(6)) and torch.equal(both.read(f"{QKV}.bias", (6,)), bias)
    expected = weight.float() + 3.0 * up @ down
    torch.testing.assert_close(both.read(f"{QKV}.weight"), expected, atol=1e-6, rtol=0)
    del tensors[f"{wrapped}.base_layer.weight"]
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=rf"changes '{QKV}.weight' as one of .* it has nothing"):
        UnwrappedFile(path, scale)


def test_an_adapter_of_a_model_with_film_has_plain_names_too():
    assert unwrapped_name("vision_backbone." + QKV.replace(".attn", ".block.attn")) == QKV
    assert unwrapped_name(DOWN) == DOWN
