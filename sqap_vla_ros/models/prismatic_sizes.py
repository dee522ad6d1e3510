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

"""Sizes of a Prismatic model's parts, as the shapes of its tensors tell them."""

from __future__ import annotations

import math
from typing import Any

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.key_maps import KeyMap
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.shards import TensorFiles
from sqap_vla_ros.models.towers import TowerConfig

ARCHITECTURE_FILE = "architecture.json"
# Width to attention heads, as timm has them: DINOv2 S to g, and SigLIP's shape-optimised ViT.
_TOWER_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24}


class Shapes:
    """Shapes of a checkpoint's tensors by their names here; errors name them as the checkpoint does.

    :param tensors: of the checkpoint
    :param keys: which of them is what
    """

    def __init__(self, tensors: TensorFiles, keys: KeyMap) -> None:
        self.tensors, self.keys = tensors, keys

    def has(self, begin: str) -> bool:
        """Whether there is a tensor whose name begins so."""
        return any(name.startswith(begin) for name in self.keys.stored)

    def of(self, name: str) -> tuple[int, ...]:
        """Of one tensor.

        :raises CheckpointError: when it is missing
        """
        if name not in self.keys.stored:
            raise CheckpointError(f"{self.tensors.place} has no tensor for '{name}'; the checkpoint is of another "
                                  "model, or not whole")
        return self.tensors.shape(self.keys.stored[name])

    def two(self, name: str) -> tuple[int, int]:
        """Of one matrix.

        :raises CheckpointError: when it is missing or no matrix
        """
        shape = self.of(name)
        if len(shape) != 2:
            raise self.fault(name, "must have two dimensions")
        return shape[0], shape[1]

    def count(self, begin: str) -> int:
        """How many numbers follow a beginning, from 0 up to the highest."""
        numbers = {int(name[len(begin):].split(".")[0]) for name in self.keys.stored if name.startswith(begin)}
        return max(numbers, default=-1) + 1

    def fault(self, name: str, what: str) -> CheckpointError:
        """An error that names the tensor and its file.

        :param what: is wrong with it, behind "it"
        """
        stored = self.keys.stored[name]
        return CheckpointError(f"the tensor '{stored}' in '{self.tensors.path(stored)}' has shape {self.of(name)}; it "
                               f"{what}")


def read_decoder(shapes: Shapes, values: dict[str, Any], architecture: dict[str, Any],
                 base_heads: int | None) -> LlamaConfig:
    """Sizes of the Llama.

    :param shapes: of the checkpoint
    :param values: config.json
    :param architecture: architecture.json
    :param base_heads: attention heads of the Llama that a run was begun from; None where config.json describes it
    :raises CheckpointError: naming what does not fit
    """
    stated: dict[str, Any]
    if base_heads is None:
        # What transformers leaves out of the file is as LlamaConfig has it by default.
        stated = {"num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                  **(values.get("text_config") or {})}
        rope = {**(stated.get("rope_scaling") or {}), **(stated.get("rope_parameters") or {})}
        stated["rope_theta"] = rope.get("rope_theta", stated["rope_theta"])
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError(f"config.json beside {shapes.tensors.place} stretches rotary positions ({rope}); "
                                  "only plain ones are known here")
    else:
        # Of meta-llama/Llama-2 and Vicuna 1.5, which such a run builds its Llama from.
        stated = {"num_attention_heads": base_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    llm = architecture.get("llm") or {}
    heads = int(llm.get("heads", stated["num_attention_heads"]))
    eps, theta = float(llm.get("rms_norm_eps", stated["rms_norm_eps"])), float(stated["rope_theta"])
    _, hidden = shapes.two("embed_tokens.weight")
    layer = "decoder.layers.0."
    if hidden % heads:
        raise shapes.fault("embed_tokens.weight", f"cannot be split among {heads} attention heads; state the number in "
                                                  f"'{ARCHITECTURE_FILE}' as llm.heads")
    kv_rows, _ = shapes.two(f"{layer}self_attn.k_proj.weight")
    kv_heads, rest = divmod(kv_rows, hidden // heads)
    if rest or not kv_heads or heads % kv_heads:
        raise shapes.fault(f"{layer}self_attn.k_proj.weight", f"is no whole number of heads of {hidden // heads}")
    return LlamaConfig(hidden, shapes.two(f"{layer}mlp.gate_proj.weight")[0], shapes.count("decoder.layers."), heads,
                       kv_heads, eps, theta)


def _tower_architecture(architecture: dict[str, Any], name: str) -> dict[str, Any]:
    vision = architecture.get("vision", architecture)
    return next((sizes for key, sizes in vision.items() if name in key and isinstance(sizes, dict)), {})


def read_tower(shapes: Shapes, name: str, image_size: int | None, architecture: dict[str, Any]) -> TowerConfig:
    """Sizes of a vision tower.

    :param shapes: of the checkpoint
    :param name: "dino" or "siglip"
    :param image_size: side of its pictures, px; None where nothing tells
    :param architecture: architecture.json
    :raises CheckpointError: naming what does not fit
    """
    architecture = _tower_architecture(architecture, name)
    begin = f"vision.{name}."
    kernel, places = shapes.of(f"{begin}patch_embed.proj.weight"), shapes.of(f"{begin}pos_embed")
    if len(kernel) != 4 or kernel[2] != kernel[3]:
        raise shapes.fault(f"{begin}patch_embed.proj.weight", "must be a square patch's")
    width, patch = kernel[0], kernel[2]
    grid = math.isqrt(places[1]) if len(places) == 3 else 0
    if not grid or grid * grid != places[1]:
        raise shapes.fault(f"{begin}pos_embed", "must have one position for each patch of a square, and no others")
    size = int(architecture.get("img_size", image_size or grid * patch))
    if size // patch != grid:
        raise shapes.fault(f"{begin}pos_embed", f"does not fit pictures of {size} px in patches of {patch} px")
    heads = architecture.get("num_heads", _TOWER_HEADS.get(width))
    if heads is None or width % int(heads):
        raise shapes.fault(f"{begin}patch_embed.proj.weight", f"does not tell the number of attention heads ({heads}? "
                                                              f"Width is {width}); state it in '{ARCHITECTURE_FILE}'")
    registers = shapes.of(f"{begin}reg_token")[1] if shapes.has(f"{begin}cls_token") else None
    blocks = shapes.count(f"{begin}blocks.")
    held = {"embed_dim": width, "patch_size": patch, "depth": blocks + 1, "reg_tokens": registers or 0}
    for key, value in held.items():
        if architecture.get(key, value) != value:
            raise CheckpointError(f"'{ARCHITECTURE_FILE}' states {key} {architecture[key]} for the vision tower "
                                  f"{name!r}, but by the tensors in {shapes.tensors.place} it is {value}")
    return TowerConfig(size, patch, width, shapes.two(f"{begin}blocks.0.mlp.fc1.weight")[0], blocks, int(heads),
                       registers, shapes.has(f"{begin}blocks.0.ls1."))


def read_projector(shapes: Shapes) -> tuple[int, ...]:
    """Widths from the towers' features to the decoder, see :class:`~sqap_vla_ros.models.prismatic.PrismaticConfig`."""
    linears = [shapes.two(f"projector.fc{index}.weight") for index in range(1, shapes.count("projector.fc"))]
    if not linears:
        shapes.of("projector.fc1.weight")
    return linears[0][1], *(written for written, _ in linears)
