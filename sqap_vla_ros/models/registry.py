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

"""Checkpoints: from a folder to a model that is ready.

A folder is of one of three kinds, told by its config.json. One of this package's own names the family and holds
model.safetensors; a compressed one has a section more, and is read without the float one it was made from (see
:mod:`~sqap_vla_ros.quantization.artifact`); and one as a family's authors published it is read as it is. Tensors may be
stored in half precision; a loaded model computes in float32 unless another type is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import sqap_vla_ros
from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.models import cogact, demo, openvla, openvla_oft
from sqap_vla_ros.models.family import Family, Opened, Wanted, all_names, build_empty
from sqap_vla_ros.models.json_file import read_json
from sqap_vla_ros.models.own_format import load_own_
from sqap_vla_ros.models.vla import ModelSettings, VlaModel
from sqap_vla_ros.quantization.artifact import (
    CONFIG_FILE,
    TENSOR_FILE,
    Artifact,
    is_artifact,
    read_artifact,
    restore_artifact_,
    verify_artifact,
)
from sqap_vla_ros.quantization.folder import hash_file
from sqap_vla_ros.quantization.report import Listener, QuantizationReport
from sqap_vla_ros.quantization.stored_tensors import list_stored

ASSETS = Path(sqap_vla_ros.__file__).parent / "assets"
PACKAGED = ("demo",)
# The first that recognizes a published folder opens it, so one that wants more of a folder comes before its kin.
FAMILIES: dict[str, Family] = {
    "demo": demo.FAMILY,
    "cogact": cogact.FAMILY,
    "openvla-oft": openvla_oft.FAMILY,
    "openvla": openvla.FAMILY,
}
DEFAULT_SETTINGS = ModelSettings()


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    :param model: ready for inference on the CPU
    :param artifact: what a compressed checkpoint tells of itself; None for a float one
    :param report: what its linears are; None for a float one
    """

    model: VlaModel
    artifact: Artifact | None
    report: QuantizationReport | None


@dataclass(frozen=True)
class CheckpointFacts:
    """What can be told of a checkpoint without reading its weights.

    :param folder: where it is
    :param family: of models
    :param model: without weights, on the meta device; float also where the checkpoint is compressed
    :param load_: of a float checkpoint, gives the model those weights of whose names it is told that they are wanted,
        in float32
    :param artifact: what a compressed checkpoint tells of itself; None for a float one
    :param tensors: safetensors' type, and shape, of each tensor, by its name in the model or, where the checkpoint is
        compressed, in the file
    :param sources: files that decide what the model does, by name; what is hashed
    :param file_bytes: size of each file
    :param companions: files that an artifact of this model needs beside its weights, by the names they have there
    """

    folder: Path
    family: str
    model: VlaModel
    load_: Callable[[Wanted], None]
    artifact: Artifact | None
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    sources: Mapping[str, Path]
    file_bytes: dict[str, int]
    companions: Mapping[str, Path]


@dataclass(frozen=True)
class _Found:
    # A folder, its config.json, the family that it is said to be of; ``opened`` is None for this package's own folders.
    folder: Path
    values: dict[str, Any]
    name: str
    opened: Opened | None

    @cached_property
    def artifact(self) -> Artifact | None:
        return read_artifact(self.folder, self.values) if self.opened is None and is_artifact(self.values) else None

    @cached_property
    def companions(self) -> Mapping[str, Path]:
        if self.opened is not None:
            return self.opened.companions
        # Of an artifact those that it tells of, whose hashes were compared; others would be anyone's.
        wanted = FAMILIES[self.name].companions
        names = wanted if self.artifact is None else tuple(self.artifact.files)
        found = {name: self.folder / name for name in names if (self.folder / name).is_file()}
        for name in wanted:
            if name not in found:
                raise CheckpointError(f"'{self.folder}' lacks '{name}', which a model of the family '{self.name}' "
                                      "needs beside its weights; copy the whole folder, or compress the checkpoint "
                                      "again")
        return found

    @property
    def sources(self) -> dict[str, Path]:
        if self.opened is None:
            return {name: self.folder / name for name in (CONFIG_FILE, TENSOR_FILE)}
        return {str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else path.name: path
                for path in self.opened.sources}

    def load_(self, model: Any, dtype: torch.dtype, wanted: Wanted) -> None:
        if self.opened is not None:
            self.opened.load_(model, dtype, wanted)
        else:
            load_own_(model, self.folder / TENSOR_FILE, dtype, wanted)


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """Folder of a checkpoint; a name in ``PACKAGED`` is one that comes with the package."""
    return ASSETS / str(checkpoint) if str(checkpoint) in PACKAGED else Path(checkpoint)


def load_model(folder: str | Path, *, engine: str = "cpu") -> VlaModel:
    """The model of :func:`load_checkpoint`."""
    return load_checkpoint(folder, engine=engine).model


