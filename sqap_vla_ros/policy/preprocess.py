"""The transforms at both ends of a model: a picture to pixels, normalised actions to metres and radians."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.image_map import ImageMap, resize_map
from sqap_vla_ros.models.vla import ActionSpec, ImageSpec

STRATEGIES = ("resize-naive",)


def map_image(width: int, height: int, spec: ImageSpec) -> ImageMap:
    """Where a camera pixel comes to lie in the model's picture.

    :param width: of the camera's picture, px
    :param height: of the camera's picture, px
    :param spec: its size counts
    """
    return resize_map(width, height, spec.size)


def prepare_image(rgb: np.ndarray, spec: ImageSpec) -> tuple[Tensor, ImageMap]:
    """Resize (bicubic, anti-aliased, rounded to whole numbers as PIL does), scale to 0..1 and normalise.

    A picture that already has the model's size is not resampled.

    :param rgb: (H, W, 3) uint8
    :param spec: size, and mean and deviation of each vision tower
    :return: (1, 3 * towers, size, size) float32, and the map from camera pixels to model pixels
    :raises InputError: when it is no RGB picture
    """
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        came = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise InputError(f"a picture must be a uint8 array of shape (height, width, 3), got {came}")
    height, width = rgb.shape[:2]
    if (height, width) != (spec.size, spec.size):
        rgb = np.asarray(Image.fromarray(rgb).resize((spec.size, spec.size), Image.Resampling.BICUBIC))
    share = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).to(torch.float32) / 255.0
    towers = [(share - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
              for mean, std in zip(spec.mean, spec.std, strict=True)]
    return torch.cat(towers)[None], map_image(width, height, spec)


def unnormalize_actions(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Actions as the model gives them to metres and radians, as :class:`ActionSpec` says.

    :param actions: (T, D)
    :param spec: bounds and mask
    :return: (T, D) float64
    """
    actions = np.asarray(actions, dtype=np.float64)
    low, high = np.array(spec.low), np.array(spec.high)
    return np.where(np.array(spec.mask), 0.5 * (actions + 1.0) * (high - low) + low, actions)
