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

"""Weights with a low-rank change beside them: W + s B A (Hu et al. 2021, "LoRA", section 4.1).

Tensors are changed one at a time as they are read, so a model of any size can be merged on its way into memory. Two
kinds of files hold such changes: an adapter as peft saves it, by itself; and a part of a model saved while peft had
wrapped it, with both in one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.json_file import read_json
from sqap_vla_ros.models.shards import PickleFile, SafetensorsFile, TensorFiles

ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# "a.b.lora_A.weight", in a wrapped model "a.b.lora_A.default.weight"
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.[^.]+)?\.weight")
# Ways to begin an adapter, by the beginning of their names, that take something out of the weights beside it.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
# FiLM puts a block into a wrapper, and the vision towers too; both only show in names.
_FILM_NAMES = ((re.compile(r"^vision_backbone\.vision_backbone\."), "vision_backbone."),
               (re.compile(r"(\.blocks\.\d+)\.block\."), r"\1."))


def add_change(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + s B A.

    :param weight: (N, K), W
    :param down: (R, K), A
    :param up: (N, R), B
    :param scale: s
    :return: (N, K) float32
    """
    return weight.float().addmm(up.float(), down.float(), alpha=scale)


def unwrapped_name(name: str) -> str:
    """What a tensor of a model with FiLM is called in one without."""
    for pattern, replacement in _FILM_NAMES:
        name = pattern.sub(replacement, name)
    return name


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says of the scale; names as in peft.

    :param alpha: ``lora_alpha``; the scale is that over the rank
    :param alphas: other values of it for modules whose names end in, or match to their end, a pattern
    :param is_rank_stabilized: whether the scale is alpha over the root of the rank
    """

    alpha: float
    alphas: Mapping[str, float]
    is_rank_stabilized: bool = False

    def scale(self, module: str, rank: int) -> float:
        """Of a module's change."""
        matching = (alpha for pattern, alpha in self.alphas.items() if re.match(rf"(.*\.)?({pattern})$", module))
        return next(matching, self.alpha) / (math.sqrt(rank) if self.is_rank_stabilized else rank)


class _Change(NamedTuple):
    # Names in the file of both halves, what they have in common, and the shape of the weight that they change.
    down: str
    up: str
    rank: int
    shape: tuple[int, int]


class LoraAdapter:
    """An adapter in a folder, as peft saves it: changes of some weights, and some tensors to be taken whole.

    :param folder: with adapter_config.json and adapter_model.safetensors
    :raises CheckpointError: naming what is missing, damaged or of another kind than LoRA
    """

    def __init__(self, folder: str | Path) -> None:
        self.config = _read_config(Path(folder) / ADAPTER_CONFIG)
        self.paths = (Path(folder) / ADAPTER_CONFIG, Path(folder) / ADAPTER_TENSORS)
        self._file = SafetensorsFile(Path(folder) / ADAPTER_TENSORS)
        stored = {}
        for name in self._file.shapes:
            if not name.startswith(_PREFIX):
                raise CheckpointError(f"'{self._file.path}' has the tensor {name!r}; names in an adapter start with "
                                      f"{_PREFIX!r}")
            stored[unwrapped_name(name.removeprefix(_PREFIX))] = name
        self._changes, self._whole = _pair_halves(self._file.path, stored, self._file.shapes)

    def check(self, tensors: TensorFiles) -> None:
        """Hold the adapter against the model that it shall change, without reading a weight.

        :raises CheckpointError: naming the tensor that the model has not, or has with another shape
        """
        held = frozenset(tensors.names)
        for name, shape in self.shapes.items():
            if name not in held:
                raise CheckpointError(f"'{self._file.path}' changes '{name}', which {tensors.place} has not; it was "
                                      "made for another model")
            if tensors.shape(name) != shape:
                raise CheckpointError(f"'{self._file.path}' changes '{name}' as one of shape {shape}; in "
                                      f"'{tensors.path(name)}' it has {tensors.shape(name)}")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the model's tensors that the adapter changes or replaces, by their names in the model's own layout."""
        changed = {f"{module}.weight": change.shape for module, change in self._changes.items()}
        return changed | {name: self._file.shapes[stored] for name, stored in self._whole.items()}

    def merge(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model with the adapter's change in it, rounded once to its own type; others as is.

        :param name: of a tensor of the model, in the model's own layout
        :param tensor: the tensor
        """
        if name in self._whole:
            return self._file.read(self._whole[name]).to(tensor.dtype)
        module = name.removesuffix(".weight")
        if module == name or module not in self._changes:
            return tensor
        change = self._changes[module]
        down, up = self._file.read(change.down), self._file.read(change.up)
        return add_change(tensor, down, up, self.config.scale(module, change.rank)).to(tensor.dtype)


