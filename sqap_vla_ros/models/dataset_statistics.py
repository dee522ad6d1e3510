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

"""What the actions and states of a checkpoint's training data ranged over, and the choice among several data sets.

A model knows actions and states only as numbers from -1 to 1; what those ends mean is told beside its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models.json_file import read_json
from sqap_vla_ros.models.vla import ActionSpec

CONFIG_FILE, STATISTICS_FILE = "config.json", "dataset_statistics.json"
# The names of a data set's lowest and highest values, by the name of a normalisation.
NORMALIZATIONS = {"q99": ("q01", "q99"), "min-max": ("min", "max")}
# What is read of a data set.
_PARTS, _KEYS = ("action", "proprio"), (*(end for ends in NORMALIZATIONS.values() for end in ends), "mask")
# What OpenVLA-OFT adds to a span, so that one of zero can be divided by.
OFT_SPAN_OFFSET = 1e-8
# LIBERO's data sets, when cleaned of steps that do nothing, are called by their suite with this behind.
_CLEANED = "_no_noops"


@dataclass(frozen=True)
class Bounds:
    """What -1 and +1 mean, in metres and radians.

    :param low: (D,) value of -1
    :param high: (D,) value of +1
    :param mask: (D,) false for a dimension that is not normalised
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...]

    def action_spec(self, chunk_steps: int, span_offset: float = 0.0) -> ActionSpec:
        """How a model's actions become metres and radians.

        :param chunk_steps: T
        :param span_offset: added to ``high - low``: ``OFT_SPAN_OFFSET`` for OpenVLA-OFT, nothing for OpenVLA and CogACT
        """
        return ActionSpec(chunk_steps, self.low, tuple(high + span_offset for high in self.high), self.mask)


@dataclass(frozen=True)
class DatasetStatistics:
    """What one file tells of each data set.

    :param source: the file
    :param datasets: by name; "action", and where the model reads it "proprio", to lists of numbers by their name
    """

    source: Path
    datasets: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without all that is never read."""
        return {name: {part: {key: entry[part][key] for key in _KEYS if key in entry[part]}
                       for part in _PARTS if isinstance(entry.get(part), dict)}
                for name, entry in self.datasets.items() if isinstance(entry, dict)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DatasetStatistics:
        """Inverse of :meth:`to_json`, for what an own config.json tells.

        :raises TypeError, ValueError: when it is no mapping
        """
        return cls(Path(CONFIG_FILE), dict(values))

    def choose(self, dataset: str | None) -> str:
        """Name of the data set whose statistics count.

        :param dataset: a name, or that of a LIBERO suite whose cleaned data are there; None where there is only one
        :raises ConfigError: for a name that is not there, and for None where there are several; lists those there are
        """
        if dataset is None and len(self.datasets) == 1:
            return next(iter(self.datasets))
        if dataset is not None:
            for name in (dataset, dataset + _CLEANED):
                if name in self.datasets:
                    return name
        asked = "no data set is named" if dataset is None else f"there is no data set {dataset!r}"
        raise ConfigError(f"{asked} to un-normalise actions by; '{self.source}' knows {', '.join(self.datasets)}; name "
                          "one of them as model.dataset, on the command line --dataset")

    def bounds(self, dataset: str | None, part: str, normalization: str) -> Bounds:
        """Ends of one data set's actions or states.

        :param dataset: see :meth:`choose`
        :param part: 'action' or 'proprio'
        :param normalization: 'q99', the first and the last of a hundred parts, or 'min-max'
        :raises ConfigError: for an unknown data set or normalisation
        :raises CheckpointError: where the file lacks a part or has anything but numbers in it
        """
        if normalization not in NORMALIZATIONS:
            raise ConfigError(f"unknown normalisation {normalization!r}; known are {', '.join(NORMALIZATIONS)}")
        name = self.choose(dataset)
        place = f"'{self.source}', data set {name!r}, {part}"
        entry = self.datasets[name]
        values = entry.get(part) if isinstance(entry, dict) else None
        if not isinstance(values, dict):
            raise CheckpointError(f"{place}: missing; a data set must tell of all that the model reads and writes")
        low, high = (_read_numbers(place, values, key) for key in NORMALIZATIONS[normalization])
        mask = values.get("mask", [True] * len(low))
        if not isinstance(mask, list) or not all(isinstance(flag, bool) for flag in mask):
            raise CheckpointError(f"{place}: 'mask' must be a list of true and false, it is {mask!r}")
        if not len(low) == len(high) == len(mask):
            raise CheckpointError(f"{place}: {len(low)} low ends, {len(high)} high ends and {len(mask)} in 'mask'; "
                                  "there must be one of each per dimension")
        return Bounds(low, high, tuple(mask))


def read_statistics(folder: str | Path) -> DatasetStatistics:
    """Read what a checkpoint tells; dataset_statistics.json takes the place of all in config.json.

    :param folder: with a dataset_statistics.json, or a config.json with ``norm_stats``
    :raises CheckpointError: where neither is there, or the file cannot be used
    """
    folder = Path(folder)
    source = folder / STATISTICS_FILE
    if source.is_file():
        datasets: Any = read_json(source)
    else:
        source = folder / CONFIG_FILE
        datasets = read_json(source).get("norm_stats") if source.is_file() else None
    if not isinstance(datasets, dict) or not datasets:
        raise CheckpointError(f"'{folder}' does not tell what its actions mean; give it a {STATISTICS_FILE}, or a "
                              f"{CONFIG_FILE} with 'norm_stats'")
    return DatasetStatistics(source, datasets)


def _read_numbers(place: str, values: Mapping[str, Any], key: str) -> tuple[float, ...]:
    numbers = values.get(key)
    if not isinstance(numbers, list) or not numbers:
        raise CheckpointError(f"{place}: {key!r} must be a list of numbers, it is {numbers!r}")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise CheckpointError(f"{place}: {key!r} must hold finite numbers, it holds {number!r}")
    return tuple(map(float, numbers))
