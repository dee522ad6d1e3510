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

"""Takes away what some visual tokens say, to see whether a policy uses them.

A blanked token becomes the mean of those that stay, where the decoder would first see it. What the vision tower had
already mixed into other tokens stays there.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.models.demo import DemoVla
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.models.vla import VlaModel


class Blindfold:
    """A hook behind the projector of a demo model; as a context manager it is taken off at the end.

    :param model: a model of the demo family, quantized or not
    :raises ConfigError: for another family
    """

    def __init__(self, model: VlaModel) -> None:
        check_family(model)
        self._mask: Tensor | None = None
        self._hook = model.projector_fc2.register_forward_hook(self._blank)  # type: ignore[attr-defined]

    def __enter__(self) -> Blindfold:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.remove()

    def cover(self, mask: np.ndarray) -> None:
        """Blank these tokens from the next picture on.

        :param mask: (N,) bool
        :raises InputError: when no token would stay
        """
        if mask.all():
            raise InputError(f"all {len(mask)} visual tokens would be blanked; nothing stays to take the mean of")
        self._mask = torch.from_numpy(mask)

    def remove(self) -> None:
        """Give the model its sight back."""
        self._hook.remove()

    def _blank(self, module: Any, inputs: Any, tokens: Tensor) -> Tensor:
        # (B, N, C)
        if self._mask is None:
            return tokens
        mask = self._mask.to(tokens.device)
        return torch.where(mask[:, None], tokens[:, ~mask].mean(1, keepdim=True), tokens)


def check_family(model: VlaModel) -> None:
    """Refuse what cannot be blinded.

    :raises ConfigError: for a family other than demo
    """
    if not isinstance(model, DemoVla):
        raise ConfigError(f"a model of the family '{model.family}' cannot be blinded; --blind works with 'demo' only")


def see_tokens(shown: np.ndarray, image_map: ImageMap, vision: VitConfig) -> np.ndarray:
    """Which tokens see any of some pixels; fields are larger than the cells they are centred on, and overlap.

    :param shown: (H, W) bool, pixels of the camera's picture
    :param image_map: camera pixels to model pixels, without rotation
    :param vision: size, distance and border of the fields
    :return: (N,) bool, row by row from the top left
    """
    height, width = shown.shape
    edges = np.arange(max(height, width) + 1) - 0.5
    across, down = image_map.apply(np.stack((edges, edges), axis=1)).T
    rows = _meet(down[:height + 1], vision).astype(np.int64)
    columns = _meet(across[:width + 1], vision).astype(np.int64)
    return np.asarray((rows @ shown @ columns.T > 0).ravel())  # (R, H) @ (H, W) @ (W, C)


def pick_others(mask: np.ndarray, taken: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many random tokens as a mask has, from those that are not taken.

    :param mask: (N,) bool
    :param taken: (N,) bool, tokens never picked
    :return: (N,) bool; fewer when not so many are left
    """
    free = np.flatnonzero(~taken)
    picked = np.zeros_like(mask)
    picked[rng.choice(free, min(int(mask.sum()), len(free)), replace=False)] = True
    return picked


def _meet(edges: np.ndarray, vision: VitConfig) -> np.ndarray:
    # (T, P): whether the field of token T and the pixel between two edges have a stretch in common along one axis.
    start, size = vision.field
    first = (np.arange(vision.grid_size) * vision.patch_stride + start - 0.5)[:, None]
    last = first + size
    return np.asarray((edges[:-1] < last) & (edges[1:] > first))