class MergedTensors(TensorFiles):
    """A model's tensors with an adapter's changes in them.

    :param tensors: of the model
    :param adapter: made for this model
    :raises CheckpointError: see :meth:`LoraAdapter.check`
    """

    def __init__(self, tensors: TensorFiles, adapter: LoraAdapter) -> None:
        super().__init__(())
        adapter.check(tensors)
        self._files, self._tensors, self._adapter = tensors._files, tensors, adapter

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file, the adapter's among them."""
        return (*self._tensors.paths, *self._adapter.paths)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor, merged; see :meth:`TensorFiles.read`."""
        return self._adapter.merge(name, self._tensors.read(name, shape))


class OverlaidTensors(TensorFiles):
    """A model's tensors, some of which lie in another file too and are taken from there.

    :param below: of the model
    :param above: those that count where both have a name
    """

    def __init__(self, below: TensorFiles, above: TensorFiles) -> None:
        super().__init__(())
        self._files, self._below, self._above = {**below._files, **above._files}, below, above

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file, those of both."""
        return (*self._below.paths, *self._above.paths)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor; see :meth:`TensorFiles.read`."""
        return (self._above if name in self._above._files else self._below).read(name, shape)


class UnwrappedFile(PickleFile):
    """A part of a model that was saved while peft had wrapped it, with names and weights as they are without.

    A weight with a change in it is float32 and not rounded, since the original adds both as it runs.

    :param path: of the file, as ``torch.save`` wrote it
    :param scale: a module's name and its rank to s
    :param wanted: of names without the wrapping, those that are listed
    :raises CheckpointError: when it is damaged, or half of a change or its weight is missing
    """

    def __init__(self, path: Path, scale: Callable[[str, int], float],
                 wanted: Callable[[str], bool] = lambda name: True) -> None:
        self._scale, self._wanted = scale, wanted
        super().__init__(path)

    def _list(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        stored_as = super()._list()
        shapes = {name: shape for name, (_, shape) in stored_as.items()}
        self._changes, whole = _pair_halves(self.path, {unwrapped_name(name): name for name in shapes}, shapes)
        self._stored = {name.replace(".base_layer.", "."): stored for name, stored in whole.items()}
        for module, change in self._changes.items():
            stored = self._stored.get(f"{module}.weight")
            if stored is None or shapes[stored] != change.shape:
                came = "nothing" if stored is None else f"shape {shapes[stored]}"
                raise CheckpointError(f"'{self.path}' changes '{module}.weight' as one of shape {change.shape}; of "
                                      f"that it has {came}")
        return {name: stored_as[stored] for name, stored in self._stored.items() if self._wanted(name)}

    def _get(self, name: str) -> Tensor:
        tensor, module = super()._get(self._stored[name]), name.removesuffix(".weight")
        if module == name or module not in self._changes:
            return tensor
        change = self._changes[module]
        down, up = super()._get(change.down), super()._get(change.up)
        return add_change(tensor, down, up, self._scale(module, change.rank))


def find_adapter(folder: str | Path) -> Path | None:
    """Folder of the adapter that must be merged into a checkpoint, or None.

    That is one whose files lie among the checkpoint's. OpenVLA-OFT's ``lora_adapter`` below them is what its weights
    were merged *from*: to merge it again would change the model.

    :param folder: of the checkpoint
    """
    folder = Path(folder)
    return folder if (folder / ADAPTER_CONFIG).is_file() else None


def read_adapter_config(folder: str | Path) -> AdapterConfig | None:
    """What an adapter tells of its scale; None where the folder holds no adapter.

    :raises CheckpointError: when it is no adapter that can be merged
    """
    path = Path(folder) / ADAPTER_CONFIG
    return _read_config(path) if path.is_file() else None


def _read_config(path: Path) -> AdapterConfig:
    values = read_json(path)
    if values.get("peft_type") != "LORA":
        raise CheckpointError(f"'{path}' describes an adapter of type {values.get('peft_type')!r}; only LORA can be "
                              "merged")
    for name in ("use_dora", "fan_in_fan_out"):
        if values.get(name):
            raise CheckpointError(f"'{path}' asks for {name}, which is not known here; merge the adapter with peft")
    start = str(values.get("init_lora_weights"))
    if start.startswith(_CHANGES_BASE):
        raise CheckpointError(f"'{path}' began as {start!r}, which changes the model's own weights too, and those of a "
                              "checkpoint are without that change; merge the adapter with peft")
    alpha, alphas = values.get("lora_alpha"), values.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(map(_is_number, (alpha, *alphas.values()))):
        raise CheckpointError(f"'{path}': lora_alpha and the values of alpha_pattern must be numbers, they are "
                              f"{alpha!r} and {alphas!r}")
    alphas = {pattern: float(value) for pattern, value in alphas.items()}
    return AdapterConfig(float(cast(float, alpha)), alphas, bool(values.get("use_rslora")))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pair_halves(path: Path, stored: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]],
                 ) -> tuple[dict[str, _Change], dict[str, str]]:
    # Names in the model to names in the file, sorted into the change of each module and all that is no half of one.
    halves: dict[str, dict[str, str]] = {}
    whole = {}
    for name, stored_name in stored.items():
        match = _HALF.fullmatch(name)
        if match is not None:
            halves.setdefault(match["module"], {})[match["half"]] = stored_name
        elif ".lora_" in name:
            raise CheckpointError(f"'{path}' has the tensor {stored_name!r}; only changes of linear layers, lora_A and "
                                  "lora_B, can be merged; merge the adapter with peft")
        else:
            whole[name] = stored_name
    changes = {}
    for module, pair in halves.items():
        if len(pair) != 2:
            raise CheckpointError(f"'{path}' has only lora_{next(iter(pair))} of '{module}'; a change has both halves")
        down, up = shapes[pair["A"]], shapes[pair["B"]]
        if not len(down) == len(up) == 2 or down[0] != up[1] or down[0] < 1:
            raise CheckpointError(f"'{path}' changes '{module}' by B of shape {up} times A of {down}, which do not fit")
        changes[module] = _Change(pair["A"], pair["B"], down[0], (up[0], down[1]))
    return changes, whole
