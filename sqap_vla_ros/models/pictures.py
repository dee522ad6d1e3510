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

"""A camera's picture to a Prismatic model's pixels, to the bit as the originals do it, and where each pixel went.

Two things happen in turn: a preset does what the original's scripts do to a picture before the model, and the model's
own transform makes it a square and normalises it for each vision tower. Both tell the map from camera pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.geometry.image_map import (
    ImageMap,
    crop_map,
    resize_crop_map,
    resize_map,
    scale_map,
    turn_map,
    zoom_map,
)
from sqap_vla_ros.models.jpeg import pass_through_jpeg
from sqap_vla_ros.models.tensorflow_resize import resize_lanczos3, zoom_middle
from sqap_vla_ros.models.vla import ImageSpec

# How a picture becomes a square: squashed; between margins of each tower's mean, or of the last one's for all, as in
# OpenVLA's processor; or the middle of it.
STRATEGIES = ("resize-naive", "letterbox", "letterbox-last", "resize-crop")
_SIZE = 224


class Step(ABC):
    """One thing done to a picture."""

    @abstractmethod
    def map(self, width: int, height: int) -> ImageMap:
        """Where a pixel of a picture of this size goes, in px."""

    @abstractmethod
    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 to (H', W', 3) uint8.

        :raises InputError: for a picture it is not meant for
        """

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what becomes of a picture of this size, px."""
        return width, height


@dataclass(frozen=True)
class Turn(Step):
    """Turn anticlockwise by right angles; LIBERO's cameras hang upside down."""

    quarter_turns: int

    def map(self, width: int, height: int) -> ImageMap:
        """See :class:`Step`."""
        return turn_map(width, height, self.quarter_turns)

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """See :class:`Step`."""
        return np.ascontiguousarray(np.rot90(rgb, self.quarter_turns))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """See :class:`Step`."""
        return (height, width) if self.quarter_turns % 2 else (width, height)


@dataclass(frozen=True)
class Shrink(Step):
    """Through JPEG, then by TensorFlow's Lanczos filter to a square, as OpenVLA's training data was.

    :param size: side of the square, px
    :param always: also through JPEG what has that size already
    """

    size: int
    always: bool

    def map(self, width: int, height: int) -> ImageMap:
        """See :class:`Step`."""
        return resize_map(width, height, self.size)

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """See :class:`Step`."""
        if not self.always and rgb.shape[:2] == (self.size, self.size):
            return rgb
        return resize_lanczos3(pass_through_jpeg(rgb), self.size, self.size)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """See :class:`Step`."""
        return self.size, self.size


@dataclass(frozen=True)
class Zoom(Step):
    """The middle of a square enlarged to the whole, for models that saw random crops in training.

    :param area_ratio: share of the area that stays
    """

    area_ratio: float

    def map(self, width: int, height: int) -> ImageMap:
        """See :class:`Step`."""
        return zoom_map(width, self.area_ratio)

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """See :class:`Step`."""
        return zoom_middle(rgb, self.area_ratio, rgb.shape[0])


