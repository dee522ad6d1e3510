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

"""Vision towers that are told of the instruction, from a file in which LoRA still lies beside the weights."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.film import Film, find_film, overlay_towers, read_film
from sqap_vla_ros.models.key_maps import map_keys
from sqap_vla_ros.models.shards import open_safetensors
from sqap_vla_ros.models.towers import FusedVision, TowerConfig

TOWERS = {"dino": TowerConfig(28, 14, 8, 16, 2, 2, 1, True), "siglip": TowerConfig(28, 14, 6, 10, 1, 2, None, False)}
LANGUAGE, RANK = 5, 4
FEATURIZERS = {"dino": "featurizer", "siglip": "fused_featurizer"}


def write_checkpoint(folder):
    """A checkpoint's own towers, and beside it the ones with FiLM, a block deeper than is read; returns the latter."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    plain, film = {"language_model.model.norm.weight": random(3)}, {}
    for tower, config in TOWERS.items():
        width, root = config.hidden_size, f"vision_backbone.{FEATURIZERS[tower]}"
        whole = {"patch_embed.proj.weight": random(width, 3, 14, 14) * 0.1, "patch_embed.proj.bias": random(width),
                 "pos_embed": random(1, 4, width), "norm.weight": random(width), "norm.bias": random(width)}
        if config.register_tokens:
            whole |= {"cls_token": random(1, 1, width), "reg_token": random(1, 1, width)}
        for block in range(config.num_blocks + 1):
            rows = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (config.mlp_size, width),
                    "mlp.fc2": (width, config.mlp_size)}
            for name, (out, into) in rows.items():
                wrapped = f"{root}.blocks.{block}.block.{name}"
                film |= {f"{wrapped}.base_layer.weight": random(out, into), f"{wrapped}.base_layer.bias": random(out),
                         f"{wrapped}.lora_A.default.weight": random(RANK, into),
                         f"{wrapped}.lora_B.default.weight": random(out, RANK)}
            gains = ("ls1.scale_factor", "ls2.scale_factor") if config.has_layer_scale else ()
            film |= {f"{root}.blocks.{block}.block.{name}": random(width)
                     for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", *gains)}
            film |= {f"{root}.blocks.{block}.{kind}.weight": random(width, LANGUAGE) for kind in ("scale", "shift")}
            film |= {f"{root}.blocks.{block}.{kind}.bias": random(width) for kind in ("scale", "shift")}
        film |= {f"{root}.{name}": tensor for name, tensor in whole.items()}
    for name, tensor in film.items():
        if ".lora_" not in name and not any(f".{kind}." in name for kind in ("scale", "shift")):
            plain[name.replace(".block.", ".").replace(".base_layer", "")] = tensor + 1
    save_file(plain, folder / "model.safetensors")
    torch.save(film, folder / "vision_backbone--50_checkpoint.pt")
    return film


def run_as_the_original(film, tower, pixels, language, scale):
    """LoRA added as the model runs, and FiLM between the halves of each block."""
    config, root = TOWERS[tower], f"vision_backbone.{FEATURIZERS[tower]}"

    def linear(x, name):
        base = F.linear(x, film[f"{name}.base_layer.weight"], film[f"{name}.base_layer.bias"])
        return base + scale * x @ film[f"{name}.lora_A.default.weight"].T @ film[f"{name}.lora_B.default.weight"].T

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], film[f"{name}.weight"], film[f"{name}.bias"], eps=1e-6)

    x = F.conv2d(pixels, film[f"{root}.patch_embed.proj.weight"], film[f"{root}.patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).transpose(1, 2) + film[f"{root}.pos_embed"]
    if config.register_tokens:
        prefix = torch.cat((film[f"{root}.cls_token"], film[f"{root}.reg_token"]), dim=1)
        x = torch.cat((prefix.expand(len(x), -1, -1), x), dim=1)
    for index in range(config.num_blocks):
        outer = f"{root}.blocks.{index}"
        block = f"{outer}.block"
        gain1, gain2 = (film.get(f"{block}.ls{half}.scale_factor", torch.tensor(1.0)) for half in (1, 2))
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, 2, -1))
        q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
        mixed = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + gain1 * linear(mixed.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        gamma, beta = (F.linear(language, film[f"{outer}.{kind}.weight"], film[f"{outer}.{kind}.bias"])
                       for kind in ("scale", "shift"))
        x = x * (1 + gamma) + beta
        x = x + gain2 * linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return x[:, config.prefix_tokens:]


def load_towers(folder):
    path = find_film(folder)
    tensors = overlay_towers(open_safetensors(folder), path)
    keys = map_keys(tensors.names)
    vision = FusedVision(TOWERS)
    vision.load_state_dict({name: tensors.read(keys.stored[f"vision.{name}"], tuple(tensor.shape))
                            for name, tensor in vision.state_dict().items()})
    assert torch.equal(tensors.read("language_model.model.norm.weight"),
                       open_safetensors(folder).read("language_model.model.norm.weight"))
    return vision.requires_grad_(False), read_film(path, TOWERS, LANGUAGE)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8, 2.0)])
def test_towers_with_film_see_what_the_original_sees(tmp_path, alpha, scale):
    tensors = write_checkpoint(tmp_path)
    if alpha is not None:
        (tmp_path / "lora_adapter").mkdir()
        config = json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": alpha})
        (tmp_path / "lora_adapter" / "adapter_config.json").write_text(config)
    vision, film = load_towers(tmp_path)
    generator = torch.Generator().manual_seed(1)
    pixels, language = torch.randn(2, 6, 28, 28, generator=generator), torch.randn(1, LANGUAGE, generator=generator)
    expected = torch.cat([run_as_the_original(tensors, tower, share, language, scale)
                          for tower, share in zip(TOWERS, pixels.split(3, dim=1), strict=True)], dim=2)
    seen = film(vision, pixels, language)
    assert seen.shape == (2, 4, 14) and expected.std() > 0.1
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=2e-5)


def test_modulation_of_nothing_changes_nothing(tmp_path):
    write_checkpoint(tmp_path)
    vision, _ = load_towers(tmp_path)
    film = Film(TOWERS, LANGUAGE)
    for parameter in film.parameters():
        torch.nn.init.zeros_(parameter)
    pixels = torch.randn(1, 6, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(film(vision, pixels, torch.ones(1, LANGUAGE)), vision(pixels))


def test_a_file_that_lacks_a_modulation_or_is_of_another_width_is_refused(tmp_path):
    tensors = write_checkpoint(tmp_path)
    path = find_film(tmp_path)
    with pytest.raises(CheckpointError, match=r"dino.0.scale.weight with shape \(8, 5\); .* must be \(8, 7\)"):
        read_film(path, TOWERS, 7)
    del tensors["vision_backbone.fused_featurizer.blocks.0.shift.bias"]
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=r"lacks tensors: siglip.0.shift.bias"):
        read_film(path, TOWERS, LANGUAGE)
