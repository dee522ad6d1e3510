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

"""What OpenVLA-OFT's checkpoints do not tell of themselves, for the three robots it was published for.

The originals take these from the words of the command line; here they are named by whoever loads a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.dataset_statistics import NORMALIZATIONS, OFT_SPAN_OFFSET, DatasetStatistics
from sqap_vla_ros.models.vla import ActionSpec


@dataclass(frozen=True)
class OftPreset:
    """Sizes of a robot's actions and states; vary one with ``dataclasses.replace``.

    :param chunk_steps: T, actions of one inference
    :param action_dims: D, numbers of one action
    :param proprio_dims: numbers of a state, for checkpoints with a proprio projector
    :param normalization: of actions and states: 'q99' or 'min-max'
    :param cameras: which pictures the model sees, in their order
    """

    chunk_steps: int
    action_dims: int
    proprio_dims: int
    normalization: str
    cameras: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("chunk_steps", "action_dims", "proprio_dims"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.normalization not in NORMALIZATIONS:
            raise ConfigError(f"unknown normalisation {self.normalization!r}; known are {', '.join(NORMALIZATIONS)}")
        if not self.cameras:
            raise ConfigError("cameras names no picture; the model sees 1 to 3")

    @property
    def action_tokens(self) -> int:
        """Places of the sequence that stand for a chunk, one per number."""
        return self.chunk_steps * self.action_dims

    def action_spec(self, statistics: DatasetStatistics, dataset: str | None) -> ActionSpec:
        """How a chunk becomes metres and radians.

        :raises CheckpointError: when the data set's actions have another size than the preset's
        :raises ConfigError: see :meth:`DatasetStatistics.choose`
        """
        bounds = statistics.bounds(dataset, "action", self.normalization)
        if len(bounds.low) != self.action_dims:
            raise CheckpointError(f"'{statistics.source}' has statistics of {len(bounds.low)} action dimensions, the "
                                  f"preset is for {self.action_dims}; presets are {', '.join(PRESETS)}")
        return bounds.action_spec(self.chunk_steps, OFT_SPAN_OFFSET)


PRESETS = {
    "libero": OftPreset(8, 7, 8, "q99", ("main", "wrist")),
    "aloha": OftPreset(25, 14, 14, "min-max", ("main", "left_wrist", "right_wrist")),
    "bridge": OftPreset(5, 7, 7, "q99", ("main",)),
}


def find_preset(name: str) -> OftPreset:
    """The preset of a name.

    :raises ConfigError: for a name that there is not
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown OpenVLA-OFT preset {name!r}; presets are {', '.join(PRESETS)}")
    return PRESETS[name]
