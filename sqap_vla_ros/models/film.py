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

"""FiLM: the instruction scales and shifts what the vision towers see (Perez et al. 2018, "FiLM", section 2).

OpenVLA-OFT does so in every block, between attention and MLP (Kim et al. 2025, arXiv 2502.19645). Its file of vision
towers was saved while LoRA was still beside the weights; read here, the two are one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.models.family import build_empty, fill_module
from sqap_vla_ros.models.key_maps import HF, translate_name
from sqap_vla_ros.models.lora import OverlaidTensors, UnwrappedFile, read_adapter_config
from sqap_vla_ros.models.oft_files import find_part
from sqap_vla_ros.models.shards import TensorFiles
from sqap_vla_ros.models.towers import FusedVision, TowerBlock, TowerConfig, VisionTower

# Where OpenVLA-OFT saves the adapter that its weights were merged from, and its alpha, unless the rank is less.
ADAPTER_FOLDER, DEFAULT_ALPHA = "lora_adapter", 16.0
_FILM = re.compile(r"(.+)\.blocks\.(\d+)\.((?:scale|shift)\.(?:weight|bias))")


class Modulation(nn.Module):
    """x (1 + scale(language)) + shift(language), the same for all patches.

    :param language_width: C, the decoder's
    :param width: W, the tower's
    """

    def __init__(self, language_width: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Linear(language_width, width)
        self.shift = nn.Linear(language_width, width)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        """(B, P, W) and (1 or B, C) to (B, P, W)."""
        return x * (1.0 + self.scale(language)[:, None]) + self.shift(language)[:, None]


class Film(nn.Module):
    """A modulation for each block of each vision tower; the towers stay what they are without.

    :param towers: sizes, by the towers' names
    :param language_width: C, the decoder's
    """

    def __init__(self, towers: Mapping[str, TowerConfig], language_width: int) -> None:
        super().__init__()
        for name, config in towers.items():
            self.add_module(name, nn.ModuleList(Modulation(language_width, config.hidden_size)
                                                for _ in range(config.num_blocks)))

    def forward(self, vision: FusedVision, pixels: Tensor, language: Tensor) -> Tensor:
        """What the towers see of one picture, told of the instruction.

        :param vision: the towers
        :param pixels: (B, 3 * towers, H, W), normalised
        :param language: (1, C) for the whole batch, or (B, C); see
            :func:`~sqap_vla_ros.models.oft_sequence.average_language`
        :return: (B, N, sum of widths)
        """
        features = []
        for (name, tower), share in zip(vision.named_children(), pixels.split(3, dim=1), strict=True):
            modulations = cast(nn.ModuleList, self.get_submodule(name))
            features.append(_run_tower(cast(VisionTower, tower), modulations, share, language))
        return torch.cat(features, dim=2)


def _run_tower(tower: VisionTower, modulations: nn.ModuleList, pixels: Tensor, language: Tensor) -> Tensor:
    x = tower.embed(pixels)
    for block, modulation in zip(cast(Iterable[TowerBlock], tower.blocks), modulations, strict=True):
        x = block.add_mlp(modulation(block.add_attention(x), language))
    return tower.take_patches(x)


def find_film(folder: str | Path) -> Path | None:
    """The file of vision towers with FiLM beside a checkpoint; None where the model has none.

    :raises CheckpointError: when there are several
    """
    return find_part(folder, "vision_backbone")


def overlay_towers(tensors: TensorFiles, path: Path) -> TensorFiles:
    """A checkpoint's tensors with the vision towers of a file with FiLM in place of its own.

    :param tensors: of the checkpoint, in the layout of OpenVLA's folders
    :param path: of the file
    :raises CheckpointError: when it is damaged, or half of a LoRA change is missing
    """
    towers = UnwrappedFile(path, _scale_beside(path), lambda name: _FILM.fullmatch(name) is None)
    return OverlaidTensors(tensors, TensorFiles([towers]))


def read_film(path: Path, towers: Mapping[str, TowerConfig], language_width: int, *, has_weights: bool = True) -> Film:
    """The modulations in a file with FiLM, in the file's own type; those of blocks that are not built are left out.

    :param path: of the file
    :param towers: sizes, by the towers' names
    :param language_width: C, the decoder's
    :param has_weights: whether weights are read; else they are on the meta device
    :raises CheckpointError: naming the tensor that is missing or of another shape
    """
    file = UnwrappedFile(path, _scale_beside(path))
    first = "dino" if "vision_backbone.featurizer.cls_token" in file.shapes else "siglip"
    stored = TensorFiles([file])
    read = stored.read if has_weights else stored.outline("").__getitem__
    tensors = {}
    for name in stored.names:
        match = _FILM.fullmatch(translate_name(name, HF, first) or name)
        if match is None:
            continue
        tower, block, rest = match[1].removeprefix("vision."), int(match[2]), match[3]
        if tower not in towers or block < towers[tower].num_blocks:
            tensors[f"{tower}.{block}.{rest}"] = read(name)
    return fill_module(path, build_empty(Film, towers, language_width), tensors)


def _scale_beside(path: Path) -> Callable[[str, int], float]:
    # What the adapter beside a file of vision towers tells, else as OpenVLA-OFT trains.
    config = read_adapter_config(path.parent / ADAPTER_FOLDER)
    return (lambda module, rank: min(rank, DEFAULT_ALPHA) / rank) if config is None else config.scale
