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

"""Writes the quantized checkpoint, part by part, as :mod:`~sqap_vla_ros.quantization.artifact` reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.quantization.artifact import (
    CONFIG_FILE,
    FORMAT,
    SECTION,
    TENSOR_FILE,
    Origin,
    check_place,
    digest_config,
    hash_bytes,
    read_companion,
)
from sqap_vla_ros.quantization.folder import write_folder
from sqap_vla_ros.quantization.linear import QuantLinear
from sqap_vla_ros.quantization.mixed import MixedLinear
from sqap_vla_ros.quantization.public_format import choose_notes, describe_publicly
from sqap_vla_ros.quantization.quantize import Quantizable
from sqap_vla_ros.quantization.recipe import Recipe
from sqap_vla_ros.quantization.report import QuantizationReport
from sqap_vla_ros.quantization.stored_tensors import TensorWriter
from sqap_vla_ros.quantization.structure import FLOAT_DTYPES, SHAPE_TENSOR, describe_structure

# For the header of the tensor file: of each tensor of the float model, all that it may become, beside their names.
_ENTRY_BYTES, _ENTRIES = 160, 8


class ArtifactWriter:
    """An artifact that is being written; see :func:`write_artifact`.

    :param place: where it shall be
    :param draft: folder to write into
    :param file: of the tensors, open
    :param model: what is written, whose tensors need not be there yet
    :param dtypes: how float parts are stored, by the names of their tensors; those that are not among them as float32
    """

    def __init__(self, place: str | Path, draft: Path, file: BinaryIO, model: Quantizable,
                 dtypes: Mapping[str, torch.dtype]) -> None:
        self.draft, self._place, self._model, self._dtypes = draft, place, model, dtypes
        self._file = file
        names = cast(nn.Module, model).state_dict()
        room = sum(_ENTRIES * (len(name) + _ENTRY_BYTES) for name in names)
        self._tensors = TensorWriter(file, room, {"format": "pt"})

    def add(self, holds: Callable[[str], bool] = lambda name: True) -> None:
        """Write some of the model's tensors as they are now.

        :param holds: whether a tensor of that qualified name is meant
        :raises CheckpointError: for one that is not finite, and when it cannot be written
        """
        exact = {f"{name}.": module for name, module in self._model.named_modules()
                 if isinstance(module, (QuantLinear, MixedLinear)) and holds(f"{name}.")}
        begins = tuple(exact)
        for name, tensor in cast(nn.Module, self._model).state_dict().items():
            if holds(name):
                dtype = tensor.dtype if name.startswith(begins) else self._dtypes.get(name, torch.float32)
                self._write(name, tensor.to(dtype))
        for begin, module in exact.items():
            if isinstance(module, QuantLinear):
                self._write(begin + SHAPE_TENSOR, torch.tensor((module.out_features, module.in_features)))

    def finish(self, recipe_name: str, recipe: Recipe, report: QuantizationReport, *, config: Mapping[str, Any],
               origin: Origin, pruning: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Write all that is not tensors; see :func:`save_artifact`. What is in ``draft`` can be read then."""
        with _writing(self._place):
            stored = self._tensors.finish()
        structure = describe_structure(self._model, report)
        for name, entry in structure.linears.items():
            for key, about in entry.tensors().items():
                found = stored[f"{name}.{key}"]
                if (found.torch_dtype, found.shape) != about:
                    raise CheckpointError(f"tensor '{name}.{key}' is {found.torch_dtype} {found.shape}, and an "
                                          f"artifact holds {about}; quantize a float32 model")
        companions = {name: read_companion(path) for name, path in files.items()}
        section = {
            "format": FORMAT, "recipe": {"name": recipe_name, **asdict(recipe)},
            "rotation": None if recipe.rotation is None else {"seed": recipe.seed, "plan": asdict(recipe.rotation)},
            "structure": structure.to_json(), "float": dict(report.float_reasons), "pruning": dict(pruning),
            "origin": asdict(origin), "notes": choose_notes(recipe, structure),
            "tensors": {name: asdict(tensor) for name, tensor in stored.items()},
            "files": {name: hash_bytes(content) for name, content in companions.items()}}
        # As they will be read: tuples become lists, and the numbers that are keys become strings.
        values = json.loads(json.dumps({
            **config, "quantization_config": describe_publicly(self._model, recipe, structure), SECTION: section},
            allow_nan=False))
        values[SECTION]["sha256"] = digest_config(values)
        with _writing(self._place):
            for name, content in companions.items():
                (self.draft / name).write_bytes(content)
            self._file.flush()
            (self.draft / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def _write(self, name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            because = ", as float16 cannot hold what exceeds 65504; take bfloat16"
            raise CheckpointError(f"tensor '{name}' has values that are not finite"
                                  f"{because if tensor.dtype == torch.float16 else ''}")
        with _writing(self._place):
            self._tensors.add(name, tensor.detach().cpu().contiguous())


@contextmanager
def _writing(place: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write a compressed checkpoint to '{place}': {error}") from error


@contextmanager
def write_artifact(model: Quantizable, place: str | Path, *, dtypes: Mapping[str, torch.dtype] | None = None,
                   replace: bool = False) -> Iterator[ArtifactWriter]:
    """Write a quantized model; the folder appears whole or not at all, when the block ends.

    :param model: whose tensors may still be on their way; where they come from is read within the block
    :param place: folder that does not exist yet
    :param dtypes: how float parts are stored, each one of ``FLOAT_DTYPES``, by the names of their tensors; those that
        are not among them are float32, as scales are in any case
    :param replace: put it in the place of an artifact that is there
    :raises CheckpointError: when it may not or cannot be written, or what it is made of not be read; what is there
        stays then
    """
    check_place(place, replace=replace)
    dtypes = dtypes or {}
    for dtype in dtypes.values():
        if dtype not in FLOAT_DTYPES:
            raise CheckpointError(f"float parts are to be stored as {dtype}; allowed are "
                                  f"{', '.join(map(str, FLOAT_DTYPES))}")
    with _writing(place), write_folder(Path(place), replace=replace) as draft, (draft / TENSOR_FILE).open("wb") as file:
        try:
            yield ArtifactWriter(place, draft, file, model, dtypes)
        except OSError as error:  # the writer's own are told of as such where they happen
            raise CheckpointError(f"what is compressed to '{place}' cannot be read: {error}") from error


def save_artifact(model: Quantizable, place: str | Path, recipe_name: str, recipe: Recipe,
                  report: QuantizationReport, *, config: Mapping[str, Any], origin: Origin,
                  pruning: Mapping[str, Any], files: Mapping[str, Path] | None = None,
                  dtype: torch.dtype = torch.float32, replace: bool = False) -> None:
    """Write a quantized model that is in memory whole.

    What is read back is this model to the bit, its float parts rounded to ``dtype``.

    :param model: as ``quantize_`` left it, computing in float32
    :param place: see :func:`write_artifact`, as for ``replace``
    :param recipe_name: what the recipe is called
    :param recipe: by which it was quantized
    :param report: what ``quantize_`` returned
    :param config: the model's own values, as its float checkpoint has them
    :param origin: where it comes from
    :param pruning: knobs to recommend
    :param files: what the model needs beside its weights, by the name that a copy of it gets in the folder
    :param dtype: how all float parts are stored
    :raises CheckpointError: when it may not or cannot be written; what is there stays then
    """
    dtypes = dict.fromkeys(cast(nn.Module, model).state_dict(), dtype)
    with write_artifact(model, place, dtypes=dtypes, replace=replace) as writer:
        writer.add()
        writer.finish(recipe_name, recipe, report, config=config, origin=origin, pruning=pruning, files=files or {})
