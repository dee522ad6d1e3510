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

"""All knobs together, from defaults and dotted names; ROS parameters, flags and the README table derive from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.knobs import ControlKnobs, FootprintKnobs, InputKnobs, Knob, ModelKnobs, PruneKnobs, SafetyKnobs

MAX_CAMERAS = 3
# As far off as numbers written with three digits are.
QUATERNION_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Config:
    """All knobs, by section."""

    model: ModelKnobs = field(default_factory=ModelKnobs)
    prune: PruneKnobs = field(default_factory=PruneKnobs)
    input: InputKnobs = field(default_factory=InputKnobs)
    footprint: FootprintKnobs = field(default_factory=FootprintKnobs)
    control: ControlKnobs = field(default_factory=ControlKnobs)
    safety: SafetyKnobs = field(default_factory=SafetyKnobs)

    def __post_init__(self) -> None:
        """Refuse knobs that contradict each other."""
        cameras, footprint, safety = self.input.cameras, self.footprint, self.safety
        if len(footprint.frames) != len(footprint.radii_m):
            raise ConfigError(f"footprint.radii_m has {len(footprint.radii_m)} values for {len(footprint.frames)} "
                              "footprint.frames; give one radius per frame")
        if not 1 <= len(cameras) <= MAX_CAMERAS or len(set(cameras)) != len(cameras) or "" in cameras:
            raise ConfigError(f"input.cameras is {list(cameras)}; give 1 to {MAX_CAMERAS} different names")
        _check_count("footprint.camera_frames", footprint.camera_frames, len(cameras), "one for each of input.cameras")
        if footprint.extrinsics_frame:
            _check_count("footprint.extrinsics", footprint.extrinsics, 7 * len(cameras), "seven for each of "
                         "input.cameras")
            for camera, start in zip(cameras, range(3, 7 * len(cameras), 7), strict=True):
                length = math.hypot(*footprint.extrinsics[start:start + 4])
                if abs(length - 1.0) > QUATERNION_TOLERANCE:
                    raise ConfigError(f"footprint.extrinsics has a quaternion of length {length:.4g} for camera "
                                      f"'{camera}'; it must be 1; give x, y, z, then x, y, z, w")
        for name in ("workspace_min_m", "workspace_max_m"):
            _check_count(f"safety.{name}", getattr(safety, name), 3, "x, y and z")
        if any(low >= high for low, high in zip(safety.workspace_min_m, safety.workspace_max_m, strict=True)):
            raise ConfigError(f"safety.workspace_min_m {list(safety.workspace_min_m)} must lie below "
                              f"safety.workspace_max_m {list(safety.workspace_max_m)} in x, y and z")
        if self.input.state == "joints" and self.input.joints == ("",):
            raise ConfigError("input.state is 'joints' and input.joints names none; name the joints in the model's "
                              "order")
        control = self.control
        if control.ensemble_horizon > 1 and control.execute_steps > 1:
            raise ConfigError(
                f"control.ensemble_horizon is {control.ensemble_horizon} and control.execute_steps is "
                f"{control.execute_steps}, and an ensemble looks again after each step; set control.execute_steps to "
                "1, or control.ensemble_horizon to 1 to blend nothing")


def _check_count(name: str, values: tuple[Any, ...], count: int, what: str) -> None:
    if len(values) != count:
        raise ConfigError(f"{name} has {len(values)} values; there must be {count}, {what}")


def iterate_knobs(config: Config) -> Iterator[tuple[str, Knob, Any]]:
    """Yield ``(section.name, knob, value)`` for every knob of ``config``."""
    for section in fields(config):
        values = getattr(config, section.name)
        for entry in fields(values):
            yield f"{section.name}.{entry.name}", entry.metadata["knob"], getattr(values, entry.name)


def build_config(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """Replace knobs of ``base`` by dotted name.

    :param values: ``section.name`` to value; lists become tuples
    :param base: what the other knobs are; the defaults when None
    :raises ConfigError: for an unknown name, a wrong type or a value out of range
    """
    config = base or Config()
    known = {name: (entry, value) for name, entry, value in iterate_knobs(Config())}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown knob '{name}'; known are {', '.join(known)}")
        section, _, leaf = name.partition(".")
        sections.setdefault(section, {})[leaf] = _checked(name, *known[name], value)
    replaced = {section: dataclasses.replace(getattr(config, section), **leaves)
                for section, leaves in sections.items()}
    return dataclasses.replace(config, **replaced)


def _checked(name: str, entry: Knob, default: Any, value: Any) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{name} must be a list, got {value!r}")
        kind = type(default[0])
        return tuple(_checked_scalar(name, entry, kind, item) for item in value)
    return _checked_scalar(name, entry, type(default), value)


def _checked_scalar(name: str, entry: Knob, kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{name} must be {kind.__name__}, got {type(value).__name__} {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value!r}")
    if entry.choices and value not in entry.choices:
        raise ConfigError(f"{name} is '{value}'; allowed are {entry.choices_text}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if entry.minimum is not None and value < entry.minimum:
            raise ConfigError(f"{name} is {value}; the smallest allowed is {entry.minimum}")
        if entry.maximum is not None and value > entry.maximum:
            raise ConfigError(f"{name} is {value}; the largest allowed is {entry.maximum}")
    return value
