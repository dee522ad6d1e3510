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

"""The transforms at both ends of a model: pictures and state to tensors, normalised actions to metres and radians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.geometry.image_map import ImageMap
from sqap_vla_ros.knobs import ModelKnobs
from sqap_vla_ros.models.pictures import prepare_picture
from sqap_vla_ros.models.vla import ActionSpec, VlaModel


@dataclass(frozen=True)
class ModelInputs:
    """One observation as a model reads it.

    :param pixels: (1, cameras * 3 * towers, H, W) float32
    :param ids: of the instruction's tokens
    :param state: (D,) float64; None for a model that reads none
    :param masks: (N,) bool for each camera, tokens that show the robot; None where that is not known
    :param seed: of whatever is drawn
    """

    pixels: Tensor
    ids: list[int]
    state: Tensor | None
    masks: tuple[Tensor | None, ...]
    seed: int


def prepare_pictures(images: Sequence[np.ndarray], model: VlaModel) -> tuple[Tensor, tuple[ImageMap, ...]]:
    """One picture of each of a model's cameras to pixels.

    :param images: (H, W, 3) uint8 each, in the order of ``model.cameras``; sizes may differ
    :param model: that is to see them
    :return: (1, cameras * 3 * towers, size, size) float32, picture by picture, and the map from the pixels of each
        camera to model pixels
    :raises InputError: for another number of pictures, or one that cannot be used
    """
    if len(images) != len(model.cameras):
        raise InputError(f"an observation came with {len(images)} pictures, and the model sees {len(model.cameras)}; "
                         f"give one of each camera, in this order: {', '.join(model.cameras)}")
    prepared = [prepare_picture(rgb, model.image_spec, model.pictures) for rgb in images]
    return torch.cat([pixels for pixels, _ in prepared], dim=1), tuple(image_map for _, image_map in prepared)


def prepare_state(state: np.ndarray | None, model: VlaModel) -> Tensor | None:
    """The robot's own state as a model reads it.

    :param state: (D,) numbers, or None
    :param model: that is to read it
    :return: (D,) float64, or None for a model that reads none
    :raises InputError: when there is none and the model needs one or the other way round, or it is of another size or
        not finite
    """
    size = model.state_size
    if state is None and size == 0:
        return None
    if state is None:
        raise InputError(f"an observation came without a robot state, and the model reads one of {size} numbers; give "
                         "it along")
    if size == 0:
        raise InputError("an observation came with a robot state, and the model reads none; leave it out")
    state = np.asarray(state, dtype=np.float64)
    if state.shape != (size,):
        raise InputError(f"a robot state must be {size} numbers in a row, got shape {state.shape}")
    if not np.isfinite(state).all():
        raise InputError(f"a robot state must be finite, got {state.tolist()}")
    return torch.from_numpy(state.copy())


def scale_actions(steps: np.ndarray, knobs: ModelKnobs) -> np.ndarray:
    """Actions in a data set's units to metres and radians.

    :param steps: (T, D) as :func:`unnormalize_actions` gives them
    :param knobs: what 1 means; with anything but 1 there must be 7 dimensions
    :return: (T, D)
    """
    if knobs.meters_per_unit == knobs.radians_per_unit == 1.0:
        return steps
    return steps * np.repeat((knobs.meters_per_unit, knobs.radians_per_unit, 1.0), (3, 3, 1))


def unnormalize_actions(actions: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Actions as the model gives them to metres and radians, as :class:`ActionSpec` says.

    :param actions: (T, D)
    :param spec: bounds and mask
    :return: (T, D) float64
    """
    actions = np.asarray(actions, dtype=np.float64)
    low, high = np.array(spec.low), np.array(spec.high)
    return np.where(np.array(spec.mask), 0.5 * (actions + 1.0) * (high - low) + low, actions)
