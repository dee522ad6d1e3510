"""Prismatic VLMs, which OpenVLA, OpenVLA-OFT and CogACT all are inside: vision towers, a projector, a Llama.

The decoder reads [BOS | visual tokens | the instruction's other tokens], and every position counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.models.key_maps import KeyMap
from sqap_vla_ros.models.llama import LlamaConfig, LlamaDecoder
from sqap_vla_ros.models.shards import TensorFiles
from sqap_vla_ros.models.towers import FusedVision, TowerConfig
from sqap_vla_ros.models.vla import ImageSpec, Sequence


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
    """Everything but what turns hidden states into actions.

    :param config: sizes
    :param has_lm_head: whether next tokens are predicted; CogACT and a regression head do without
    """

    def __init__(self, config: PrismaticConfig, *, has_lm_head: bool = True) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.hidden_size
        self.vision = FusedVision(config.towers)
        self.projector = Projector(config.projector_sizes)
        self.embed_tokens = nn.Embedding(config.vocabulary_size, width)
        self.decoder = LlamaDecoder(config.decoder)
        self.lm_head = nn.Linear(width, config.vocabulary_size, bias=False) if has_lm_head else None

    def encode_images(self, pixels: Tensor) -> Tensor:
        """See and project one picture or several.

        :param pixels: (B, pictures * 3 * towers, H, W), normalised; picture by picture, within it tower by tower
        :return: (B, pictures * N, C), picture by picture
        :raises InputError: for a number of channels that is no whole number of pictures
        """
        channels = 3 * len(self.config.towers)
        if pixels.shape[1] == 0 or pixels.shape[1] % channels:
            raise InputError(f"{pixels.shape[1]} channels are no whole number of pictures of {channels} each; join "
                             "what prepare_picture gives for each picture along dimension 1")
        return torch.cat([self.projector(self.vision(picture)) for picture in pixels.split(channels, dim=1)], dim=1)

    def build_sequence(self, visual: Tensor, ids: list[int]) -> Sequence:
        """Put visual tokens behind BOS and in front of the other words.

        :param visual: (B, N, C)
        :param ids: of the prompt, BOS first
        """
        batch, count, _ = visual.shape
        tokens = torch.tensor([ids], device=visual.device).expand(batch, -1)
        words = self.embed_tokens(tokens).to(visual.dtype)
        embeddings = torch.cat((words[:, :1], visual, words[:, 1:]), dim=1)
        positions = torch.arange(embeddings.shape[1], device=visual.device).expand(batch, -1)
        return Sequence(embeddings, positions, slice(1, 1 + count))


def load_prismatic_(model: PrismaticVlm, tensors: TensorFiles, keys: KeyMap, *, dtype: torch.dtype = torch.float32,
                    elsewhere: tuple[str, ...] = ()) -> None:
    """Give a model its weights, reading one tensor at a time; the model may be on the meta device before.

    :param model: of the sizes that the checkpoint has
    :param tensors: of the checkpoint
    :param keys: which tensor is where
    :param dtype: what the model computes in
    :param elsewhere: beginnings of the names of tensors that another part of the model reads, such as "action_model."
    :raises CheckpointError: naming file and tensor that is missing, of another shape, damaged or unknown to the model
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_keys(expected, tensors, keys, elsewhere)
    state = {name: tensors.read(keys.stored[name], shape).to(dtype) for name, shape in expected.items()}
    model.load_state_dict(state, assign=True)


def check_keys(expected: dict[str, tuple[int, ...]], tensors: TensorFiles, keys: KeyMap,
               elsewhere: tuple[str, ...] = ()) -> None:
    """Compare what a model needs with what a checkpoint has, before anything is read.

    :param expected: shape of each of the model's tensors
    :param tensors: of the checkpoint
    :param keys: which tensor is where
    :param elsewhere: beginnings of the names of tensors that another part of the model reads
    :raises CheckpointError: naming file and tensor that is missing, of another shape or unknown to the model
    """
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
