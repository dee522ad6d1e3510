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

"""The quantized checkpoint on disk: a folder that is read without the model it was made from.

``config.json`` has the model's own values as a float checkpoint has them, ``quantization_config`` for readers of
compressed-tensors, and in ``sqap`` all that a model needs to be put together again to the bit. Each tensor's hash is
there too, those of files that a model needs beside its weights, and one of the whole file, so that nothing that was
damaged or mixed up is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError, ConfigError
from sqap_vla_ros.quantization.kernels import get_engine
from sqap_vla_ros.quantization.quantize import Quantizable
from sqap_vla_ros.quantization.recipe import Recipe
from sqap_vla_ros.quantization.report import Listener, QuantizationReport, report_linear
from sqap_vla_ros.quantization.rotation import RotationPlan
from sqap_vla_ros.quantization.stored_tensors import StoredTensor, read_tensors
from sqap_vla_ros.quantization.structure import (
    FLOAT_DTYPES,
    Structure,
    list_tensors,
    restore_linear,
    restore_linears_,
    restore_norms_,
    restore_online_,
)

CONFIG_FILE, TENSOR_FILE = "config.json", "model.safetensors"
SECTION = "sqap"
# Rises when an older package could no longer read what is written.
FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """Where an artifact comes from.

    :param package: version of this package that made it
    :param checkpoint: the float checkpoint, as it was named
    :param sha256: of that checkpoint's files, by name
    :param observations: how many calibrated it
    :param observations_sha256: of their pictures and instructions; None without any
    """

    package: str
    checkpoint: str
    sha256: dict[str, str]
    observations: int = 0
    observations_sha256: str | None = None


@dataclass(frozen=True)
class Artifact:
    """What config.json tells of an artifact.

    :param folder: where it is
    :param recipe_name: as it was asked for
    :param recipe: in full
    :param structure: what stands where in the model
    :param float_reasons: name of each part that stayed float, and why
    :param pruning: recommended knobs of the section ``prune``, by name
    :param origin: where it comes from
    :param tensors: what the tensor file holds, by name
    :param files: SHA-256 of what the model needs beside its weights, such as a tokenizer, by name
    """

    folder: Path
    recipe_name: str
    recipe: Recipe
    structure: Structure
    float_reasons: dict[str, str]
    pruning: dict[str, Any]
    origin: Origin
    tensors: dict[str, StoredTensor]
    files: dict[str, str]


def read_companion(path: Path) -> bytes:
    """A file that a model needs beside its weights.

    :raises CheckpointError: when it cannot be read
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"'{path}', which the model needs beside its weights, cannot be read: {error}") from error


