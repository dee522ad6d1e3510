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

"""Prismatic VLMs, which OpenVLA, OpenVLA-OFT and CogACT all are inside: vision towers, a projector, a Llama.

The decoder reads [BOS | visual tokens | the instruction's other tokens], and every position counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.models.family import Wanted, all_names
from sqap_vla_ros.models.key_maps import KeyMap
from sqap_vla_ros.models.llama import LlamaConfig, LlamaDecoder
from sqap_vla_ros.models.oft_sequence import assemble_sequence
from sqap_vla_ros.models.shards import TensorFiles
from sqap_vla_ros.models.sites import decoder_linears, stream_sites
from sqap_vla_ros.models.towers import FusedVision, TowerConfig
from sqap_vla_ros.models.vla import ImageSpec, Sequence
from sqap_vla_ros.quantization.rotation import RotationSites


@dataclass(frozen=True)
class PrismaticConfig:
    """Sizes of a Prismatic model, and how it wants its pictures.

    :param towers: vision towers by name ("dino", "siglip"), in the order of their channels
    :param projector_sizes: width of the towers' features, of what lies between the projector's linears, and of the
        decoder
    :param decoder: the Llama
    :param vocabulary_size: rows of the embedding, padding included
    :param image: how a picture becomes pixels
    """

    towers: dict[str, TowerConfig]
    projector_sizes: tuple[int, ...]
    decoder: LlamaConfig
    vocabulary_size: int
    image: ImageSpec

    @property
    def grid_size(self) -> int:
        """Visual tokens along one side of a picture."""
        return next(iter(self.towers.values())).grid_size

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PrismaticConfig:
        """Inverse of :meth:`to_json`.

        :raises CheckpointError: when a field is missing or unknown
        """
        try:
            image = dict(values["image"])
            for name in ("mean", "std"):
                image[name] = tuple(tuple(map(float, tower)) for tower in image[name])
            return cls({name: TowerConfig(**sizes) for name, sizes in values["towers"].items()},
                       tuple(map(int, values["projector_sizes"])), LlamaConfig(**values["decoder"]),
                       int(values["vocabulary_size"]), ImageSpec(**image))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the description of a Prismatic model is not usable: {error!r}") from error


class Projector(nn.Module):
    """Linears ``fc1``, ``fc2``, ... with the exact (erf) GELU between them: visual features to the decoder's width."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        for index, (read, written) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"fc{index}", nn.Linear(read, written))

    @property
    def last(self) -> nn.Linear:
        """The linear that writes into the decoder's residual stream."""
        *_, last = self.children()
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, V) to (B, N, C)."""
        for index, linear in enumerate(self.children()):
            features = linear(features if index == 0 else F.gelu(features))
        return features


class PrismaticVlm(nn.Module):
    """Everything but what turns words into ids, and hidden states into actions.

    Most of :class:`~sqap_vla_ros.models.vla.VlaModel`, for one camera and a model that reads no state; a family adds
    the rest, and parts of its own.

    :param config: sizes
    :param has_lm_head: whether next tokens are predicted; CogACT and a regression head do without
    """

    cameras: tuple[str, ...] = ("main",)
    state_size = 0
    example = "pick up the red block"

    def __init__(self, config: PrismaticConfig, *, has_lm_head: bool = True) -> None:
        super().__init__()
        width = config.decoder.hidden_size
        self.config: Any = config  # a family puts its own there
        self.image_spec = config.image
        self.pictures = "none"
        self.grid = (config.grid_size, config.grid_size)
        self.vision = FusedVision(config.towers)
        self.projector = Projector(config.projector_sizes)
        self.embed_tokens = nn.Embedding(config.vocabulary_size, width)
        self.decoder = LlamaDecoder(config.decoder)
        self.lm_head = nn.Linear(width, config.vocabulary_size, bias=False) if has_lm_head else None

    def see(self, picture: Tensor, ids: list[int]) -> Tensor:
        """What the vision towers make of one picture; the words play no part, unless a family says so.

        :param picture: (B, 3 * towers, H, W), normalised
        :param ids: of the prompt
        :return: (B, N, V)
        """
        return self.vision(picture)

    def encode_images(self, pixels: Tensor, ids: list[int]) -> Tensor:
        """See and project one picture or several.

        :param pixels: (B, pictures * 3 * towers, H, W), normalised; picture by picture, within it tower by tower
        :param ids: of the prompt
        :return: (B, pictures * N, C), picture by picture
        :raises InputError: for a number of channels that is no whole number of pictures
        """
        channels = 3 * len(self.vision.towers)
        if pixels.shape[1] == 0 or pixels.shape[1] % channels:
            raise InputError(f"{pixels.shape[1]} channels are no whole number of pictures of {channels} each; join "
                             "what prepare_picture gives for each picture along dimension 1")
        return torch.cat([self.projector(self.see(picture, ids)) for picture in pixels.split(channels, dim=1)], dim=1)

    def embed(self, ids: list[int], visual: Tensor) -> Tensor:
        """(B, L, C) embeddings of a prompt's ids, for the batch, the device and the type of visual tokens."""
        tokens = torch.tensor([ids], device=visual.device).expand(len(visual), -1)
        return self.embed_tokens(tokens).to(visual.dtype)

    def build_sequence(self, visual: Tensor, ids: list[int], state: Tensor | None = None, seed: int = 0) -> Sequence:
        """Put visual tokens behind BOS and in front of the other words.

        :param visual: (B, N, C)
        :param ids: of the prompt, BOS first
        :param state: read by none but OpenVLA-OFT
        :param seed: of noise, which there is none of
        """
        return assemble_sequence(self.embed(ids, visual), visual, causal=True)

    def rotation_sites(self) -> RotationSites:
        """One residual stream: words and projector write it, the layers read and write, a language head reads.

        A family with other parts that read or write it has its own.
        """
        readers = () if self.lm_head is None else (self.lm_head,)
        words = cast(nn.Parameter, self.embed_tokens.weight)
        return stream_sites(self.decoder, (words,), (self.projector.last,), readers)

    def quantizable_linears(self) -> dict[str, nn.Linear]:
        """Every linear of the decoder."""
        return decoder_linears(self.decoder)

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers, first to last."""
        return list(self.decoder.layers)

    def float_reasons(self) -> dict[str, str]:
        """What recipes leave alone; a family adds its own parts."""
        reasons = {"vision": "runs once per image and feeds every token; the method compresses the LLM",
                   "projector": "1 % of the weights; errors here reach every layer",
                   "embed_tokens": "a look-up, not a matrix product"}
        return reasons if self.lm_head is None else {
            **reasons, "lm_head": "one token wide, and only the rows of action tokens are read"}


def load_prismatic_(model: PrismaticVlm, tensors: TensorFiles, keys: KeyMap, *, dtype: torch.dtype = torch.float32,
                    wanted: Wanted = all_names, elsewhere: tuple[str, ...] = ()) -> None:
    """Give a model its weights, reading one tensor at a time; the model may be on the meta device before.

    Tensors of a language head that the model does not have are not read.

    :param model: that :func:`check_keys` found nothing to say against
    :param tensors: of the checkpoint
    :param keys: which tensor is where
    :param dtype: what the model computes in
    :param wanted: whether a tensor of that name in the model is meant
    :param elsewhere: beginnings of the names of tensors that belong to a family's own parts, such as "action_model.";
        they are left as they are
    :raises CheckpointError: naming file and tensor that is damaged
    """
    state = {name: tensors.read(keys.stored[name], tuple(tensor.shape)).to(dtype)
             for name, tensor in model.state_dict().items() if wanted(name) and not name.startswith(elsewhere)}
    model.load_state_dict(state, strict=False, assign=True)  # strict would ask for a family's own parts too


def check_keys(model: nn.Module, tensors: TensorFiles, keys: KeyMap, *, elsewhere: tuple[str, ...] = ()) -> None:
    """Compare what a model needs with what a checkpoint has, before anything is read.

    :param model: of the sizes that the checkpoint has, with or without weights
    :param tensors: of the checkpoint
    :param keys: which tensor is where
    :param elsewhere: beginnings of the names, in the model and in the checkpoint, of tensors that another part of the
        model reads
    :raises CheckpointError: naming file and tensor that is missing, of another shape or unknown to the model
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
                if not name.startswith(elsewhere)}
    for name, shape in expected.items():
        if name not in keys.stored:
            raise CheckpointError(f"{tensors.place} has no tensor for '{name}'; the checkpoint is of another model, or "
                                  "not whole")
        stored = keys.stored[name]
        if tensors.shape(stored) != shape:
            raise CheckpointError(f"the tensor '{stored}' in '{tensors.path(stored)}' has shape "
                                  f"{tensors.shape(stored)}, but the others need {shape}; the file is of another model")
    # A language head is left out where no token is predicted.
    homeless = [stored for name, stored in keys.stored.items()
                if name not in expected and not name.startswith("lm_head.")]
    homeless += [stored for stored in keys.others if not stored.startswith(elsewhere)]
    if homeless:
        raise CheckpointError(f"the tensor '{homeless[0]}' in '{tensors.path(homeless[0])}' has no place in a "
                              "Prismatic model with a Llama; the checkpoint is of another model")