@dataclass(frozen=True)
class MiddleSquare(Step):
    """The middle of a wide picture as a square, resized by PIL's Lanczos filter.

    :param size: side of the square, px
    """

    size: int

    def map(self, width: int, height: int) -> ImageMap:
        """See :class:`Step`."""
        return crop_map((width - height) // 2, 0).then(scale_map(height, height, self.size, self.size))

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """See :class:`Step`."""
        height, width = rgb.shape[:2]
        if width < height:
            raise InputError(f"a picture must be at least as wide as high to have its middle cut out, it is {width} x "
                             f"{height} px; turn the camera, or choose another preset")
        left = (width - height) // 2
        return _resize(rgb[:, left:left + height], self.size, self.size, Image.Resampling.LANCZOS)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """See :class:`Step`."""
        return self.size, self.size


@dataclass(frozen=True)
class CutMargins(Step):
    """A picture without its margins, resized to what it was by PIL's Lanczos filter.

    :param area_ratio: share of the area that stays; sides are cut to whole pixels
    """

    area_ratio: float

    def map(self, width: int, height: int) -> ImageMap:
        """See :class:`Step`."""
        (left, across), (top, down) = self._cut(width), self._cut(height)
        return crop_map(left, top).then(scale_map(across, down, width, height))

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """See :class:`Step`."""
        height, width = rgb.shape[:2]
        (left, across), (top, down) = self._cut(width), self._cut(height)
        return _resize(rgb[top:top + down, left:left + across], width, height, Image.Resampling.LANCZOS)

    def _cut(self, length: int) -> tuple[int, int]:
        kept = int(length * self.area_ratio**0.5)
        return (length - kept) // 2, kept


# What the originals' scripts do to a picture before the model sees it. Where a checkpoint was trained without random
# crops, LIBERO's is "libero-uncropped".
PRESETS: dict[str, tuple[Step, ...]] = {
    "none": (),
    "libero": (Turn(2), Shrink(_SIZE, always=True), Zoom(0.9)),
    "libero-uncropped": (Turn(2), Shrink(_SIZE, always=True)),
    "bridge": (Shrink(_SIZE, always=True),),
    "oft": (Shrink(_SIZE, always=False), Zoom(0.9)),
    "cogact-deploy": (MiddleSquare(_SIZE), CutMargins(0.9)),
}


def prepare_picture(rgb: np.ndarray, spec: ImageSpec, preset: str = "none") -> tuple[Tensor, ImageMap]:
    """One camera's picture to pixels.

    :param rgb: (H, W, 3) uint8
    :param spec: of the model
    :param preset: name of one of ``PRESETS``
    :return: (1, 3 * towers, size, size) float32, and the map from camera pixels to model pixels
    :raises InputError: when it is no RGB picture, or not one that the preset is meant for
    :raises ConfigError: for an unknown preset
    """
    _check_picture(rgb)
    image_map = map_picture(rgb.shape[1], rgb.shape[0], spec, preset)
    for step in PRESETS[preset]:
        rgb = step.apply(rgb)
    fills = [tuple(int(value * 255) for value in mean) for mean in spec.mean]
    if spec.strategy == "letterbox-last":
        fills = [fills[-1]] * len(fills)
    if not spec.strategy.startswith("letterbox"):
        fills = [(0, 0, 0)] * len(fills)
    squares = {fill: _make_square(rgb, spec, fill) for fill in fills}
    towers = []
    for fill, mean, std in zip(fills, spec.mean, spec.std, strict=True):
        share = torch.from_numpy(squares[fill]).permute(2, 0, 1).to(torch.float32) / 255.0
        towers.append((share - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
    return torch.cat(towers)[None], image_map


def map_picture(width: int, height: int, spec: ImageSpec, preset: str = "none") -> ImageMap:
    """Where a camera pixel comes to lie in the model's picture.

    :param width: of the camera's picture, px
    :param height: of the camera's picture, px
    :param spec: of the model
    :param preset: name of one of ``PRESETS``
    :raises ConfigError: for an unknown preset or strategy
    """
    check_pictures(spec, preset)
    whole = crop_map(0, 0)
    for step in PRESETS[preset]:
        whole = whole.then(step.map(width, height))
        width, height = step.resized(width, height)
    if spec.strategy == "resize-naive":
        return whole.then(resize_map(width, height, spec.size))
    if spec.strategy == "resize-crop":
        return whole.then(resize_crop_map(width, height, spec.size))
    beside, above = _margins(width, height)
    return whole.then(crop_map(-beside, -above)).then(
        resize_crop_map(width + 2 * beside, height + 2 * above, spec.size))


def check_pictures(spec: ImageSpec, preset: str) -> None:
    """Refuse what no picture can be prepared with.

    :param spec: of the model
    :param preset: name of one of ``PRESETS``
    :raises ConfigError: for an unknown preset or strategy
    """
    if preset not in PRESETS:
        raise ConfigError(f"the picture preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if spec.strategy not in STRATEGIES:
        raise ConfigError(f"the strategy of pictures must be one of {', '.join(STRATEGIES)}, got {spec.strategy!r}")


def _check_picture(rgb: np.ndarray) -> None:
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        came = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise InputError(f"a picture must be a uint8 array of shape (height, width, 3), got {came}")


def _margins(width: int, height: int) -> tuple[int, int]:
    # Left and right, above and below: equal on both sides, so that a pixel may be missing to a square.
    longer = max(width, height)
    return (longer - width) // 2, (longer - height) // 2


def _make_square(rgb: np.ndarray, spec: ImageSpec, fill: tuple[int, ...]) -> np.ndarray:
    size = spec.size
    if spec.strategy == "resize-naive":
        return _resize(rgb, size, size, Image.Resampling.BICUBIC)
    if spec.strategy != "resize-crop":
        beside, above = _margins(rgb.shape[1], rgb.shape[0])
        padded = np.empty((rgb.shape[0] + 2 * above, rgb.shape[1] + 2 * beside, 3), np.uint8)
        padded[:] = fill
        padded[above:above + rgb.shape[0], beside:beside + rgb.shape[1]] = rgb
        rgb = padded
    height, width = rgb.shape[:2]
    short = min(width, height)
    rgb = _resize(rgb, size * width // short, size * height // short, Image.Resampling.BICUBIC)
    top, left = round((rgb.shape[0] - size) / 2), round((rgb.shape[1] - size) / 2)
    return np.ascontiguousarray(rgb[top:top + size, left:left + size])


def _resize(rgb: np.ndarray, width: int, height: int, method: Image.Resampling) -> np.ndarray:
    # PIL does nothing to a picture that has the size already.
    return np.array(Image.fromarray(np.ascontiguousarray(rgb)).resize((width, height), method))