def load_checkpoint(folder: str | Path, *, engine: str = "cpu", dtype: torch.dtype = torch.float32,
                    settings: ModelSettings = DEFAULT_SETTINGS) -> Checkpoint:
    """Read a checkpoint into a model on the CPU, ready for inference.

    :param folder: a folder as :func:`~sqap_vla_ros.models.own_format.save_model` or
        :func:`~sqap_vla_ros.quantization.artifact.save_artifact` writes it, one as it was published, or a name in
        ``PACKAGED``
    :param engine: what multiplies the integers of a compressed one, by name
    :param dtype: what the model computes in; a family may keep parts of its own in float32
    :param settings: what is chosen about the model
    :raises CheckpointError: naming the file or tensor that is missing, damaged or of another shape
    :raises ConfigError: for an unknown engine, or settings that the model cannot have
    """
    found = _find(folder, settings)
    model: Any = _build(found, settings)
    model.choose(settings)
    if (artifact := found.artifact) is not None:
        report = restore_artifact_(model, artifact, engine=engine, dtype=dtype,
                                   float32_parts=FAMILIES[found.name].float32_parts)
        return Checkpoint(model.eval(), artifact, report)
    found.load_(model, dtype, all_names)
    return Checkpoint(model.eval(), None, None)


def describe_checkpoint(folder: str | Path, *, settings: ModelSettings = DEFAULT_SETTINGS,
                        chosen: bool = False) -> CheckpointFacts:
    """Tell what a checkpoint is from its configuration and its tensors' header.

    :param folder: as for :func:`load_checkpoint`
    :param settings: what must be known to open it, such as the robot
    :param chosen: choose about the model what the settings say; else that is left open, and with it what depends on it,
        such as the units of actions where there are several data sets
    :raises CheckpointError: naming the file that is missing or damaged
    :raises ConfigError: for settings that the model cannot have
    """
    found = _find(folder, settings)
    model: Any = _build(found, settings)
    if chosen:
        model.choose(settings)
    sources = found.sources
    if found.opened is not None:
        tensors, files = found.opened.tensors, sources
    else:
        tensors, files = list_stored(found.folder / TENSOR_FILE), {**sources, **found.companions}
    return CheckpointFacts(found.folder, found.name, model.eval(),
                           lambda wanted: found.load_(model, torch.float32, wanted), found.artifact, tensors, sources,
                           {name: path.stat().st_size for name, path in files.items()}, found.companions)


def verify_checkpoint(folder: str | Path, listener: Listener = lambda stage, done, total: None) -> None:
    """Find out whether a compressed checkpoint is as it was written; it is not loaded.

    :param folder: of the checkpoint
    :param listener: told how much is done
    :raises CheckpointError: naming what is not, as loading it would
    """
    found = _find(folder, DEFAULT_SETTINGS)
    if found.artifact is None:
        raise CheckpointError(f"'{found.folder}' is no compressed checkpoint")
    verify_artifact(_build(found, DEFAULT_SETTINGS), found.artifact, listener)


def hash_checkpoint(folder: str | Path, *, listener: Listener = lambda stage, done, total: None) -> dict[str, str]:
    """:func:`hash_sources` of a checkpoint.

    :param folder: as for :func:`load_checkpoint`
    """
    return hash_sources(_find(folder, DEFAULT_SETTINGS).sources, listener)


def hash_sources(files: Mapping[str, Path], listener: Listener = lambda stage, done, total: None) -> dict[str, str]:
    """SHA-256 of the files that decide what a model does, by name.

    Of a compressed checkpoint these are two; its config.json holds the hashes of what lies beside them.

    :param files: :attr:`CheckpointFacts.sources`
    :param listener: told how many of all megabytes are done
    :raises CheckpointError: when one cannot be read
    """
    total = sum(path.stat().st_size for path in files.values() if path.is_file())
    hashes, done = {}, 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        listener("hash files, MB", -(-done // 2**20), -(-total // 2**20))

    for name, path in files.items():
        try:
            hashes[name] = hash_file(path, count)
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be read: {error}") from error
    return hashes


def _find(checkpoint: str | Path, settings: ModelSettings) -> _Found:
    folder = checkpoint_folder(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint folder at '{folder}'; give a folder with {CONFIG_FILE} and its weights, "
                              f"or one of: {', '.join(PACKAGED)}")
    values = read_json(folder / CONFIG_FILE)
    if "family" not in values:
        for name, family in FAMILIES.items():
            if family.open is not None and family.recognize(folder, values):
                return _Found(folder, values, name, family.open(folder, values, settings))
    return _Found(folder, values, values.get("family", ""), None)


def _build(found: _Found, settings: ModelSettings) -> Any:
    path = found.folder / CONFIG_FILE
    if found.name not in list(FAMILIES):
        raise CheckpointError(f"'{path}' names the model family {found.values.get('family')!r}; known families are "
                              f"{', '.join(FAMILIES)}, and the folder is no published checkpoint of them either")
    family = FAMILIES[found.name]
    for name in ("dataset", "robot"):
        if (value := getattr(settings, name)) and name not in family.settings:
            raise ConfigError(f"model.{name} is '{value}', and '{found.folder}' holds a model of the family "
                              f"'{found.name}', which has no use for it; leave model.{name} empty")
    try:
        config = family.read_config(found.values) if found.opened is None else found.opened.config
        model: Any = build_empty(family.build, config, found.companions)
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}") from error
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' describes a model that cannot be built: {error}") from error
    if found.opened is not None:
        found.opened.check(model)
    return model
