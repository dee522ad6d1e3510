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

"""What every model family offers the runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from sqap_vla_ros.models.attention import KeyValues
from sqap_vla_ros.models.llama import LlamaDecoder, PruneStep
from sqap_vla_ros.quantization.rotation import RotationSites


@dataclass(frozen=True)
class ActionSpec:
    """How normalised actions become metres and radians: 0.5 (x + 1)(high - low) + low where ``mask`` is true.

    :param chunk_steps: T
    :param low: (D,) value of -1
    :param high: (D,) value of +1
    :param mask: (D,) false leaves the dimension as the model gives it (the gripper, 0 to 1)
    """

    chunk_steps: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]


@dataclass(frozen=True)
class ImageSpec:
    """How a camera picture becomes the model's input.

    :param size: side of the square input, px
    :param strategy: one of :data:`~sqap_vla_ros.models.pictures.STRATEGIES`, such as 'resize-naive', which squashes the
        whole picture to the square
    :param mean: per-channel mean of each vision tower, after division by 255
    :param std: per-channel deviation of each vision tower
    """

    size: int
    strategy: str
    mean: tuple[tuple[float, float, float], ...]
    std: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class ModelSettings:
    """What whoever runs a model chooses about it, apart from its checkpoint; a family takes what concerns it.

    :param dataset: whose statistics give actions their units; empty is the only one that there is
    :param pictures: what is done to a camera's picture first, a name in
        :data:`~sqap_vla_ros.models.pictures.PRESETS`
    :param robot: which robot OpenVLA-OFT is for; empty finds out
    :param sampler_steps: of CogACT's head; that of OpenVLA-OFT takes the 50 it was trained with
    :param guidance: how much CogACT's heeds what it sees; 1 is plain
    """

    dataset: str = ""
    pictures: str = "none"
    robot: str = ""
    sampler_steps: int = 10
    guidance: float = 1.5


@dataclass(frozen=True)
class Sequence:
    """The decoder's input.

    :param embeddings: (B, S, C)
    :param positions: (B, S) int64
    :param visual: where the visual tokens stand
    :param causal: whether each token sees only those before it and itself; false sees all
    """

    embeddings: Tensor
    positions: Tensor
    visual: slice
    causal: bool = True


@dataclass(frozen=True)
class Later:
    """What a head needs that runs the decoder again.

    :param sequence: what the decoder read
    :param prune: for passes over a whole sequence; it chooses once, and the same tokens in every pass
    :param cache: keys and values of the pass that was; None for a model that does not decode
    :param seed: of noise; a function of the pictures, 0 to 2**32 - 1
    :param end_stage: told the name of each stage that ends before 'head', once
    """

    sequence: Sequence
    prune: PruneStep | None
    cache: list[KeyValues] | None
    seed: int
    end_stage: Callable[[str], None]


@runtime_checkable
class VlaModel(Protocol):
    """A vision-language-action model in the stages that the policy times: vision, llm, head."""

    family: str
    vision: nn.Module  # takes pixels of its parameters' type
    decoder: LlamaDecoder
    action_spec: ActionSpec
    image_spec: ImageSpec
    pictures: str  # preset of its pictures
    cameras: tuple[str, ...]  # one picture of each, in this order
    grid: tuple[int, int]  # rows and columns of each picture's visual tokens
    state_size: int  # numbers of the robot's state that it reads; 0 reads none
    action_tokens: int  # how many of the last tokens ``predict_actions`` reads
    decodes: bool  # whether ``predict_actions`` goes on behind the prefill, with its keys and values
    has_smooth_actions: bool  # whether actions have a gradient; tokens drawn from a vocabulary have none
    example: str  # an instruction that it can read

    def choose(self, settings: ModelSettings) -> None:
        """Take what concerns the family.

        :raises ConfigError: for a setting that the model cannot have
        """

    def tokenize(self, instruction: str) -> list[int]:
        """Token ids of an instruction; raises InputError for what the model cannot read."""

    def encode_images(self, pixels: Tensor, ids: list[int]) -> Tensor:
        """See all pictures.

        :param pixels: (B, cameras * 3 * towers, H, W), normalised; picture by picture, within it tower by tower
        :param ids: of the instruction, for vision that heeds it
        :return: (B, cameras * N, C) visual tokens in the decoder's width, picture by picture
        """

    def build_sequence(self, visual: Tensor, ids: list[int], state: Tensor | None = None, seed: int = 0) -> Sequence:
        """Put the decoder's input together.

        :param visual: (B, cameras * N, C)
        :param ids: of the instruction
        :param state: (state_size,) float64 on the CPU, metres and radians; None where the model reads none
        :param seed: of noise, 0 to 2**32 - 1
        """

    def predict_actions(self, hidden: Tensor, later: Later | None = None) -> Tensor:
        """Read the actions.

        :param hidden: (B, S', C) decoder output, or its last ``action_tokens`` alone
        :param later: for heads that run the decoder again; None gives them the one pass, as a calibration wants it
        :return: (B, T, D) float32, normalised; from a model that decodes (B, 1, 1) without ``later``
        """

    def rotation_sites(self) -> RotationSites:
        """Where the decoder's residual stream can be rotated."""

    def quantizable_linears(self) -> dict[str, nn.Linear]:
        """Linears that recipes may quantize, by qualified name."""

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers in order; each is called as block(x, ...) and returns x or (x, ...)."""

    def float_reasons(self) -> dict[str, str]:
        """Name of each part that stays float, and why."""
