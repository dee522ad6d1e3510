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

"""The files that OpenVLA-OFT puts beside a model: a head, projectors, and vision towers with FiLM."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.family import build_empty, fill_module
from sqap_vla_ros.models.oft_heads import ChunkHead
from sqap_vla_ros.models.oft_presets import PRESETS, OftPreset
from sqap_vla_ros.models.proprio import TokenProjector
from sqap_vla_ros.models.shards import open_pickle

PARTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
# A head's names in the file, and here.
_HEAD_NAMES = ((re.compile(r"^layer_norm1\."), "norm_in."), (re.compile(r"^fc1\."), "fc_in."),
               (re.compile(r"^mlp_resnet_blocks\.(\d+)\.ffn\.0\."), r"blocks.\1.norm."),
               (re.compile(r"^mlp_resnet_blocks\.(\d+)\.ffn\.1\."), r"blocks.\1.linear."),
               (re.compile(r"^layer_norm2\."), "norm_out."), (re.compile(r"^fc2\."), "fc_out."))
_REGRESSING, _DENOISING = "model.", "noise_predictor.mlp_resnet."


@dataclass(frozen=True, eq=False)
class OftParts:
    """What lies beside a model; weights in the files' own types.

    :param head: None for a model that writes its actions as words
    :param denoises: whether the head gives the noise in actions instead of actions
    :param proprio: the robot's state to a token; None for a model that does not read it
    :param noisy_actions: numbers of noisy actions to tokens; None unless the head denoises
    """

    head: ChunkHead | None
    denoises: bool
    proprio: TokenProjector | None
    noisy_actions: TokenProjector | None

    def check(self, preset: OftPreset, width: int) -> None:
        """Hold the parts against what they will work with.

        :param preset: the robot's
        :param width: C, the decoder's
        :raises CheckpointError: naming what does not fit
        """
        found: list[tuple[str, int, int]] = []
        if self.head is not None:
            found += [("the action head's actions", self.head.action_dims, preset.action_dims),
                      ("the action head's hidden states", self.head.hidden_width, width)]
        if self.proprio is not None:
            found += [("the proprio projector's states", self.proprio.fc1.in_features, preset.proprio_dims),
                      ("the proprio projector's tokens", self.proprio.fc2.out_features, width)]
        if self.noisy_actions is not None:
            found += [("the noisy-action projector's inputs", self.noisy_actions.fc1.in_features, 1),
                      ("the noisy-action projector's tokens", self.noisy_actions.fc2.out_features, width)]
        for what, came, wanted in found:
            if came != wanted:
                raise CheckpointError(f"{what} are of {came} numbers; the model and the preset have {wanted}. Presets "
                                      f"are {', '.join(PRESETS)}")


def find_part(folder: str | Path, part: str) -> Path | None:
    """The file of a part, or None; its name holds the part's and the word checkpoint.

    :param folder: of the checkpoint
    :param part: one of ``PARTS``
    :raises CheckpointError: when there are several
    """
    found = sorted(path for path in Path(folder).iterdir()
                   if path.is_file() and part in path.name and "checkpoint" in path.name)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"'{folder}' holds {len(found)} files for {part}: {names}; leave one of them there")
    return found[0] if found else None


def read_part(path: Path, *, has_weights: bool = True) -> dict[str, Tensor]:
    """Tensors of one file, without what training on many GPUs puts before their names.

    :param path: of the file
    :param has_weights: whether they are read; else they are on the meta device
    :raises CheckpointError: when it is damaged or holds anything but tensors
    """
    tensors = open_pickle(path)
    read = tensors.read_part("") if has_weights else tensors.outline("")
    return {name.removeprefix("module."): tensor for name, tensor in read.items()}


def read_parts(folder: str | Path, *, has_weights: bool = True) -> OftParts:
    """Read the head and the projectors of a checkpoint; sizes are those of their tensors.

    :param folder: of the checkpoint
    :param has_weights: whether weights are read; else they are on the meta device
    :raises CheckpointError: naming the file or tensor that is missing, damaged, of another shape or of no use
    """
    head_file, *projector_files = (find_part(folder, part) for part in PARTS[:3])
    head, denoises = (None, False) if head_file is None else read_head(head_file, has_weights=has_weights)
    proprio, noisy = (None if file is None else read_projector(file, has_weights=has_weights)
                      for file in projector_files)
    if denoises != (noisy is not None):
        has, lacks = ("a head that denoises", "noisy_action_projector") if denoises else (
            "a noisy_action_projector", "action_head that denoises")
        raise CheckpointError(f"'{folder}' holds {has}, but no {lacks}; they work together")
    return OftParts(head, denoises, proprio, noisy)


def read_head(path: Path, *, has_weights: bool = True) -> tuple[ChunkHead, bool]:
    """Read a head.

    :param path: of its file
    :param has_weights: as for :func:`read_part`
    :return: the head, and whether it denoises
    :raises CheckpointError: naming the tensor that is missing, of another shape or unknown
    """
    tensors = read_part(path, has_weights=has_weights)
    denoises = any(name.startswith(_DENOISING) for name in tensors)
    prefix = _DENOISING if denoises else _REGRESSING
    named = {_head_name(name.removeprefix(prefix)): tensor for name, tensor in tensors.items()}
    actions, width = _matrix_shape(path, named, "fc_out.weight")
    _, inputs = _matrix_shape(path, named, "fc_in.weight")
    if actions < 1 or inputs % actions:
        raise CheckpointError(f"'{path}' reads {inputs} numbers for {actions} action dimensions, which cannot share "
                              "them evenly")
    blocks = 1 + max((int(name.split(".")[1]) for name in named if name.startswith("blocks.")), default=-1)
    return fill_module(path, build_empty(ChunkHead, actions, inputs // actions, width, blocks), named), denoises


def read_projector(path: Path, *, has_weights: bool = True) -> TokenProjector:
    """Read a projector of states or of noisy actions.

    :param path: of its file
    :param has_weights: as for :func:`read_part`
    :raises CheckpointError: naming the tensor that is missing, of another shape or unknown
    """
    tensors = read_part(path, has_weights=has_weights)
    width, inputs = _matrix_shape(path, tensors, "fc1.weight")
    return fill_module(path, build_empty(TokenProjector, inputs, width), tensors)


def head_file_name(name: str) -> str:
    """What a regressing head's tensor is called in its file; the inverse of what reading does.

    :param name: here
    """
    for here, there in (("norm_in.", "layer_norm1."), ("fc_in.", "fc1."), ("norm_out.", "layer_norm2."),
                        ("fc_out.", "fc2.")):
        if name.startswith(here):
            return _REGRESSING + there + name[len(here):]
    _, index, part, rest = name.split(".", 3)
    return f"{_REGRESSING}mlp_resnet_blocks.{index}.ffn.{'0' if part == 'norm' else '1'}.{rest}"


def _head_name(name: str) -> str:
    for pattern, replacement in _HEAD_NAMES:
        name, count = pattern.subn(replacement, name)
        if count:
            break
    return name


def _matrix_shape(path: Path, tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in tensors or tensors[name].ndim != 2:
        came = f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing"
        raise CheckpointError(f"'{path}' must have a matrix {name}, it has {came}")
    rows, columns = tensors[name].shape
    return rows, columns