def hash_bytes(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_config(values: Mapping[str, Any]) -> str:
    """SHA-256 of all that an artifact's config.json tells but itself, however it is laid out in the file."""
    rest = {**values, SECTION: {key: value for key, value in values[SECTION].items() if key != "sha256"}}
    return hash_bytes(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def is_artifact(values: Mapping[str, Any]) -> bool:
    """Whether these are the values of an artifact's config.json, and not a float checkpoint's."""
    return SECTION in values


def check_place(place: str | Path, *, replace: bool) -> None:
    """Find out whether an artifact may be written there.

    :param replace: whether an artifact that is there may be replaced; nothing else ever is
    :raises CheckpointError: when something is there that may not be
    """
    place = Path(place).resolve()
    if not place.exists():
        above = next(path for path in place.parents if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise CheckpointError(f"'{place}' cannot be made, since '{above}' is "
                                  f"{'not writable' if above.is_dir() else 'no folder'}; name another folder")
        return
    if not replace:
        raise CheckpointError(f"'{place}' exists already; name another folder, or ask for it to be replaced")
    names = {path.name for path in place.iterdir()} if place.is_dir() else {""}
    try:
        section = json.loads((place / CONFIG_FILE).read_text(encoding="utf-8"))[SECTION]
        known = names <= {CONFIG_FILE, TENSOR_FILE, *(section.get("files", ()))}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        known = False
    if not known:
        raise CheckpointError(f"'{place}' is no compressed checkpoint, or holds other files as well, and is not "
                              "replaced; name another folder")


def read_artifact(folder: Path, values: Mapping[str, Any]) -> Artifact:
    """What config.json tells, checked against its own hash, and the files beside the weights; tensors are not read.

    :param folder: of the artifact
    :param values: of its config.json
    :raises CheckpointError: when it was changed or damaged, or is of a later format
    """
    path, section = folder / CONFIG_FILE, values.get(SECTION)
    if not isinstance(section, dict):
        raise CheckpointError(f"'{path}': the section '{SECTION}' must be an object, it is {type(section).__name__}")
    if section.get("format") != FORMAT:
        raise CheckpointError(f"'{path}' is of format {section.get('format')!r}, and this package reads {FORMAT}; "
                              "compress the checkpoint again, or use the package that wrote it")
    if section.get("sha256") != digest_config(values):
        raise CheckpointError(f"'{path}' is not as it was written: its hash is another. Copy the folder again, or "
                              "compress the checkpoint again")
    try:
        recipe = dict(section["recipe"])
        artifact = Artifact(
            folder, str(recipe.pop("name")), _read_recipe(recipe), Structure.from_json(section["structure"]),
            dict(section["float"]), dict(section["pruning"]), Origin(**section["origin"]),
            {name: StoredTensor(entry["dtype"], tuple(entry["shape"]), entry["sha256"])
             for name, entry in section["tensors"].items()}, dict(section.get("files", {})))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{path}': the section '{SECTION}' is not usable: {error!r}") from error
    for name, sha256 in artifact.files.items():
        if Path(name).name != name or hash_bytes(read_companion(folder / name)) != sha256:
            raise CheckpointError(f"'{folder / name}' is not the file that '{path}' was written with: its hash is "
                                  "another. Copy the folder again, or compress the checkpoint again")
    return artifact


def verify_artifact(model: Quantizable, artifact: Artifact, listener: Listener) -> None:
    """Compare every tensor with its hash, and build all that is restored; no tensor stays in memory for long.

    :param model: without weights, on the meta device; it is of no use afterwards
    :param artifact: what config.json tells
    :param listener: told how many tensors are done
    :raises CheckpointError: naming what is not as it was written, or does not fit
    """
    linears, engine = artifact.structure.linears, get_engine("reference")
    waiting: dict[str, dict[str, Tensor]] = {name: {} for name in linears}
    _restore_frame_(model, artifact)
    for done, (name, tensor) in enumerate(read_tensors(artifact.folder / TENSOR_FILE, artifact.tensors), 1):
        linear, _, key = name.rpartition(".")
        if linear in linears:
            waiting[linear][key] = tensor
            if waiting[linear].keys() == linears[linear].tensors().keys():
                with _telling_of(artifact):
                    restore_linear(linears[linear], waiting.pop(linear), engine)
        listener("tensors read back", done, len(artifact.tensors))


def restore_artifact_(model: Quantizable, artifact: Artifact, *, engine: str = "cpu",
                      dtype: torch.dtype = torch.float32, float32_parts: tuple[str, ...] = ()) -> QuantizationReport:
    """Make a model of its configuration the one that was saved.

    :param model: without weights, on the meta device
    :param artifact: what config.json tells
    :param engine: what multiplies the integers, by name
    :param dtype: what float parts compute in
    :param float32_parts: beginnings of the names of tensors that are float32 whatever the others are
    :return: what ``quantize_`` returned when it was made
    :raises ConfigError: for an unknown engine
    :raises CheckpointError: naming file and tensor, or what does not fit the model
    """
    chosen = get_engine(engine)
    structure, expected = artifact.structure, _restore_frame_(model, artifact)
    for name in structure.online:
        cast(nn.Module, model).get_submodule(name).to(dtype)
    tensors = dict(read_tensors(artifact.folder / TENSOR_FILE, artifact.tensors))
    floats = {name: tensors.pop(name).to(torch.float32 if name.startswith(float32_parts) else dtype)
              for name, (exact, _) in expected.items() if exact is None}
    with _telling_of(artifact):
        # Linears come after: until then they are the empty float ones, whose missing weights nobody asks for.
        cast(nn.Module, model).load_state_dict(floats, strict=False, assign=True)
        restore_linears_(model, structure, tensors, chosen)
    modules = dict(model.named_modules())
    return QuantizationReport(
        {name: report_linear(cast(Any, modules[name]), entry.rounding) for name, entry in structure.linears.items()},
        artifact.float_reasons)


@contextmanager
def _telling_of(artifact: Artifact) -> Iterator[None]:
    try:
        yield
    except (ConfigError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"'{artifact.folder / CONFIG_FILE}' describes a model that cannot be built: "
                              f"{error}") from error


def _restore_frame_(model: Quantizable,
                    artifact: Artifact) -> dict[str, tuple[torch.dtype | None, tuple[int, ...]]]:
    # All that takes no tensors; what is listed of them is compared with what the model needs, which is returned.
    with _telling_of(artifact):
        restore_norms_(model, artifact.structure)
        expected = list_tensors(model, artifact.structure)
        _check_listed(artifact.folder / TENSOR_FILE, artifact.tensors, expected)
        restore_online_(model, artifact.structure)
    return expected


def _check_listed(path: Path, listed: Mapping[str, StoredTensor],
                  expected: Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]) -> None:
    for name in [*expected, *listed]:
        if name not in listed or name not in expected:
            raise CheckpointError(f"the tensor '{name}' of '{path}' is {'not listed' if name in expected else 'extra'}"
                                  f" in {CONFIG_FILE}, whose structure tells of other tensors")
        (dtype, shape), found = expected[name], listed[name]
        allowed = FLOAT_DTYPES if dtype is None else (dtype,)
        if found.torch_dtype not in allowed or found.shape != shape:
            raise CheckpointError(f"the tensor '{name}' of '{path}' is {found.dtype} {found.shape}; {CONFIG_FILE} "
                                  f"describes {' or '.join(map(str, allowed))} {shape}")


def _read_recipe(values: dict[str, Any]) -> Recipe:
    plan = values["rotation"]
    pairs = {key: tuple((pattern, bits) for pattern, bits in values[key])
             for key in ("weight_bits_by_pattern", "act_bits_by_pattern")}
    return Recipe(**{**values, **pairs, "rotation": None if plan is None else RotationPlan(**plan)})
