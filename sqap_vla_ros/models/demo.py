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

"""The demo policy: a small VLA in OpenVLA's token order, [BOS][visual][instruction][ACT], with a chunk head.

The last token's final hidden state becomes the whole action chunk in one prefill.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError, InputError
from sqap_vla_ros.models.family import Family
from sqap_vla_ros.models.llama import LlamaConfig, LlamaDecoder
from sqap_vla_ros.models.sites import decoder_linears, stream_sites
from sqap_vla_ros.models.vit import VisionTransformer, VitConfig
from sqap_vla_ros.models.vla import ActionSpec, ImageSpec, Later, ModelSettings, Sequence
from sqap_vla_ros.quantization.rotation import RotationSites

BOS, ACT = 0, 1
SPECIAL_TOKENS = ("<bos>", "<act>")


@dataclass(frozen=True)
class DemoConfig:
    """Architecture, words and action bounds of a demo checkpoint; what its ``config.json`` holds."""

    vision: VitConfig
    decoder: LlamaConfig
    vocabulary: tuple[str, ...]
    action: ActionSpec

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return {"family": "demo", **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DemoConfig:
        """Inverse of :meth:`to_json`.

        :raises CheckpointError: when a field is missing or unknown
        """
        try:
            action: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                      for key, value in values["action"].items()}
            return cls(vision=VitConfig(**values["vision"]), decoder=LlamaConfig(**values["decoder"]),
                       vocabulary=tuple(values["vocabulary"]), action=ActionSpec(**action))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"config.json of a demo checkpoint is not usable: {error}") from error


class DemoVla(nn.Module):
    """See the module's docstring; the methods are those of :class:`~sqap_vla_ros.models.vla.VlaModel`."""

    family = "demo"
    pictures = "none"
    cameras = ("main",)
    state_size = 0
    action_tokens = 1
    decodes = False
    has_smooth_actions = True

    def __init__(self, config: DemoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.decoder.hidden_size
        self.vision = VisionTransformer(config.vision)
        self.projector_fc1 = nn.Linear(config.vision.hidden_size, width)
        self.projector_fc2 = nn.Linear(width, width)
        self.embed_tokens = nn.Embedding(len(SPECIAL_TOKENS) + len(config.vocabulary), width)
        self.decoder = LlamaDecoder(config.decoder)
        self.head_fc1 = nn.Linear(width, width)
        self.head_fc2 = nn.Linear(width, config.action.chunk_steps * len(config.action.low))
        self.action_spec = config.action
        self.image_spec = ImageSpec(config.vision.image_size, "resize-naive", ((0.5, 0.5, 0.5),), ((0.5, 0.5, 0.5),))
        self.grid = (config.vision.grid_size, config.vision.grid_size)
        self.example = " ".join(config.vocabulary[:6])
        self._ids = {word: len(SPECIAL_TOKENS) + index for index, word in enumerate(config.vocabulary)}

    def choose(self, settings: ModelSettings) -> None:
        """Only the pictures' preset is left to choose."""
        self.pictures = settings.pictures

    def tokenize(self, instruction: str) -> list[int]:
        """Words to ids.

        :raises InputError: when there is no word, or one that training never saw
        """
        words = re.findall(r"[a-z]+|[^\sa-z.,!]+", instruction.lower())
        if not words:
            raise InputError("the instruction is empty; say what to do, for example 'pick up the red block'")
        unknown = [word for word in words if word not in self._ids]
        if unknown:
            raise InputError(f"the demo policy does not know {', '.join(map(repr, unknown))}; "
                             f"its words are {', '.join(self.config.vocabulary)}")
        return [self._ids[word] for word in words]

    def encode_images(self, pixels: Tensor, ids: list[int] | None = None) -> Tensor:
        """(B, 3, H, W) normalised pixels to (B, N, C), whatever the words."""
        return self.projector_fc2(F.gelu(self.projector_fc1(self.vision(pixels))))

    def build_sequence(self, visual: Tensor, ids: list[int], state: Tensor | None = None, seed: int = 0) -> Sequence:
        """Put the visual tokens between BOS and the instruction."""
        batch, count, _ = visual.shape
        tokens = torch.tensor([[BOS, *ids, ACT]], device=visual.device).expand(batch, -1)
        words = self.embed_tokens(tokens).to(visual.dtype)
        embeddings = torch.cat((words[:, :1], visual, words[:, 1:]), dim=1)
        positions = torch.arange(embeddings.shape[1], device=visual.device).expand(batch, -1)
        return Sequence(embeddings, positions, slice(1, 1 + count))

    def predict_actions(self, hidden: Tensor, later: Later | None = None) -> Tensor:
        """(B, S', C) to (B, T, D): motion in [-1, 1], gripper 0 (closed) to 1 (open)."""
        return self.decode_actions(hidden[:, -1])

    def decode_actions(self, hidden: Tensor) -> Tensor:
        """(B, C) final hidden states of ACT tokens to (B, T, D)."""
        raw = self.action_logits(hidden)
        return torch.cat((raw[..., :-1], raw[..., -1:].sigmoid()), dim=-1)

    def action_logits(self, hidden: Tensor) -> Tensor:
        """As :meth:`decode_actions`, with the gripper as a logit."""
        raw = self.head_fc2(F.gelu(self.head_fc1(hidden))).float()
        return raw.view(*hidden.shape[:-1], self.action_spec.chunk_steps, len(self.action_spec.low))

    def rotation_sites(self) -> RotationSites:
        """One residual stream: words and projector write it, the layers read and write, the head reads."""
        words = cast(nn.Parameter, self.embed_tokens.weight)
        return stream_sites(self.decoder, (words,), (self.projector_fc2,), (self.head_fc1,))

    def quantizable_linears(self) -> dict[str, nn.Linear]:
        """Every linear of the decoder."""
        return decoder_linears(self.decoder)

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers, first to last."""
        return list(self.decoder.layers)

    def float_reasons(self) -> dict[str, str]:
        """What recipes leave alone."""
        return {"vision": "runs once per image and feeds every token; the method compresses the LLM",
                "projector_fc1, projector_fc2": "1.5 % of the weights; errors here reach every layer",
                "embed_tokens": "a look-up, not a matrix product",
                "head_fc1, head_fc2": "one token wide; quantized action heads cost success out of all proportion"}


FAMILY = Family(DemoConfig.from_json, lambda config, files: DemoVla(config))
