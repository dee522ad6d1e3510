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

"""What the originals computed, where it is at hand, and tiny checkpoints in the originals' layouts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.prismatic import PrismaticConfig, PrismaticVlm
from sqap_vla_ros.models.towers import TowerConfig
from sqap_vla_ros.models.vla import ImageSpec

ROOT = Path(__file__).parents[2]
DINO = TowerConfig(28, 7, 16, 24, 2, 2, 3, True)
SIGLIP = TowerConfig(28, 7, 24, 40, 1, 3, None, False)
CONFIG = PrismaticConfig(
    {"dino": DINO, "siglip": SIGLIP}, (40, 160, 32, 32), LlamaConfig(32, 48, 2, 4, 2, rms_norm_eps=1e-6), 64,
    ImageSpec(28, "resize-naive", ((0.485, 0.456, 0.406), (0.5,) * 3), ((0.229, 0.224, 0.225), (0.5,) * 3)))
ARCHITECTURE = {"vision": {"my_dino": {"num_heads": 2, "img_size": 28}, "my_siglip": {"num_heads": 3, "img_size": 28}},
                "llm": {"heads": 4}}


def make_vlm(config=CONFIG, seed=0):
    """A model with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PrismaticVlm(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def extra_tensors(tower, name):
    """What a checkpoint holds of a tower beyond what is read: the last block, a norm, a pooling."""
    last = {f"blocks.{len(tower.blocks)}.{key}": tensor.clone() for key, tensor in tower.blocks[0].state_dict().items()}
    pooling = {"attn_pool.latent": torch.zeros(1, 1, 24)} if name == "siglip" else {}
    return {**last, "norm.weight": torch.ones(4), **pooling}


def hf_tensors(model):
    """A model's tensors by the names OpenVLA's folders have."""
    named = {}
    parts = {"dino": "vision_backbone.featurizer.", "siglip": "vision_backbone.fused_featurizer."}
    for name, tower in model.vision.named_children():
        for key, tensor in {**tower.state_dict(), **extra_tensors(tower, name)}.items():
            named[parts[name] + key.replace(".gamma", ".scale_factor")] = tensor
    for key, tensor in model.state_dict().items():
        if key.startswith("projector."):
            named[key] = tensor
        elif key.startswith(("embed_tokens.", "decoder.")):
            named[f"language_model.model.{key.removeprefix('decoder.')}"] = tensor
        elif key.startswith("lm_head."):
            named[f"language_model.{key}"] = tensor
    return {name: tensor.contiguous() for name, tensor in named.items()}


def native_tensors(model, head=None):
    """A model's tensors as CogACT's files nest them, those of the head by their names there."""
    projector = {f"projector.{2 * (int(key[2]) - 1)}.{key[4:]}": tensor
                 for key, tensor in model.projector.state_dict().items()}
    vision = {f"{name}_featurizer.{key}": tensor for name, tower in model.vision.named_children()
              for key, tensor in {**tower.state_dict(), **extra_tensors(tower, name)}.items()}
    llm = {"llm.model.embed_tokens.weight": model.embed_tokens.weight.data, "llm.lm_head.weight":
           model.lm_head.weight.data}
    llm.update({f"llm.model.{key}": tensor for key, tensor in model.decoder.state_dict().items()})
    return {"model": {"vision_backbone": vision, "projector": projector, "llm_backbone": llm,
                      "action_model": head or {"net.final_layer.linear.bias": torch.zeros(7)}}}


def write_hf(folder, model, shards=2):
    """An OpenVLA folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hf_tensors(model)
    files = [f"model-{index + 1:05d}-of-{shards:05d}.safetensors" for index in range(shards)]
    where = {name: files[index % shards] for index, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name, place in where.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    text = {"num_attention_heads": 4, "vocab_size": 64}
    (folder / "config.json").write_text(json.dumps({"text_config": text, "image_sizes": [28, 28]}))
    (folder / "architecture.json").write_text(json.dumps(ARCHITECTURE["vision"]))
    return folder


def write_native(folder, model, head=None):
    """A run of CogACT; without a head's tensors it has one of them alone."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(native_tensors(model, head), folder / "checkpoints" / "step-1.pt")
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}))
    (folder / "architecture.json").write_text(json.dumps(ARCHITECTURE))
    return folder


@pytest.fixture(scope="session")
def tiny_vlm():
    """Builder of tiny Prismatic models: ``tiny_vlm(config, seed)``."""
    return make_vlm


@pytest.fixture(scope="session")
def hf_folder():
    """Writer of OpenVLA folders: ``hf_folder(folder, model, shards=2)``."""
    return write_hf


@pytest.fixture(scope="session")
def native_run():
    """Writer of CogACT runs: ``native_run(folder, model, head=None)``."""
    return write_native
