"""What every model family offers the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from sqap_vla_ros.models.llama import LlamaDecoder
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
    :param strategy: 'resize-naive' squashes the whole picture to the square
    :param mean: per-channel mean of each vision tower, after division by 255
    :param std: per-channel deviation of each vision tower
    """

    size: int
    strategy: str
    mean: tuple[tuple[float, float, float], ...]
    std: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Sequence:
    """The decoder's input.

    :param embeddings: (B, S, C)
    :param positions: (B, S) int64
    :param visual: where the visual tokens stand
    """

    embeddings: Tensor
    positions: Tensor
    visual: slice


@runtime_checkable
class VlaModel(Protocol):
    """A vision-language-action model in the stages that the policy times: vision, llm, head."""

    family: str
    decoder: LlamaDecoder
    action_spec: ActionSpec
    image_spec: ImageSpec
    grid: tuple[int, int]
    action_tokens: int  # how many of the last tokens ``predict_actions`` reads

    def tokenize(self, instruction: str) -> list[int]:
        """Token ids of an instruction; raises InputError for what the model cannot read."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3 * towers, H, W) normalised pixels to (B, N, C) visual tokens in the decoder's width."""

    def build_sequence(self, visual: Tensor, ids: list[int]) -> Sequence:
        """Visual tokens and instruction to the decoder's input."""

    def predict_actions(self, hidden: Tensor) -> Tensor:
        """(B, S', C) decoder output, or its last ``action_tokens`` alone, to (B, T, D) float32 actions, normalised."""

    def rotation_sites(self) -> RotationSites:
        """Where the decoder's residual stream can be rotated."""

    def quantizable_linears(self) -> dict[str, nn.Linear]:
        """Linears that recipes may quantize, by qualified name."""

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers in order; each is called as block(x, ...) and returns x or (x, ...)."""

    def float_reasons(self) -> dict[str, str]:
        """Name of each part that stays float, and why."""
